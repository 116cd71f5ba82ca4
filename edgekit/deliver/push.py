"""A package to a device: sent, tested there by the device's own edgekit, put in place in one step or not at all."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable

import msgspec

from edgekit.deliver.scripts import ROLL_BACK, SELF_TEST, SWITCH
from edgekit.deliver.ssh import LOST, Answer, Host, check_name
from edgekit.deliver.transfer import Delivery, Progress, lost, size_text
from edgekit.errors import CheckError, DeviceError, UsageError
from edgekit.package import Package

KEEP = 1
_DIGITS = 12


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """What the device's edgekit found. `edgekit` None: it was not run, and `note` says why."""

    edgekit: str | None
    variants: tuple[str, ...] = ()
    note: str = ""


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What a push did.

    Attributes:
        host, path: where the package is now.
        version, previous: folders of the version in place and the one before, below `.edgekit/NAME.edge/`; `previous`
            None where there was none; both None where the same package was there, so that nothing was done.
        sent_bytes, reused_bytes: what went over the line, and what the device had.
        self_test: None where nothing was done.
    """

    host: str
    path: str
    version: str | None
    previous: str | None
    sent_bytes: int
    reused_bytes: int
    self_test: SelfTest | None


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """The version that is in place again, and the one that was taken back."""

    host: str
    path: str
    version: str
    withdrawn: str


def push(
    package: Package,
    host: Host,
    folder: str,
    *,
    keep: int = KEEP,
    edgekit: str = "",
    progress: Progress = lambda _done, _all: None,
    note: Callable[[str], None] = lambda _text: None,
) -> Pushed:
    """Put `package` into `folder` on `host`, under its own name.

    `keep` versions before it stay there. `edgekit`: the device's command; empty to look for it. `note` hears of steps.

    Raises:
        UsageError: a name that is refused; no such `edgekit` there.
        IntegrityError: a file of the package was changed.
        CheckError: it fails its self-test there. The version that was in place stays.
        DeviceError: see `Delivery.send`; what was there is as before.
    """
    delivery = Delivery(package)
    name = delivery.name
    final = posixpath.join(folder, name)
    digest = hashlib.sha256(delivery.index).hexdigest()[:_DIGITS]
    if delivery.is_at(host, final):
        return Pushed(
            host=host.name,
            path=final,
            version=None,
            previous=None,
            sent_bytes=0,
            reused_bytes=delivery.bytes,
            self_test=None,
        )
    staged = posixpath.join(folder, ".edgekit", name, f"incoming-{digest}", name)
    sent = delivery.send(host, staged, reuse=final, base=folder, progress=progress)
    note(f"sent {size_text(sent.sent_bytes)}, {size_text(sent.reused_bytes)} were there; every digest is checked")
    try:
        tested = _self_test(package, host, staged, edgekit)
    except (CheckError, UsageError):
        delivery.discard(host, staged)
        raise
    answer = host.run(SWITCH, folder, name, digest, str(keep))
    version, _, previous = answer.out.strip().partition(" ")
    if answer.code == LOST:
        raise DeviceError(
            f"The connection to {host.name} was lost while '{name}' was put in place, so it is the old one or the new "
            "one. Run the command again: it says which, and finishes."
        )
    if answer.code != 0 or not version:
        raise DeviceError(
            f"{host.name} did not put '{name}' in place: {answer.said or f'exit code {answer.code}'}. "
            "What was there is as before."
        )
    return Pushed(
        host=host.name,
        path=final,
        version=version,
        previous=previous or None,
        sent_bytes=sent.sent_bytes,
        reused_bytes=sent.reused_bytes,
        self_test=tested,
    )


def roll_back(name: str, host: Host, folder: str) -> RolledBack:
    """Put the version before the current one of `name` (NAME.edge) in `folder` in place again.

    Raises:
        UsageError: a name that is refused, nothing was pushed there, or no version is left to go back to.
        DeviceError: the connection was lost, or the device does not do it.
    """
    name = check_name(name if name.endswith(".edge") else f"{name}.edge")
    answer = host.run(ROLL_BACK, folder, name)
    if answer.code == LOST:
        raise lost(host, "while the package was rolled back", answer)
    words = answer.out.split()
    if answer.code != 0 or not words:
        raise DeviceError(f"{host.name} did not roll '{name}' back: {answer.said or f'exit code {answer.code}'}.")
    if words[0] == "unknown":
        raise UsageError(f"'{name}' in {folder} on {host.name} was not put there by edgekit push. Push it first.")
    if words[0] == "none":
        raise UsageError(f"No version of '{name}' before {words[1]} is left on {host.name}; push the one you want.")
    return RolledBack(host=host.name, path=posixpath.join(folder, name), version=words[0], withdrawn=words[1])


def _self_test(package: Package, host: Host, staged: str, edgekit: str) -> SelfTest:
    """The package's own samples through every variant that the device can run."""
    if package.manifest.samples is None:
        return SelfTest(edgekit=None, note="the package has no samples to test it with")
    answer = host.run(SELF_TEST, edgekit, staged)
    if answer.code == LOST:
        raise lost(host, "during the self-test", answer)
    found, _, text = answer.out.partition("\n")
    if found == "none":
        if edgekit:
            raise UsageError(
                f"{host.name} has no command '{edgekit}'. Give the path of its edgekit: --remote-edgekit PATH"
            )
        return SelfTest(
            edgekit=None,
            note=f"{host.name} has no edgekit on PATH, in ~/.local/bin or /opt/edgekit/bin; "
            "name it with --remote-edgekit PATH",
        )
    return SelfTest(edgekit=found, variants=_passed(package, host, answer, text))


class _Check(msgspec.Struct, frozen=True):
    variant: str
    passed: bool
    reason: str = ""


class _Report(msgspec.Struct, frozen=True):
    checks: tuple[_Check, ...] = ()
    skipped: dict[str, str] = {}
    error: str = ""


def _passed(package: Package, host: Host, answer: Answer, text: str) -> tuple[str, ...]:
    """The variants that passed. Raises CheckError: one failed, or none could run."""
    try:
        report = msgspec.json.decode(text, type=_Report)
    except msgspec.DecodeError:
        report = _Report(error=answer.said or f"its edgekit ended with exit code {answer.code}")
    failed = next((c for c in report.checks if not c.passed), None)
    if failed is not None:
        why = f"variant '{failed.variant}': {failed.reason}"
    elif report.error or answer.code != 0 or not report.checks:
        why = report.error or answer.said
        if not report.checks and not report.error:
            reasons = "; ".join(f"{v}: {reason}" for v, reason in report.skipped.items())
            why = f"none of its variants can run there ({reasons or answer.said or 'no reason given'})"
    else:
        return tuple(c.variant for c in report.checks)
    raise CheckError(
        f"'{package.path.name}' fails its self-test on {host.name}, so it was not put in place: {why.rstrip('.')}. "
        "What was there is as before."
    )
