"""The kernels of plugins_trt on this machine's GPU, beside PyTorch's own ways to the same result and the GPU's limit.

    python -m benchmarks.plugins [OPERATOR ...] [--seconds 0.3] [--json OUT.json]
    python -m benchmarks.plugins --list          what would be measured, with bytes and FLOPs; needs no GPU

Each way is timed by CUDA events around batches of calls of at least a millisecond, caches warm, and the median of the
batches counts. "Graph" is one call captured in a CUDA graph and replayed, so that launching costs as little as inside
an engine; our kernel is always timed so, once for each tactic, and the best counts, as TensorRT's tuner has it. The
limit is the larger of bytes over the copy bandwidth that is measured first, and FLOPs over the rate of a large FP16
matrix product. An operator's cases are in benchmarks/plugin_cases/NAME.py. Exits 2 without a GPU, 1 where something
asked for is missed or a kernel is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plugin_cases.case import Case, Kernel, Way
from plugins_trt.compile import compiled_kernel
from plugins_trt.operator import Call, Cost, Operator
from plugins_trt.quick import ptx_target

MODULES = ("decode_nms", "letterbox_normalize", "lstm", "roi_align")
"""The modules of benchmarks/plugin_cases; each has a function `cases() -> list[Case]`."""

BATCH_S = 1e-3


ERROR_LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Of the largest difference over the largest value: above, the kernel is wrong and its time means nothing."""


@dataclass(frozen=True)
class Limits:
    """What the machine was measured to do."""

    bytes_per_s: float
    flops_per_s: float

    def time_s(self, cost: Cost) -> float:
        """No kernel is quicker than this, unless its data is in a cache."""
        return max(cost.bytes / self.bytes_per_s, cost.flops / self.flops_per_s)


@dataclass(frozen=True)
class Figures:
    """What was measured for one case, in seconds. A rival without a time has a reason instead."""

    operator: str
    label: str
    limit_s: float
    ours_s: float
    tactic: int
    relative_error: float
    error_limit: float
    rivals_s: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    asked: tuple[str, float] | None = None
    asked_share: float | None = None
    asked_s: float | None = None

    def verdict(self) -> tuple[bool | None, str]:
        """Whether what was asked for is met (None: nothing was asked, or it could not be measured), and in words."""
        if not self.relative_error <= self.error_limit:
            return False, f"the kernel is wrong: its error is {self.relative_error:.1e}, not {self.error_limit:.0e}"
        found: list[tuple[bool | None, str]] = []
        if self.asked is not None:
            name, factor = self.asked
            other = self.rivals_s.get(name)
            if other is None:
                found.append((None, f"asked for {factor:g} x {name}, which was not measured"))
            else:
                ratio = other / self.ours_s
                found.append((ratio >= factor, f"{ratio:.2f} x {name}; asked for {factor:g} x"))
        if self.asked_share is not None:
            share = self.limit_s / self.ours_s
            found.append((share >= self.asked_share, f"{share:.0%} of the limit; asked for {self.asked_share:.0%}"))
        if self.asked_s is not None:
            words = f"{self.ours_s * 1e6:.1f} us; asked for {self.asked_s * 1e6:g} us"
            found.append((self.ours_s <= self.asked_s, words))
        verdicts = [met for met, _ in found]
        met = None if not found or (None in verdicts and False not in verdicts) else all(verdicts)
        return met, ". ".join(words for _, words in found) or "nothing asked for"


def table(figures: Sequence[Figures]) -> str:
    """The figures for people, 80 columns."""
    lines = []
    for found in figures:
        met, words = found.verdict()
        mark = {True: "met", False: "MISSED", None: "-"}[met]
        lines.append(f"{found.operator}: {found.label}")
        lines.append(_line(f"kernel, tactic {found.tactic}", found.ours_s, f"error {found.relative_error:.1e}"))
        for name, time_s in found.rivals_s.items():
            note = found.reasons.get(name, "")[:28] if time_s is None else f"{time_s / found.ours_s:.2f} x ours"
            lines.append(_line(name, time_s, note))
        lines.append(_line("limit", found.limit_s, f"{found.limit_s / found.ours_s:.0%} of it reached"))
        lines.append(f"  {mark}: {words}")
    return "\n".join(lines)


