"""Engines built on a device, from the desk: the package goes there, edgekit compiles it there, the engines come home.

What comes home is checked against what was sent: an engine is taken only if the device's manifest says that it was
built from this very model, and with the digest that the manifest states.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit._files import storage
from edgekit.deliver.scripts import COMPILE, READ
from edgekit.deliver.ssh import LOST, Answer, Host, check_name
from edgekit.deliver.transfer import Delivery, Progress, lost, size_text
from edgekit.errors import DeviceError, PackageError, UsageError
from edgekit.manifest import File, Manifest, Variant, decode
from edgekit.package import MANIFEST, Package, PackageWriter, sha256_of

FOLDER = ".cache/edgekit"
"""Where packages are compiled on a device, below the home folder, unless a folder is named."""

_ENGINES = "engines/"


class _Engine(msgspec.Struct, frozen=True):
    id: str


class _Report(msgspec.Struct, frozen=True):
    engines: tuple[_Engine, ...] = ()
    error: str = ""
    exit_code: int = 0


def compile_on(
    package: Package,
    host: Host,
    folder: str,
    arguments: Sequence[str],
    *,
    edgekit: str = "",
    progress: Progress = lambda _done, _all: None,
    note: Callable[[str], None] = lambda _text: None,
) -> bytes:
    """Run `edgekit compile ARGUMENTS` for `package` on `host` and add the engines that it makes to `package` here.

    `folder` there is where it is done; a package of this name in it saves sending. `note` hears what the device's
    edgekit says on the way. Returns its answer to --json.

    Raises:
        UsageError: a name that is refused, no edgekit there, or arguments that it refuses.
        IntegrityError: a file of the package was changed.
        DeviceError: the connection was lost, the engines cannot be built, or are not what was asked for; the package
            here is as before.
    """
    delivery = Delivery(package)
    place = posixpath.join(folder, ".edgekit", delivery.name, "compile", delivery.name)
    sent = delivery.send(host, place, reuse=posixpath.join(folder, delivery.name), progress=progress)
    note(f"sent {size_text(sent.sent_bytes)}, {size_text(sent.reused_bytes)} were there; compiling on {host.name}")

    def hear(line: str) -> None:
        if not line.startswith("edgekit: "):  # its errors come in its answer, too
            note(f"{host.name}: {line}")

    answer = host.follow(COMPILE, edgekit, place, *arguments, hear=hear)
    if answer.code == LOST:
        raise lost(host, "while it compiled", answer)
    found, _, text = answer.out.partition("\n")
    if found == "none":
        raise UsageError(
            f"{host.name} has no edgekit{f' at {edgekit!r}' if edgekit else ' that ssh commands find'}. "
            "Install it there, or name it with --remote-edgekit PATH."
        )
    report = _report(host, answer, text)
    bring_home(package, host, place, [e.id for e in report.engines], progress=progress)
    delivery.discard(host, place)
    return text.encode()


def bring_home(
    package: Package,
    host: Host,
    place: str,
    ids: Sequence[str],
    *,
    progress: Progress = lambda _done, _all: None,
) -> None:
    """Add the engines `ids` ("ID", or "STAGE/ID") of the package at `place` on `host` to `package`, where they differ.

    Raises DeviceError: they are not engines of this package's model, or do not arrive whole; nothing is changed.
    """
    stages = {stage.name: (f"{stage.package}/", own) for stage, own in package.stages()} or {"": ("", package)}
    by_stage: dict[str, list[str]] = {}
    for one in ids:
        stage, _, own_id = one.rpartition("/")
        if stage not in stages:
            raise _refused(host, f"names an engine of a stage '{stage}'")
        by_stage.setdefault(stage, []).append(own_id)
    for stage, own_ids in by_stage.items():
        prefix, own = stages[stage]
        manifest = _manifest(host, posixpath.join(place, prefix, MANIFEST), own.path.name)
        engines = [_engine(host, own, manifest, one) for one in own_ids]
        mine = {v.id: v.sha256 for v in own.manifest.variants}
        fresh = [v for v in engines if mine.get(v.id) != v.sha256]
        if not fresh:
            continue
        known = manifest.all_files()
        sizes = [f.bytes for v in fresh for f in _files_of(v, known)]
        done = 0
        with own.edit() as writer:
            for variant in fresh:
                for file in _files_of(variant, known):
                    _fetch(host, posixpath.join(place, prefix), file, writer, variant)
                    done += file.bytes
                    progress(done, sum(sizes))
                writer.put(variant)
            writer.commit()


def _report(host: Host, answer: Answer, text: str) -> _Report:
    """What the device's edgekit answered. Raises UsageError or DeviceError: it failed."""
    try:
        report = msgspec.json.decode(text, type=_Report)
    except msgspec.DecodeError:
        report = _Report(error=answer.said.removeprefix("edgekit: ") or f"exit code {answer.code}")
    if answer.code == 0 and not report.error:
        return report
    misuse = 2 in (answer.code, report.exit_code)
    why = (report.error or answer.said or f"exit code {answer.code}").rstrip(".")
    raise (UsageError if misuse else DeviceError)(f"{host.name} did not compile: {why}. Nothing was changed here.")


