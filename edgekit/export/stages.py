"""Several models that run one after the other, as one package of stages: a denoiser and its decoder, say.

Tensors flow by name, so an output of one model is the input of that name of a later one; `links` join other names.
"""

from __future__ import annotations

import datetime
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit import __version__
from edgekit.errors import ModelError, UsageError
from edgekit.export.build import export
from edgekit.export.declared import Declared, read_labels, read_preprocess
from edgekit.export.samples import arrays_from_path
from edgekit.graphs import load_model, model_specs
from edgekit.manifest import SCHEMA, Manifest, Provenance, SampleSet, Stage, Tensor
from edgekit.package import LABELS, Package, create
from edgekit.preprocess import Preprocess
from edgekit.recipe import check_name
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Array, Tensors, TensorSpec, batch_axis, run_in_batches, take_samples

Note = Callable[[str], None]
_ROWS = 256


@dataclass(frozen=True)
class Link:
    """Input `stage.input` takes `tensor`: "decoder.x=denoiser.out" or "decoder.x=out"."""

    stage: str
    input: str
    tensor: str


def parse_link(text: str) -> Link:
    """A link from "STAGE.INPUT=TENSOR". Raises UsageError."""
    target, equals, tensor = text.partition("=")
    stage, dot, name = target.partition(".")
    if not (equals and dot and stage and name and tensor):
        raise UsageError(f"--link '{text}' is not usable; expected STAGE.INPUT=TENSOR, e.g. decoder.x=denoiser.latent")
    return Link(stage, name, tensor)


def export_stages(
    sources: Sequence[str | Path],
    *,
    output: str | Path,
    force: bool = False,
    declared: Declared | None = None,
    links: Sequence[Link] = (),
    samples: Path | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
    static: bool = False,
    dynamic_batch: bool = False,
    note: Note = lambda _text: None,
) -> Package:
    """Make a package whose stages are `sources` in the order they run, each checked against its original.

    A source is what `export` takes, or "NAME=source" to name the stage. The samples of a stage are what the stages
    before it give, so that each can be quantized and verified on its own.

    Raises:
        UsageError: fewer than two sources, two of one name, or a stage that nobody takes anything from.
        ModelError: two stages disagree on the type or shape of a tensor.
        others: as `export`.
    """
    named = _named(sources)
    declared = declared or Declared()
    preprocess = read_preprocess(declared.preprocess) if declared.preprocess is not None else {}
    flow = _Flow(tuple(named), links)
    common: dict[str, Any] = {
        "opset": opset,
        "tolerance": tolerance,
        "static": static,
        "dynamic_batch": dynamic_batch,
        "note": note,
    }
    with create(output, force=force) as writer, tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        stages: list[tuple[Stage, Package]] = []
        for name, source in named.items():
            note(f"stage {name}")
            given = _known_inputs(name, source, flow, samples, preprocess)
            file = None
            if given is not None:
                file = Path(folder) / f"{name}.npz"
                arrays: dict[str, Any] = dict(given)
                np.savez(file, **arrays)
            target = writer.path(f"{name}.edge")
            whole = export(source, output=target, declared=Declared(name=name), samples=file, **common)
            stages.append((flow.add(name, whole), whole))
        flow.check()
        count = flow.count()
        for stage, package in stages:
            _keep_samples(stage, package, flow, count)
        manifest = _manifest(stages, flow, declared, preprocess, Path(output).stem, count)
        inputs = {s.name: flow.rows(s.name, count) for s in manifest.input_specs}
        writer.write_samples(inputs, {s.name: flow.rows(s.name, count) for s in manifest.output_specs})
        if declared.labels is not None:
            writer.write(LABELS, ("\n".join(read_labels(declared.labels)) + "\n").encode())
        note("writing the package")
        return writer.commit(manifest)


def _named(sources: Sequence[str | Path]) -> dict[str, str]:
    """Stage name -> source, in order."""
    if len(sources) < 2:
        raise UsageError("A package of stages takes two models or more, in the order they run.")
    out: dict[str, str] = {}
    for given in map(str, sources):
        name, equals, source = given.partition("=")
        if not equals or Path(given).exists():
            name, source = Path(given.partition(":")[0]).stem, given
        if check_name(name) in out:
            raise UsageError(f"Two stages are named '{name}'. Name them yourself: first={out[name]} second={source}")
        out[name] = source
    return out