def _line(name: str, time_s: float | None, note: str) -> str:
    figure = "-" if time_s is None else f"{time_s * 1e6:.1f}"
    return f"  {name:<36}{figure:>9} us  {note}".rstrip()


def listing(cases: Sequence[Case]) -> str:
    """What would be measured."""
    lines = [f"{'operator':<25}{'case':<37}{'MB':>8}{'MFLOP':>10}"]
    for case in cases:
        lines.append(
            f"{case.operator.name:<25}{case.label[:36]:<37}{case.cost.bytes / 1e6:>8.2f}{case.cost.flops / 1e6:>10.1f}"
        )
    return "\n".join(lines)


def error_of(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    """The largest difference over the largest value, of the output where that is worst; infinite with a NaN."""
    worst = 0.0
    for mine, theirs in zip(got, want):
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        scale = float(np.abs(b).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / scale)
    return worst


class Bench:
    """This machine's GPU through PyTorch."""

    def __init__(self, torch: Any, seconds: float) -> None:
        self.torch, self.seconds = torch, seconds
        self.driver: Any = importlib.import_module("cuda.bindings.driver")
        torch.zeros(1, device="cuda")  # makes the context, which the driver's calls below then share
        major, minor = torch.cuda.get_device_capability()
        self.sm = major * 10 + minor
        self.stream = torch.cuda.Stream()

    def tensor(self, array: np.ndarray) -> Any:
        """The array on the GPU."""
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16).cuda()
        return self.torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def array(self, tensor: Any) -> np.ndarray:
        """The tensor as numpy; bfloat16 as float32."""
        if tensor.dtype == self.torch.bfloat16:
            tensor = tensor.float()
        out: np.ndarray = tensor.cpu().numpy()
        return out

    def kernel(self, operator: Operator, call: Call, tactic: int) -> Kernel:
        """The operator's kernel for inputs of the call's types."""
        plan = operator.plan(call, tactic=tactic, sm=self.sm)
        compiled = compiled_kernel(operator, plan, sm=ptx_target(self.sm))
        image = compiled.cubin if compiled.sm == self.sm else compiled.ptx.encode() + b"\0"
        module = self._done(self.driver.cuModuleLoadData(image))
        function = self._done(self.driver.cuModuleGetFunction(module, compiled.entry.encode()))
        shapes = [given.sizes for given in call.inputs]
        size, scalars = (*plan.grid_for(shapes), *plan.block, plan.shared_bytes), plan.scalars_for(shapes)
        made = tuple(
            self.torch.empty(t.sizes, dtype=getattr(self.torch, t.dtype), device="cuda")
            for t in operator.output_types(call)
        )
        pointer, integer = np.uintp, np.int32

        def run(*tensors: Any) -> tuple[Any, ...]:
            assert all(t.is_contiguous() for t in tensors)
            addresses = [np.array(t.data_ptr(), pointer) for t in tensors]
            values = [np.array(value, integer) for value in scalars]
            outputs = [np.array(t.data_ptr(), pointer) for t in made]
            held: list[np.ndarray] = [*addresses, *values, *outputs]
            arguments = np.array([value.ctypes.data for value in held], np.uintp)
            stream = self.torch.cuda.current_stream().cuda_stream
            self._done(self.driver.cuLaunchKernel(function, *size, stream, arguments.ctypes.data, 0))
            return made

        return run

    def time_s(self, way: Way) -> float:
        """Seconds of one call: the median of batches, for `seconds` in all."""
        torch = self.torch
        with torch.cuda.stream(self.stream), torch.inference_mode():
            for _ in range(3):
                way.run()
            self.stream.synchronize()
            run = way.run
            if way.graph:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream):
                    way.run()
                run = graph.replay
            count = 1
            while (spent := self._batch_s(run, count)) < BATCH_S and count < 1 << 16:
                count *= 2
            times, end = [spent / count], time.monotonic() + self.seconds
            while time.monotonic() < end or len(times) < 5:
                times.append(self._batch_s(run, count) / count)
        return statistics.median(times)

    def limits(self) -> Limits:
        """Bandwidth of a copy of 1 GiB, and the rate of an FP16 matrix product of 8192."""
        torch = self.torch
        copied, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
        copy_s = self.time_s(Way(lambda: target.copy_(copied), graph=True))
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
        product_s = self.time_s(Way(lambda: a @ b, graph=True))
        return Limits(bytes_per_s=2 * (1 << 30) / copy_s, flops_per_s=2 * 8192**3 / product_s)

    def measure(self, case: Case, limits: Limits) -> Figures:
        """Every tactic of the kernel and every rival of one case."""
        arrays = case.operator.sample(case.call)
        tensors = [self.tensor(array) for array in arrays]
        want = case.operator.reference(case.call, *arrays)
        times: dict[int, float] = {}
        worst = 0.0
        for tactic in case.operator.tactics(case.call, self.sm):
            kernel = self.kernel(case.operator, case.call, tactic)
            got = [self.array(t) for t in kernel(*tensors)]
            worst = max(worst, error_of(got, want))
            times[tactic] = self.time_s(Way(case.ours(self.torch, kernel, tensors), graph=True))
        best = min(times, key=lambda tactic: times[tactic])
        rivals: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for name, way in case.rivals(self.torch, tensors).items():
            try:
                rivals[name] = self.time_s(way)
            except Exception as error:  # torch.compile and graph capture fail in many ways; the figure is then missing
                rivals[name], reasons[name] = None, (str(error).splitlines() or [type(error).__name__])[0]
        return Figures(
            case.operator.name, case.label, limits.time_s(case.cost), times[best], best, worst,
            ERROR_LIMITS.get(want[0].dtype.name, 1e-2), rivals, reasons, case.asked, case.asked_share,
            case.asked_s,
        )  # fmt: skip

    def _batch_s(self, run: Callable[[], Any], count: int) -> float:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def _done(self, answer: tuple[Any, ...]) -> Any:
        status, *rest = answer
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the CUDA driver says {status.name}")
        return rest[0] if rest else None