def _manifest(host: Host, path: str, name: str) -> Manifest:
    data = io.BytesIO()
    answer = host.fetch(READ, path, out=data)
    if answer.code == LOST:
        raise lost(host, "while its manifest was fetched", answer)
    if answer.code != 0:
        raise DeviceError(f"{host.name} does not give {MANIFEST}: {answer.said}. Nothing was changed here.")
    try:
        return decode(data.getvalue(), where=f"{name} on {host.name}")
    except PackageError as error:
        raise DeviceError(
            f"{str(error).rstrip('.')}. Is its edgekit newer than this one? Nothing was changed here."
        ) from error


def _engine(host: Host, own: Package, manifest: Manifest, wanted: str) -> Variant:
    """The engine called `wanted`, if it is one of a model of `own`."""
    found = next((v for v in manifest.variants if v.id == wanted), None)
    if found is None:
        raise _refused(host, f"names an engine '{wanted}' that its package does not hold")
    sources = {v.id: v.sha256 for v in own.manifest.variants if v.format == "onnx"}
    source = str(found.settings.get("source"))
    if found.format == "onnx" or wanted in sources or not found.file.startswith(_ENGINES):
        raise _refused(host, f"calls '{wanted}' an engine, which it is not")
    if source not in sources or found.settings.get("source_sha256") != sources[source]:
        raise _refused(host, f"built '{wanted}' from another model than '{source}' of this package")
    return found


def _files_of(variant: Variant, known: Mapping[str, File]) -> list[File]:
    """The files that belong to an engine: itself, its external data, and the list of its layers."""
    names = [variant.file, *(d.name for d in variant.data)]
    layers = variant.settings.get("layers")
    if isinstance(layers, str) and layers.startswith(_ENGINES) and layers in known:
        names.append(layers)
    return [known[check_name(name)] for name in names]


def _fetch(host: Host, folder: str, file: File, writer: PackageWriter, variant: Variant) -> None:
    path: Path = writer.path(file.name)
    with storage(writer.target):
        with path.open("wb") as out:
            answer = host.fetch(READ, posixpath.join(folder, file.name), out=out)
        whole = path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
    if answer.code == LOST:
        raise lost(host, f"while '{file.name}' was fetched", answer)
    if answer.code != 0 or not whole:
        raise DeviceError(
            f"'{file.name}' did not arrive whole from {host.name}: {answer.said or 'its SHA-256 is another one'}. "
            "Nothing was changed here; run the command again."
        )
    if file.name != variant.file and file not in variant.data:
        writer.write(file.name, path.read_bytes())  # listed in the manifest on its own


def _refused(host: Host, what: str) -> DeviceError:
    return DeviceError(f"The edgekit of {host.name} {what}, so nothing was taken over from there.")
