"""models/README.md from the rows that scripts/zoo.py recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models._zoo import GROUPS

HEAD = """# The model zoo

<!-- Made by `make zoo` (scripts/zoo.py) from benchmarks/results/zoo.json: do not edit. -->

Each recipe here is one file that describes one model, and went the whole way by the commands that a user types:
`edgekit export` (compared with PyTorch), `quantize` to FP16 and INT8 within the recipe's tolerance, `verify` by its own
metric, `compile` for two GPU architectures by TensorRT-RTX (FP16), `bench` in ONNX Runtime on one thread, and `serve`,
asked for one sample over HTTP. `make zoo` makes this page again; `_zoo.py` says how to add a recipe.

- **Metric**: on held-out data, the first metric of the recipe; ↓: less is better. Where the weights are random it only
  tells how well a variant agrees with PyTorch, and that mildly: to such a net photographs look alike.
- **INT8**: the variant for CPUs; beside it the points that it may lose. A point is a hundredth of the metric.
- **sm_86, sm_120**: the FP16 engine was built. None of them was run here: that needs those GPUs.
- **ms**: median latency at batch 1. A speed-up below 1.1 means that INT8 does not pay on this machine, and is marked ⚠.
- **Served**: the server's answer to one sample of the package is PyTorch's.
"""
COLUMNS = (
    "recipe", "model", "data", "parameters", "metric", "FP32", "FP16", "INT8", "may lose", "sm_86", "sm_120",
    "FP32 ms", "INT8 ms", "speed-up", "served",
)  # fmt: skip
PAYS = 1.1


def whole(row: Mapping[str, Any]) -> bool:
    """Whether every step of a row went well."""
    steps = row["steps"]
    return all(step["ok"] for step in steps.values()) and "serve" in steps


def readme(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: a table a group, and below it, in the words of what failed, why a row is not whole."""
    parts = [HEAD]
    for group in GROUPS:
        own = {k: r for k, r in rows.items() if r.get("group") == group}
        if not own:
            continue
        parts.append(f"## {group[0].upper()}{group[1:]}\n")
        parts.append("| " + " | ".join(COLUMNS) + " |")
        parts.append("|" + "---|" * len(COLUMNS))
        parts += ["| " + " | ".join(_cells(label, row)) + " |" for label, row in own.items()]
        parts.append("")
        failures = [
            f"- `{label}`, {name}: {step['words']}"
            for label, row in own.items()
            for name, step in row["steps"].items()
            if not step["ok"]
        ]
        if failures:
            parts += ["Not whole:\n", *failures, ""]
    broken = {k: r for k, r in rows.items() if r.get("group") not in GROUPS}
    if broken:
        parts.append("## Not built\n")
        parts += [f"- `{label}`: {row['steps']['build']['words']}" for label, row in broken.items()]
        parts.append("")
    parts.append("## Where this ran\n")
    parts += _places(rows)
    return "\n".join(parts) + "\n"


def _cells(label: str, row: Mapping[str, Any]) -> list[str]:
    steps = row["steps"]
    file = row["recipe"].rpartition("/")[2].partition(":")[0]
    int8 = row.get("int8", {})
    speed = int8.get("speed_up")
    random = row["weights"] == "random"
    return [
        f"[{label}]({file})",
        row["title"] + (" (random weights)" if random else ""),
        row["data"],
        _count(row["parameters"]),
        f"{row.get('metric') or '-'}{'' if row['higher_is_better'] else ' ↓'}",
        _metric(row, "fp32"),
        _metric(row, "fp16"),
        _metric(row, "int8"),
        f"{row['tolerance'].get('int8', 1.0):g}",
        *(_mark(steps, target) for target in ("sm_86", "sm_120")),
        _number(row.get("fp32", {}).get("p50_ms")),
        _number(int8.get("p50_ms")),
        "-" if speed is None else f"{speed:.2f}x{'' if round(speed, 2) >= PAYS else ' ⚠'}",
        _mark(steps, "serve"),
    ]


def _mark(steps: Mapping[str, Any], name: str) -> str:
    if name not in steps:
        return "-"
    return "yes" if steps[name]["ok"] else "**no**"


def _metric(row: Mapping[str, Any], variant: str) -> str:
    value = row.get(variant, {}).get("metric")
    if value is None:
        return "-"
    failed = variant in row["steps"] and not row["steps"][variant]["ok"]
    text = f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"**{text}**" if failed else text


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "-"
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _places(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each machine, date and set of releases that rows were made with."""
    places: dict[str, list[str]] = {}
    for label, row in rows.items():
        made = row["made"]
        text = (
            f"{made['when']}, {made['cpu']}, Python {made['python']}, torch {made['torch']}, "
            f"ONNX Runtime {made['onnxruntime']}, TensorRT-RTX {made['tensorrt-rtx']}"
        )
        places.setdefault(text, []).append(label)
    if len(places) == 1:
        return [f"{next(iter(places))}."]
    return [f"- {text}: {', '.join(labels)}" for text, labels in places.items()]
