"""The CUDA plugins for TensorRT: what there is, and what each takes of each GPU, without running it.

  edgekit plugins list
  edgekit plugins report                                   every operator, one GPU of each generation
  edgekit plugins report lstm --target orin-nx --tactics   one operator, one board, every variant of its kernel

report compiles each kernel. occupancy: the share of a multiprocessor's warps that can be resident, and what stops
more. at best: the roofline, the time that memory bandwidth and FP32 units alone allow, by the data sheet; nothing is
measured. It exits with 1 if a kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekit.cli.output import bytes_text, note, percent_text, print_json, print_table, print_text, progress
from edgekit.errors import BackendError, EdgekitError, MissingDependencyError, UsageError
from edgekit.targets import Target, target_of

if TYPE_CHECKING:
    from plugins_trt.operator import Operator
    from plugins_trt.report import KernelReport

OWN = "plugins_trt"
"""The package of edgekit's own operators."""

TARGETS = ("t4", "a100", "orin-nx", "rtx-4090", "h100", "b200", "thor-t5000", "rtx-5090")
"""One GPU of each generation that kernels are compiled for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit plugins`."""
    parser.add_argument("action", choices=("list", "report"), help="name the operators, or report on their kernels")
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="operators to report on (default: all)")
    parser.add_argument(
        "--target", action="append", metavar="NAME", help="a board, card or sm_87; repeat for several (default: eight)"
    )
    parser.add_argument("--tactics", action="store_true", help="every variant of a kernel, not the first alone")


def run(args: argparse.Namespace) -> int:
    """List or report; 1 if a kernel spills registers."""
    with _errors():
        chosen = _operators(args.operators)
        if args.action == "list":
            return _list(chosen, as_json=args.json)
        machines = [target_of(name) for name in args.target or TARGETS]
        return _report(chosen, machines, tactics=args.tactics, as_json=args.json)


def _operators(names: list[str]) -> list[Operator]:
    from plugins_trt.registry import operator, operators

    return [operator(name) for name in names] if names else list(operators().values())


def _list(chosen: list[Operator], *, as_json: bool) -> int:
    if as_json:
        print_json([_operator_document(op) for op in chosen])
        return 0
    for op in chosen:
        origin = _package(op)
        print_text(f"{op.name}: {op.summary}{'' if origin == OWN else f' (from {origin})'}")
        print_text(f"  {', '.join(port.name for port in op.inputs)} -> {', '.join(op.outputs)}")
        for attribute in op.attributes:
            default = "needed" if attribute.default is None else f"default {attribute.default}"
            print_text(f"  {attribute.name} ({attribute.kind}, {default}): {attribute.doc}")
    return 0


def _package(op: Operator) -> str:
    """The package that an operator comes from: ours, or one with an entry point in `edgekit.plugins`."""
    return type(op).__module__.partition(".")[0]


def _operator_document(op: Operator) -> dict[str, Any]:
    attributes = [{"name": a.name, "kind": a.kind, "default": a.default, "doc": a.doc} for a in op.attributes]
    return {
        "name": op.name,
        "summary": op.summary,
        "package": _package(op),
        "inputs": [port.name for port in op.inputs],
        "outputs": list(op.outputs),
        "attributes": attributes,
        "source": op.source_path.name,
        "sha256": op.digest(),
    }


