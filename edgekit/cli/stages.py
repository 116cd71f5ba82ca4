"""How a package of stages is shown to people; used by `edgekit export` and `edgekit inspect`."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.cli.output import bytes_text, print_table, print_text
from edgekit.package import Package


def print_stages(package: Package) -> None:
    """A row a stage: what it takes and gives, how far it is from its original, and its variants."""
    rows = []
    for stage, own in package.stages():
        worst = max((p.max_rel for p in own.manifest.provenance.parity), default=None)
        variants = ", ".join(f"{v.id} {bytes_text(v.bytes)}" for v in own.manifest.variants)
        error = None if worst is None else f"{worst:.2e}"
        rows.append((stage.package, _tensors(stage.inputs), _tensors(stage.outputs), error, variants))
    print_table(("stage", "takes", "gives", "max rel error>", "variants"), rows)
    manifest = package.manifest
    ends = ", ".join(str(s) for s in manifest.input_specs), ", ".join(str(s) for s in manifest.output_specs)
    print_text(f"{ends[0]} -> {ends[1]}")
    first = package.stages()[0][0].package
    print_text(f"Each stage is a package: edgekit quantize {package.path.name}/{first} --precision fp16")


def _tensors(names: Mapping[str, str]) -> str:
    return ", ".join(tensor if own == tensor else f"{own} = {tensor}" for own, tensor in names.items())
