"""How the outlook of a package on targets is shown to people; used by `edgekit compile --plan`."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.cli.output import print_table, print_text
from edgekit.engine.plan import Outlook
from edgekit.engine.plugins import PluginOutlook


def print_plan(outlooks: Sequence[Outlook], failing: Sequence[str], *, package: str) -> None:
    """A row a target, JetPack and variant, then every problem and note once, with whom it concerns."""
    columns = ["target", "JetPack", "builder", "variant", "verdict", "memory>", "bound>"]
    print_table(columns, [_row(o) for o in outlooks])
    print_text("memory: estimated at the largest shapes. bound: one sample is never faster, by the data sheet.")
    for title, attribute in (("breaks", "problems"), ("note", "notes")):
        for text, whom in _once(outlooks, attribute).items():
            print_text(f"{title}: {text} [{_whom(whom, len(outlooks))}]")
    for text, whom in _plugins(outlooks).items():
        print_text(f"{text} [{_whom(whom, len(outlooks))}]")
    for text, whom in _once([o for o in outlooks if o.verdict != "breaks"], "portability").items():
        names = dict.fromkeys(o.target for o in whom)
        print_text(f"engines for {', '.join(names)} run on {text}")
    if any(o.parsed for o in outlooks):
        print_text("TensorRT-RTX is installed: its own parser was asked as well.")
    if failing:
        print_text(f"Does not work: {', '.join(failing)}.")
        return
    one = outlooks[0]
    place = "" if one.module == "tensorrt-rtx" else " on the device"
    name = one.target if one.module == "tensorrt-rtx" else "this"
    print_text(f"Compile{place} with: edgekit compile {package} --target {name}")


def _plugins(outlooks: Sequence[Outlook]) -> dict[str, list[Outlook]]:
    """A line for each operator of the plugins and what becomes of its layers, with whom it concerns."""
    out: dict[str, list[Outlook]] = {}
    for o in outlooks:
        groups: dict[tuple[str, str, str], list[PluginOutlook]] = {}
        for layer in o.plugins:
            groups.setdefault((layer.operator, layer.how, layer.why), []).append(layer)
        for (operator, how, why), layers in groups.items():
            names = [layer.node for layer in layers if layer.node]
            shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            title = {"plugin": "plugin", "function body": "function body", "as it is": "no plugin"}[how]
            text = f"{title}: {operator}{f' for {shown}' if shown else ''}{f': {why}' if why else ''}"
            out.setdefault(text, []).append(o)
    return out


def _row(o: Outlook) -> list[object]:
    builder = f"{'TensorRT-RTX' if o.module == 'tensorrt-rtx' else 'TensorRT'} {o.release}"
    memory = None if o.memory_gb is None else f"{o.memory_gb:.1f} GB"
    if memory and o.have_gb is not None:
        memory = f"{o.memory_gb:.1f} of {o.have_gb:g} GB"
    bound = None if o.bound_ms is None else f"{o.bound_ms:.2g} ms" if o.bound_ms >= 0.01 else "<0.01 ms"
    return [o.target, o.jetpack or None, builder, o.variant, o.verdict, memory, bound]


def _once(outlooks: Sequence[Outlook], attribute: str) -> dict[str, list[Outlook]]:
    out: dict[str, list[Outlook]] = {}
    for o in outlooks:
        value = getattr(o, attribute)
        for text in (value,) if isinstance(value, str) else value:
            out.setdefault(text.rstrip("."), []).append(o)
    return out


def _whom(outlooks: Sequence[Outlook], total: int) -> str:
    if len(outlooks) == total:
        return "all"
    names = list(dict.fromkeys(f"{o.target}" + (f" JetPack {o.jetpack}" if o.jetpack else "") for o in outlooks))
    variants = list(dict.fromkeys(o.variant for o in outlooks))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}: {', '.join(variants)}"
