"""How a compiled engine is shown to people; used by `edgekit inspect`."""

from __future__ import annotations

from edgekit.cli.output import print_table, print_text
from edgekit.engine.inspect import EngineLayer, EngineSummary
from edgekit.inspect import EngineInspection


def print_engine(engine: EngineInspection, *, layers: bool) -> None:
    """The counts of an engine, what they mean, and with `layers` a table of all of them."""
    s, how = engine.summary, engine.settings
    print_text(f"\nengine of {engine.variant}: from '{how.get('source')}', {how.get('module')} {how.get('version')}")
    for i, profile in enumerate(_profiles(how.get("profiles"))):
        print_text(f"profile {i}: {profile}")
    print_text(f"{s.layers} layers that compute: {_counts(s.precisions)}; {s.reformats} only change type or layout")
    if s.products:
        print_text(
            f"products (Conv, Gemm, MatMul) run in: {_counts(s.products)}; the graph asks for: {_counts(s.intended)}"
        )
    for text in remarks(s):
        print_text(f"note: {text}")
    if layers:
        print_text("")
        columns = ["layer", "kind", "runs in", "writes", "layout", "from the nodes"]
        print_table(columns, [_row(x) for x in engine.layers if x.precision])


def remarks(summary: EngineSummary) -> list[str]:
    """What a reader should know: products in another precision than asked for, and INT8 that may not pay."""
    out = []
    wrong = summary.mismatches
    if wrong:
        names = ", ".join(f"{m.node} ({m.actual}, not {m.intended})" for m in wrong[:4])
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        out.append(f"{len(wrong)} products do not run in what the graph asks for: {names}{more}")
        if sum(m.intended == "int8" for m in wrong) * 2 > summary.intended.get("int8", 0):
            out.append("most INT8 products run in float: the FP16 engine is likely better; bench both")
    int8 = summary.products.get("int8", 0)
    if int8 and len(summary.float_outputs) * 2 > int8:
        out.append(
            f"{len(summary.float_outputs)} of {int8} INT8 products write FP32, which is quantized again by the layer "
            "behind them: bench this engine against the FP16 one before choosing it"
        )
    return out


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {p}" for p, n in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"


def _profiles(found: object) -> list[str]:
    out = []
    for profile in found if isinstance(found, list) else []:
        parts = [
            f"{name} " + " .. ".join("x".join(map(str, r[k])) or "scalar" for k in ("min", "opt", "max"))
            for name, r in profile.items()
        ]
        out.append(", ".join(parts))
    return out


def _row(layer: EngineLayer) -> list[object]:
    first = layer.outputs[0] if layer.outputs else None
    kind = f"{layer.kind} (reformat)" if layer.reformat else layer.kind
    writes = None if first is None else first.dtype
    return [layer.name, kind, layer.precision, writes, None if first is None else first.format, ", ".join(layer.nodes)]
