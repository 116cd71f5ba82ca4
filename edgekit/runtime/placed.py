"""Opens a package where it is told to: on one device, on several side by side, or its stages spread over devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.gpu import gpu_count
from edgekit.package import Package
from edgekit.runtime.parallel import ParallelSession
from edgekit.runtime.select import Choice, open_best
from edgekit.runtime.session import Session
from edgekit.runtime.staged import StagedSession, StageRun


@dataclass(frozen=True)
class Opened:
    """An open session with what was chosen: a choice for each stage and device, by its name ("decoder", "")."""

    session: Session
    choices: tuple[tuple[str, Choice], ...]

    @property
    def summary(self) -> str:
        """Which variants run, why, and where, in one line."""
        parts = dict.fromkeys(
            f"{name + ': ' if name else ''}variant {c.variant.id} ({c.reason})" for name, c in self.choices
        )
        return f"{'; '.join(parts)}, {self.session.device}"


def open_placed(
    package: Package,
    *,
    variant: str | None = None,
    threads: int | None = None,
    devices: Sequence[str] = (),
    split: bool = False,
) -> Opened:
    """Open `package` on `devices` ("cpu", "cuda:0"; none: the best of this machine).

    On several devices each gets a session of its own behind one front (`ParallelSession`). With `split` the stages of
    the package are spread over the devices in order instead (every GPU of this machine, if none is named). `variant`
    holds for every stage.

    Raises:
        UsageError: no such device or variant, or `split` of what cannot be split so.
        IntegrityError: a file changed.
        ModelError, BackendError: no variant can be loaded.
    """
    if split:
        places = _split_places(package, devices)
        return _staged(package, variant, threads, places, split=True)
    names: Sequence[str | None] = list(devices) or [None]
    with ExitStack() as opened:
        found = []
        for name in names:
            found.append(_on_one(package, variant, threads, name))
            opened.callback(found[-1].session.close)
        session = found[0].session if len(found) == 1 else ParallelSession([f.session for f in found])
        opened.pop_all()
    return Opened(session, tuple(choice for f in found for choice in f.choices))


def _on_one(package: Package, variant: str | None, threads: int | None, device: str | None) -> Opened:
    if package.stage_names:
        return _staged(package, variant, threads, [device] * len(package.stage_names), split=False)
    session, choice = open_best(package, variant=variant, threads=threads, device=device)
    return Opened(session, (("", choice),))


def _staged(
    package: Package, variant: str | None, threads: int | None, places: Sequence[str | None], *, split: bool
) -> Opened:
    runs: list[StageRun] = []
    choices: list[tuple[str, Choice]] = []
    with ExitStack() as opened:
        for (stage, own), place in zip(package.stages(), places):
            session, choice = open_best(own, variant=variant, threads=threads, device=place)
            opened.callback(session.close)
            runs.append(StageRun(stage.name, session, stage.inputs, stage.outputs))
            choices.append((stage.name, choice))
        manifest = package.manifest
        whole = StagedSession(runs, inputs=manifest.input_specs, outputs=manifest.output_specs, split=split)
        opened.pop_all()
    return Opened(whole, tuple(choices))


def _split_places(package: Package, devices: Sequence[str]) -> list[str]:
    """The device of each stage: neighbours share one where there are fewer devices than stages."""
    count = len(package.stage_names)
    if not count:
        raise UsageError(
            f"'{package.path.name}' is one graph, which cannot be split over devices. Make a package of stages with: "
            "edgekit export FIRST.onnx SECOND.onnx -o X.edge"
        )
    places = list(devices) or list(all_gpus())[:count]
    if not 2 <= len(places) <= count:
        have = "no GPU" if not places else f"{len(places)} device{'s' if len(places) > 1 else ''}"
        source = "--device names" if devices else "this machine has"
        takes = "2" if count == 2 else f"2 to {count}"
        raise UsageError(
            f"To split the {count} stages of '{package.path.name}' takes {takes} devices, and {source} {have}. "
            "Name them in the order of the stages, for example: --device cuda:0,cuda:1"
        )
    return [places[i * len(places) // count] for i in range(count)]


def all_gpus() -> tuple[str, ...]:
    """Every GPU of this machine, as devices are named."""
    return tuple(f"cuda:{i}" for i in range(gpu_count()))
