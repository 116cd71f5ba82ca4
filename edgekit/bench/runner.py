"""The benchmark itself: open the variants, let them take turns, put the figures together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from edgekit import __version__
from edgekit.bench.correct import correctness_of, with_correct
from edgekit.bench.inputs import Inputs, bench_inputs
from edgekit.bench.joules import joules_of
from edgekit.bench.measure import Contender, WarmUp, interleaved, warm_up
from edgekit.bench.report import BatchPoint, BenchReport, Correctness, Joules, Machine, Trial, VariantBench
from edgekit.bench.stats import FEWEST, latency_of, speedup_of
from edgekit.errors import BackendError, UsageError
from edgekit.gpu import this_gpu
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.recipe import ModelSpec
from edgekit.runtime.ort import physical_cores
from edgekit.runtime.placed import open_placed
from edgekit.runtime.select import not_runnable, open_session, runnable
from edgekit.runtime.session import Session
from edgekit.runtime.whole import BEST, whole_variants
from edgekit.telemetry import Found, find_sensors
from edgekit.telemetry.machine import cpu, system
from edgekit.telemetry.power_mode import read_power_modes

SWEEP = (1, 2, 4, 8, 16, 32, 64)
FEW_CALLS = 100
ENERGY_TRIALS = 5
FEW_INFERENCES = 32
"""Below this the energy of an inference may be off by more than is said (Yang et al., SC'24)."""
_SWEEP_ROUNDS = 2


def bench(
    package: Package,
    *,
    variants: Sequence[str] | None = None,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 3.0,
    sweep: Sequence[int] = SWEEP,
    sizes: Mapping[str, int] | None = None,
    trials: int | None = None,
    energy: bool = False,
    recipe: ModelSpec | None = None,
    metric_samples: int = 2000,
    sensors: Found | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> BenchReport:
    """Measure latency at `batch`, throughput over `sweep`, and energy, of every variant that this machine can run.

    `seconds` is spent on each variant for latency and about as much for throughput. `threads` None means one a
    physical core, `sensors` None those of this machine, `device` None the best for each variant, `trials` None as many
    rounds as the time allows. With `energy` several longer windows are measured, idle before them, and the energy of a
    right prediction, the share of which is measured with `recipe` (on up to `metric_samples` samples) or taken from the
    manifest. `say` hears what is being done. The package is only read. A package of stages is measured as a whole, in
    every form that all stages have and with the best variant of each.

    Raises:
        UsageError: an unknown variant, nothing to run, or numbers that make no sense.
        IntegrityError: a file of the package changed.
        BackendError: a variant cannot run its inputs.
    """
    _check_numbers(batch=batch, threads=threads, seconds=seconds, sweep=sweep, trials=trials)
    inputs = bench_inputs(package, sizes)
    if not inputs.dynamic and batch != 1:
        raise UsageError(f"'{package.path.name}' has a fixed batch; it cannot be measured at batch {batch}.")
    chosen, skipped = _selected(package, variants, device)
    first = chosen[0].id if package.stage_names else package.reference.id
    used_threads = threads or physical_cores()
    with ExitStack() as stack:
        contenders = []
        for variant in chosen:
            session = stack.enter_context(_opened(package, variant.id, used_threads, device))
            contenders.append(Contender(variant.id, session, inputs.feeds(batch)))
        say(f"warm-up: {', '.join(v.id for v in chosen)}")
        warm = [warm_up(c, limit_s=max(0.2, seconds / 2)) for c in contenders]
        say(f"latency at batch {batch}, variants in turns")
        rounds = interleaved(contenders, seconds=seconds, rounds=trials)
        swept, notes = _sweep(contenders, inputs, sweep if inputs.dynamic else (1,), seconds=seconds, say=say)
        found = find_sensors() if sensors is None else sensors
        windows = (trials or ENERGY_TRIALS) if energy else 1
        joules = joules_of(contenders, found, seconds=seconds, trials=windows, idle=energy, say=say)
        correct: list[Correctness | str | None] = [None] * len(chosen)
        if energy:
            correct = [_correct(package, v, c, recipe, metric_samples, say) for v, c in zip(chosen, contenders)]
            joules = [
                (_per_correct(j, right, contenders[i]), reason)
                for i, ((j, reason), right) in enumerate(zip(joules, correct))
            ]
    reference = next((i for i, v in enumerate(chosen) if v.id == first), 0)
    results = tuple(
        VariantBench(
            id=variant.id,
            precision=variant.precision,
            bytes=variant.bytes,
            device=contenders[i].session.device,
            latency=latency_of([x for part in rounds[i] for x in part]),
            speedup=speedup_of(rounds[reference], rounds[i]),
            warmup_calls=warm[i].calls,
            steady=warm[i].steady,
            throughput=max(swept[i], key=lambda p: p.samples_per_s),
            sweep=tuple(swept[i]),
            energy=joules[i][0],
            energy_reason=joules[i][1] or None,
            correct=right if isinstance(right := correct[i], Correctness) else None,
            correct_reason=right if isinstance(right, str) else None,
            trials=tuple(_trial(part, batch) for part in rounds[i]),
        )
        for i, variant in enumerate(chosen)
    )
    return BenchReport(
        edgekit=__version__,
        package=package.path.name,
        package_digest=package.manifest.digest,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=this_machine(),
        batch=batch,
        threads=used_threads,
        inputs=inputs.source,
        real_inputs=inputs.real,
        reference=chosen[reference].id,
        variants=results,
        skipped=skipped,
        notes=(*_notes(results, inputs, warm), *notes),
    )


def _check_numbers(
    *, batch: int, threads: int | None, seconds: float, sweep: Sequence[int], trials: int | None
) -> None:
    if batch < 1 or any(b < 1 for b in sweep) or not sweep:
        raise UsageError("Batch sizes must be 1 or more.")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be 1 or more, got {threads}.")
    if trials is not None and trials < 1:
        raise UsageError(f"--trials must be 1 or more, got {trials}.")
    if not 0 < seconds < 1e5:
        raise UsageError(f"--seconds must be positive, got {seconds:g}.")


def _selected(
    package: Package, wanted: Sequence[str] | None, device: str | None
) -> tuple[list[Variant], dict[str, str]]:
    """The variants to measure, each once, and why others are left out."""
    if package.stage_names:
        return whole_variants(package, wanted, device), {}
    if wanted:
        return [package.variant(v) for v in dict.fromkeys(wanted)], {}
    able = list(runnable(package, device=device))
    if not able:
        raise UsageError(f"'{package.path.name}' has no variant that this machine can run. Export an ONNX variant.")
    skipped = not_runnable(package, device=device)
    return able, skipped


def _opened(package: Package, variant: str, threads: int, device: str | None) -> Session:
    if package.stage_names:
        name = None if variant == BEST else variant
        return open_placed(package, variant=name, threads=threads, devices=(device,) if device else ()).session
    return open_session(package, variant=variant, threads=threads, device=device)


def _sweep(
    contenders: Sequence[Contender],
    inputs: Inputs,
    sizes: Sequence[int],
    *,
    seconds: float,
    say: Callable[[str], None],
) -> tuple[list[list[BatchPoint]], list[str]]:
    """Throughput of each contender at each batch size, and what kept one from being measured."""
    points: list[list[BatchPoint]] = [[] for _ in contenders]
    notes: list[str] = []
    slice_s = seconds / len(sizes) / _SWEEP_ROUNDS
    running = list(range(len(contenders)))
    for size in sorted(set(sizes)):
        if not running:
            break
        say(f"throughput at batch {size}")
        feeds = inputs.feeds(size)
        taken: dict[int, list[float]] = {i: [] for i in running}
        for number in range(_SWEEP_ROUNDS):
            for i in running if number % 2 == 0 else reversed(running):
                contender = Contender(contenders[i].variant, contenders[i].session, feeds)
                try:
                    contender.call()
                    taken[i] += contender.slice(slice_s)
                except BackendError as error:
                    if not points[i]:
                        raise
                    taken.pop(i)
                    notes.append(f"{contender.variant}: batch {size} failed ({error})")
        for i, values in taken.items():
            rate = (size if inputs.dynamic else 1) * len(values) / sum(values)
            points[i].append(
                BatchPoint(batch=size, samples_per_s=rate, p50_s=latency_of(values).p50_s, calls=len(values))
            )
        running = [i for i in taken if 2 * points[i][-1].p50_s <= max(1.0, seconds)]
    left = {contenders[i].variant: p[-1].batch for i, p in enumerate(points) if p[-1].batch < max(sizes)}
    notes += [f"{v}: batches above {b} were left out, one call takes too long" for v, b in left.items()]
    return points, notes


def this_machine() -> Machine:
    """What figures depend on: the processor, the system, and a Jetson's power mode."""
    processor = cpu()
    modes, gpu = read_power_modes(), this_gpu()
    return Machine(
        cpu=processor.model,
        architecture=processor.architecture,
        cores=int(processor.usable) or 1,
        system=system(Path("/")),
        power_mode=modes.current.name if modes is not None and modes.current is not None else "",
        gpu=gpu.name if gpu is not None else "",
    )


def _trial(values_s: Sequence[float], batch: int) -> Trial:
    latency = latency_of(values_s)
    return Trial(
        calls=latency.calls,
        p50_s=latency.p50_s,
        p90_s=latency.p90_s,
        p99_s=latency.p99_s,
        mean_s=latency.mean_s,
        samples_per_s=batch / latency.mean_s,
    )


def _correct(
    package: Package,
    variant: Variant,
    contender: Contender,
    recipe: ModelSpec | None,
    samples: int,
    say: Callable[[str], None],
) -> Correctness | str:
    if recipe is not None:
        say(f"accuracy of {variant.id}")
    return correctness_of(package, variant, contender.session, recipe, samples)


def _per_correct(
    figures: tuple[Joules, ...], right: Correctness | str | None, contender: Contender
) -> tuple[Joules, ...]:
    if not isinstance(right, Correctness) or not figures:
        return figures
    scores = contender.session.run(contender.feeds[0])[contender.session.outputs[0].name]
    return tuple(with_correct(j, right, scores.shape[0] if scores.ndim else 1) for j in figures)


def _notes(results: Sequence[VariantBench], inputs: Inputs, warm: Sequence[WarmUp]) -> list[str]:
    notes = []
    if not inputs.real:
        notes.append("the inputs are random: data-dependent speed (early exits, sparsity) is not what real data shows")
    for result, heat in zip(results, warm):
        if not heat.steady:
            after = f"{result.id}: no steady state after {heat.calls} warm-up calls ({heat.duration_s:.1f} s)"
            why = "too few to tell" if heat.calls < FEWEST else "the machine is busy or changes its clocks"
            notes.append(f"{after}: {why}; raise --seconds")
    few = [f"{r.id} ({r.latency.calls})" for r in results if r.latency.calls < FEW_CALLS]
    if few:
        notes.append(f"fewer than {FEW_CALLS} calls: {', '.join(few)}; p99 is close to the maximum, raise --seconds")
    hasty = [r.id for r in results if any(j.inferences < FEW_INFERENCES for j in r.energy)]
    if hasty:
        notes.append(f"energy of {', '.join(hasty)}: fewer than {FEW_INFERENCES} inferences, raise --seconds")
    return notes