def all_cases(names: Sequence[str]) -> list[Case]:
    """The cases of the operators that are named, of all if none is; ValueError for a name that has none."""
    cases = [case for name in MODULES for case in importlib.import_module(f"benchmarks.plugin_cases.{name}").cases()]
    known = sorted({case.operator.name for case in cases})
    for name in names:
        if name not in known:
            raise ValueError(f"there are no cases of '{name}'; there are cases of {', '.join(known)}")
    return [case for case in cases if not names or case.operator.name in names]


def measured(
    torch: Any, cases: Sequence[Case], seconds: float, *, show: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The figures of `cases` as a JSON document, and in words what was missed; `show` prints them as they come."""
    bench = Bench(torch, seconds)
    limits = bench.limits()
    name = torch.cuda.get_device_name()
    if show:
        rates = f"{limits.bytes_per_s / 1e9:.0f} GB/s (copy), {limits.flops_per_s / 1e12:.1f} TFLOP/s (FP16 product)"
        print(f"{name}: {rates}")
    figures = []
    for case in cases:
        figures.append(bench.measure(case, limits))
        if show:
            print(table(figures[-1:]), flush=True)
    missed = [f"{f.operator}, {f.label}: {f.verdict()[1]}" for f in figures if f.verdict()[0] is False]
    document = {"gpu": name, "sm": bench.sm, "torch": torch.__version__, "limits": asdict(limits)}
    return {**document, "figures": [asdict(f) for f in figures]}, missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.plugins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operators", nargs="*", metavar="OPERATOR")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure (default 0.3)")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--list", action="store_true", help="say what would be measured")
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds is {args.seconds:g}; it is more than 0")
    try:
        cases = all_cases(args.operators)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print(listing(cases))
        return 0
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        print("This needs an NVIDIA GPU and a PyTorch built for CUDA; --list needs neither.", file=sys.stderr)
        return 2
    document, missed = measured(torch, cases, args.seconds, show=True)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