def _report(chosen: list[Operator], machines: list[Target], *, tactics: bool, as_json: bool) -> int:
    from plugins_trt.errors import UnsupportedCallError
    from plugins_trt.report import kernel_report

    rows: list[tuple[Target, KernelReport]] = []
    refused: list[dict[str, str]] = []
    with progress("compiling kernels", len(chosen) * len(machines)) as advance:
        for op in chosen:
            call = op.examples()[0]
            for machine in machines:
                try:
                    every = op.tactics(call, machine.sm)
                    found = [
                        kernel_report(op, call, sm=machine.sm, tactic=t) for t in (every if tactics else every[:1])
                    ]
                    rows += [(machine, report) for report in found]
                except UnsupportedCallError as error:
                    refused.append({"operator": op.name, "target": machine.name, "reason": str(error)})
                advance()
    spilling = [(machine, report) for machine, report in rows if report.resources.spills]
    if as_json:
        print_json({"kernels": [_document(*row) for row in rows], "refused": refused})
    else:
        for op in chosen:
            _print_operator(op, [row for row in rows if row[1].operator == op.name], tactics=tactics)
        for one in refused:
            print_text(f"{one['target']}: {one['reason']}")
    for machine, report in spilling:
        note(f"{report.operator} (tactic {report.tactic}) spills registers to memory on {machine.name}.")
    return 1 if spilling else 0


def _print_operator(op: Operator, rows: list[tuple[Target, KernelReport]], *, tactics: bool) -> None:
    if not rows:
        return
    cost = rows[0][1].cost
    print_text(
        f"{op.name}: {rows[0][1].inputs}\n  moves {bytes_text(cost.bytes)}, computes {cost.flops / 1e6:.4g} MFLOP: "
        f"{cost.flops_per_byte:.2f} FLOP/B"
    )
    columns = ["target", "sm", "regs>", "shared>", "spills>", "occupancy>", "limited by", "at best>"]
    table = [_row(machine, report) for machine, report in rows]
    if tactics:
        columns.insert(2, "tactic>")
        for row, (_, report) in zip(table, rows):
            row.insert(2, report.tactic)
    print_table(columns, table)
    print_text("")


def _row(machine: Target, report: KernelReport) -> list[object]:
    bound = _bound_s(machine, report)
    resources = report.resources
    return [
        machine.name,
        machine.sm,
        resources.registers,
        bytes_text(report.shared_bytes),
        bytes_text(resources.spill_store_bytes + resources.spill_load_bytes) if resources.spills else "none",
        percent_text(report.occupancy.fraction).replace(".00", ""),
        ", ".join(report.occupancy.limited_by),
        None if bound is None else f"{bound * 1e6:.2f} us",
    ]


def _bound_s(machine: Target, report: KernelReport) -> float | None:
    """The roofline on this machine, or None for one without a data sheet."""
    from plugins_trt.limits import fp32_flops_per_s

    if machine.bandwidth_gb_s is None or machine.multiprocessors is None or machine.clock_mhz is None:
        return None
    rate = fp32_flops_per_s(machine.sm, multiprocessors=machine.multiprocessors, clock_hz=machine.clock_mhz * 1e6)
    return report.time_s(bytes_per_s=machine.bandwidth_gb_s * 1e9, flops_per_s=rate)


def _document(machine: Target, report: KernelReport) -> dict[str, Any]:
    resources, cost = report.resources, report.cost
    return {
        "operator": report.operator,
        "inputs": [str(given) for given in report.call.inputs],
        "target": machine.name,
        "sm": machine.sm,
        "tactic": report.tactic,
        "threads": report.plan.threads,
        "registers": resources.registers,
        "shared_bytes": report.shared_bytes,
        "spill_store_bytes": resources.spill_store_bytes,
        "spill_load_bytes": resources.spill_load_bytes,
        "occupancy": report.occupancy.fraction,
        "limited_by": list(report.occupancy.limited_by),
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "flops": cost.flops,
        "flops_per_byte": cost.flops_per_byte,
        "roofline_s": _bound_s(machine, report),
    }


@contextmanager
def _errors() -> Iterator[None]:
    """The plugins' errors as edgekit's."""
    from plugins_trt import errors

    kinds: tuple[tuple[type[errors.PluginError], type[EdgekitError]], ...] = (
        (errors.MissingLibraryError, MissingDependencyError),
        (errors.CompileError, BackendError),
        (errors.PluginError, UsageError),
    )
    try:
        yield
    except errors.PluginError as error:
        kind = next(ours for theirs, ours in kinds if isinstance(error, theirs))
        raise kind(str(error)) from error
