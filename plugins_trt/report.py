"""What each kernel takes of each GPU, and what it must move and compute: known without running it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plugins_trt.compile import Resources, compiled_kernel
from plugins_trt.limits import Occupancy, occupancy
from plugins_trt.operator import Call, Cost, KernelPlan, Operator


@dataclass(frozen=True)
class KernelReport:
    """One kernel: for one call, tactic and compute capability."""

    operator: str
    call: Call
    sm: int
    tactic: int
    plan: KernelPlan
    resources: Resources
    occupancy: Occupancy
    cost: Cost

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, static and dynamic."""
        return self.resources.shared_bytes + self.plan.shared_bytes

    @property
    def inputs(self) -> str:
        """The call's inputs, for people."""
        return ", ".join(map(str, self.call.inputs))

    def time_s(self, *, bytes_per_s: float, flops_per_s: float) -> float:
        """The roofline: no GPU with that memory bandwidth and arithmetic rate is quicker than this."""
        return max(self.cost.bytes / bytes_per_s, self.cost.flops / flops_per_s)


def kernel_report(operator: Operator, call: Call, *, sm: int, tactic: int | None = None) -> KernelReport:
    """Compile the kernel (for its first tactic if none is given) and say what it takes.

    Raises:
        UnsupportedCallError: the kernel cannot do this call on this target.
        CompileError, UnsupportedTargetError, MissingLibraryError: see `plugins_trt.compile`.
    """
    chosen = operator.tactics(call, sm)[0] if tactic is None else tactic
    plan = operator.plan(call, tactic=chosen, sm=sm)
    resources = compiled_kernel(operator, plan, sm=sm).resources
    shared = resources.shared_bytes + plan.shared_bytes
    found = occupancy(sm, threads=plan.threads, registers=resources.registers, shared_bytes=shared)
    return KernelReport(operator.name, call, sm, chosen, plan, resources, found, operator.cost(call))


def kernel_reports(
    operators: Iterable[Operator], targets: Iterable[int], *, every_tactic: bool = False
) -> list[KernelReport]:
    """The main example of each operator on each target; every tactic of it, or the first."""
    targets = tuple(targets)
    out = []
    for operator in operators:
        call = operator.examples()[0]
        for sm in targets:
            tactics = operator.tactics(call, sm)
            out += [kernel_report(operator, call, sm=sm, tactic=t) for t in (tactics if every_tactic else tactics[:1])]
    return out