class _Flow:
    """Which tensors there are, who gives and takes them, and their sample values."""

    def __init__(self, names: Sequence[str], links: Sequence[Link]) -> None:
        self.names = tuple(names)
        self.links = {(link.stage, link.input): link.tensor for link in links}
        for link in links:
            if link.stage not in names:
                raise UsageError(f"--link names stage '{link.stage}'; stages are {', '.join(names)}.")
        self.inputs: dict[str, TensorSpec] = {}
        self.given: dict[str, tuple[str, TensorSpec]] = {}
        self.taken: dict[str, set[str]] = {}
        self.carried: set[str] = set()
        self.values: Tensors = {}
        self.specs: dict[str, tuple[TensorSpec, tuple[TensorSpec, ...]]] = {}
        self.source = "synthetic"

    def tensor_for(self, stage: str, name: str) -> str:
        """The tensor that an input takes: the linked one, else the one of its name. Raises UsageError."""
        wanted = self.links.get((stage, name))
        if wanted is None:
            return name
        owner, _, own = wanted.partition(".")
        if wanted not in self.given and owner in self.names and own in self.given and self.given[own][0] == owner:
            wanted = own
        if wanted not in self.given and wanted not in self.inputs:
            known = ", ".join((*self.inputs, *self.given)) or "none yet"
            raise UsageError(f"--link {stage}.{name}={wanted}: no stage before '{stage}' gives it; there is {known}.")
        return wanted

    def add(self, name: str, package: Package) -> Stage:
        """Join an exported stage to those before it, run it on their sample values, and keep what it gives."""
        manifest = package.manifest
        known = [t.name for t in manifest.inputs]
        for stage, own in self.links:
            if stage == name and own not in known:
                raise UsageError(f"--link names input '{own}' of stage '{name}'; it has {', '.join(known)}.")
        taken = {t.name: self.tensor_for(name, t.name) for t in manifest.inputs}
        own_samples = package.samples()
        for spec in manifest.input_specs:
            tensor = taken[spec.name]
            if not self.fits(name, spec, tensor):
                self.inputs[tensor] = TensorSpec(tensor, spec.dtype, spec.shape)
                self.values[tensor] = own_samples.inputs[spec.name]
                self.specs[tensor] = (spec, manifest.input_specs)
                self.source = own_samples.source if name == self.names[0] else self.source
            self.taken.setdefault(tensor, set()).add(name)
        given = {t.name: self._free_name(name, t.name) for t in manifest.outputs}
        count = min(self._count(tensor) for tensor in taken.values())
        feed = {own: self.rows(tensor, count) for own, tensor in taken.items()}
        with OrtSession(package.model_file(package.reference), variant=name) as session:
            found = run_in_batches(session.run, feed, inputs=session.inputs, outputs=session.outputs)
        for spec in manifest.output_specs:
            tensor = given[spec.name]
            self.given[tensor] = (name, TensorSpec(tensor, spec.dtype, spec.shape))
            self.values[tensor] = found[spec.name]
            self.specs[tensor] = (spec, manifest.input_specs)
        self.carried |= {given[own] for own in manifest.states.values()}
        return Stage(name=name, package=f"{name}.edge", reference=package.reference.sha256, inputs=taken, outputs=given)

    def fits(self, stage: str, spec: TensorSpec, tensor: str) -> bool:
        """Whether `tensor` is there already. Raises ModelError if it is not what input `spec` of `stage` takes."""
        who, given = self.given.get(tensor) or ("", self.inputs.get(tensor))
        if given is None:
            return False
        same = given.dtype == spec.dtype and len(given.shape) == len(spec.shape)
        if same and all(a == b for a, b in zip(given.shape, spec.shape) if isinstance(a, int) and isinstance(b, int)):
            return True
        source = f"stage '{who}' gives" if who else "the package takes"
        last = next(reversed(self.given), "TENSOR")
        raise ModelError(
            f"Stage '{stage}' takes {spec}, but {source} {given}. Export the two for one type and shape, or join "
            f"it to another tensor, for example: --link {stage}.{spec.name}={last}"
        )

    def _free_name(self, stage: str, name: str) -> str:
        return f"{stage}.{name}" if name in self.given or name in self.inputs else name

    def check(self) -> None:
        """Raise UsageError if a stage stands alone: it takes nothing of another stage and gives nothing to one."""
        for i, name in enumerate(self.names):
            own = [t for t, (stage, _) in self.given.items() if stage == name]
            takes = [t for t, (stage, _) in self.given.items() if name in self.taken.get(t, ())]
            if takes or any(self.taken.get(t) for t in own):
                continue
            giver, taker = (name, self.names[i + 1]) if i == 0 else (self.names[i - 1], name)
            tensor = next(t for t, (stage, _) in self.given.items() if stage == giver)
            wants = next((t for t, who in self.taken.items() if taker in who), "INPUT")
            raise UsageError(
                f"Stage '{name}' has no tensor in common with another stage: it gives {', '.join(own)}. Tensors flow "
                f"by name; join two names with, for example: --link {taker}.{wants}={tensor}"
            )

    def outputs(self) -> list[TensorSpec]:
        """What no later stage takes, or the caller carries as a state: the outputs of the whole."""
        free = [tensor for tensor in self.given if not self.taken.get(tensor) or tensor in self.carried]
        return [self.given[tensor][1] for tensor in free]

    def count(self) -> int:
        """Samples that every tensor has values for."""
        return min(self._count(t) for t in self.values)

    def _count(self, tensor: str) -> int:
        spec, like = self.specs[tensor]
        axis = batch_axis(spec, like)
        if axis is None:  # shared by all samples
            return _ROWS
        size, block = int(self.values[tensor].shape[axis]), spec.shape[axis]
        return size if isinstance(block, str) else size // max(1, block)

    def rows(self, tensor: str, count: int) -> Array:
        """The first `count` samples of a tensor."""
        spec, like = self.specs[tensor]
        return take_samples({spec.name: self.values[tensor]}, (spec,), 0, count, like)[spec.name]


def _known_inputs(
    name: str, source: str, flow: _Flow, samples: Path | None, preprocess: Mapping[str, Preprocess]
) -> Tensors | None:
    """Values of every input of an .onnx stage, from the samples given and the stages before; None if some are missing.

    A recipe has samples of its own.
    """
    path = Path(source)
    if path.suffix != ".onnx" or not path.is_file():
        return None
    specs = model_specs(load_model(path))[0]
    out: Tensors = {}
    for spec in specs:
        tensor = flow.tensor_for(name, spec.name)
        if flow.fits(name, spec, tensor):
            out[spec.name] = flow.values[tensor]
    rest = [s for s in specs if s.name not in out]
    if rest and samples is not None:
        found = arrays_from_path(samples, rest, preprocess, _ROWS)
        out.update({s.name: found[s.name] for s in rest if s.name in found})
    return out if all(s.name in out for s in specs) else None


def _keep_samples(stage: Stage, package: Package, flow: _Flow, count: int) -> None:
    """Give a stage the samples that flow through it in place of its own."""
    with package.edit() as writer:
        inputs = {own: flow.rows(tensor, count) for own, tensor in stage.inputs.items()}
        writer.write_samples(inputs, {own: flow.rows(tensor, count) for own, tensor in stage.outputs.items()})
        kept = SampleSet(count=count, source=flow.source)
        writer.commit(msgspec.structs.replace(package.manifest, samples=kept))


def _manifest(
    stages: Sequence[tuple[Stage, Package]],
    flow: _Flow,
    declared: Declared,
    preprocess: Mapping[str, Preprocess],
    default_name: str,
    count: int,
) -> Manifest:
    came = [p.manifest.provenance for _, p in stages]
    first = stages[0][1].manifest
    return Manifest(
        schema=SCHEMA,
        name=check_name(declared.name or default_name),
        version="1",
        inputs=tuple(Tensor.of(s) for s in flow.inputs.values()),
        outputs=tuple(Tensor.of(s) for s in flow.outputs()),
        variants=(),
        provenance=Provenance(
            tool=f"edgekit {__version__}",
            source=", ".join(c.source for c in came),
            source_sha256=hashlib.sha256("".join(c.source_sha256 for c in came).encode()).hexdigest(),
            framework=", ".join(dict.fromkeys(c.framework for c in came)),
            opset=max(c.opset for c in came),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        ),
        task=declared.task or ("classification" if declared.labels is not None else ""),
        preprocess=dict(preprocess) or {k: v for k, v in first.preprocess.items() if k in flow.inputs},
        states=_over(stages, lambda m: m.states, whole=True),
        defaults=_over(stages, lambda m: m.defaults, whole=False),
        samples=SampleSet(count=count, source=flow.source),
        stages=tuple(stage for stage, _ in stages),
    )


def _over(
    stages: Sequence[tuple[Stage, Package]], of: Callable[[Manifest], Mapping[str, Any]], *, whole: bool
) -> dict[str, Any]:
    """A mapping of the stages' inputs as one of the package's inputs; with `whole` its values are outputs."""
    return {
        stage.inputs[name]: stage.outputs[value] if whole else value
        for stage, package in stages
        for name, value in of(package.manifest).items()
    }
