"""Synthetic power signals with known integrals."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from edgekit.telemetry import Energy, Sample, Unresolved, energy_between, update_period
from edgekit.telemetry.meter import Integrator, above_idle
from edgekit.telemetry.rapl import Unwrapped

Signal = Callable[[np.ndarray], np.ndarray]
STEP_S = 0.0005


def signal(kind: str, rng: np.random.Generator) -> Signal:
    """Power in watts over time, of one kind with random levels."""
    base, extra = rng.uniform(5, 50), rng.uniform(5, 100)
    if kind == "constant":
        return lambda t: np.full_like(t, base)
    if kind == "step":
        at = rng.uniform(0, 3)
        return lambda t: base + extra * (t > at)
    if kind == "sine":
        rate, phase = rng.uniform(0.2, 8), rng.uniform(0, 6)
        return lambda t: base + extra * (1 + np.sin(rate * t + phase)) / 2
    spikes = rng.uniform(0, 4, size=12)
    return lambda t: base + extra * (np.abs(spikes[:, None] - t) < 0.02).any(axis=0)


def integral(power: Signal, start_s: float, end_s: float) -> float:
    return float(power(np.arange(start_s, end_s, STEP_S) + STEP_S / 2).sum() * STEP_S)


def counter_samples(power: Signal, rng: np.random.Generator, *, period_s: float, poll_s: float) -> list[Sample]:
    """A counter that advances every `period_s`, read about every `poll_s`, some readings lost, over 4.5 s."""
    total = np.cumsum(power(np.arange(-0.5, 4.5, STEP_S))) * STEP_S
    phase = rng.uniform(0, period_s)
    samples, t = [], -0.5 + period_s
    while t < 4.4:
        shown = math.floor((t - phase) / period_s) * period_s + phase  # the counter's latest update
        samples.append(Sample(t, energy_j=float(total[max(0, round((shown + 0.5) / STEP_S) - 1)])))
        t += poll_s * rng.uniform(0.8, 1.2) * (3 if rng.random() < 0.05 else 1)
    return samples


def power_samples(power: Signal, rng: np.random.Generator, *, period_s: float) -> list[Sample]:
    """A sensor that shows, every `period_s`, the power of the first quarter of the period before; a few are lost."""
    out, t = [], -0.4
    while t < 4.5:
        seen = float(power(np.linspace(t - period_s, t - 0.75 * period_s, 8)).mean())
        if rng.random() > 0.03:
            out.append(Sample(t, power_w=seen))
        t += period_s
    return out


def share_within(
    kind: str, make: Callable[[Signal, np.random.Generator], tuple[list[Sample], float]], *, loosest: float
) -> float:
    """Share of random trials whose true energy lies within the stated uncertainty."""
    hits, trials = 0, 100
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        power = signal(kind, rng)
        samples, period_s = make(power, rng)
        start_s = rng.uniform(0, 1)
        end_s = start_s + rng.uniform(1.5, 3)
        energy = energy_between(
            samples, start_s=start_s, end_s=end_s, period_s=period_s, source="counter", scope="test"
        )
        assert isinstance(energy, Energy)
        assert energy.uncertainty_j < loosest * energy.energy_j
        hits += abs(energy.energy_j - integral(power, start_s, end_s)) <= energy.uncertainty_j
    return hits / trials


@pytest.mark.parametrize("kind", ["constant", "step", "sine", "spikes"])
@pytest.mark.parametrize(("period_s", "poll_s"), [(0.1, 0.02), (0.02, 0.05), (0.001, 0.05)])
def test_a_counter_is_within_its_uncertainty(kind: str, period_s: float, poll_s: float) -> None:
    share = share_within(
        kind,
        lambda power, rng: (counter_samples(power, rng, period_s=period_s, poll_s=poll_s), period_s),
        loosest=0.5,
    )
    assert share >= 0.95


@pytest.mark.parametrize("kind", ["constant", "step", "sine", "spikes"])
def test_power_readings_are_within_their_uncertainty(kind: str) -> None:
    share = share_within(kind, lambda power, rng: (power_samples(power, rng, period_s=0.1), 0.1), loosest=1)
    assert share >= 0.95


def wrapped_counter(power: Signal, rng: np.random.Generator) -> tuple[list[Sample], float]:
    """A RAPL-like counter in microjoules that wraps several times a second, unwrapped again."""
    modulus = int(rng.integers(8_000_000, 30_000_000))
    counter, first = Unwrapped(modulus), int(rng.integers(0, modulus))
    samples = counter_samples(power, rng, period_s=0.001, poll_s=rng.uniform(0.01, 0.05))
    raw = [(first + round((s.energy_j or 0.0) * 1e6)) % modulus for s in samples]
    assert sum(b < a for a, b in pairwise(raw)) > 0
    return [Sample(s.t_s, energy_j=counter.add(r) / 1e6) for s, r in zip(samples, raw)], 0.001


def slow_counter(power: Signal, rng: np.random.Generator) -> tuple[list[Sample], float]:
    """A GPU's energy counter, renewed every 100 ms or so."""
    period_s = rng.uniform(0.02, 0.12)
    return counter_samples(power, rng, period_s=period_s, poll_s=rng.uniform(0.01, 0.05)), period_s


def power_sensor(power: Signal, rng: np.random.Generator, *, seen: float, period_s: float) -> list[Sample]:
    """A sensor that shows the mean of the last part (`seen`, in periods) of the period before, read at random times,
    often several times a renewal; readings are lost, sometimes many in a row."""
    phase, poll_s = rng.uniform(0, period_s), rng.uniform(0.2, 1.0) * period_s
    t, out = -0.5, []
    while t < 4.5:
        renewed = math.floor((t - phase) / period_s) * period_s + phase
        shown = float(power(np.linspace(renewed - seen * period_s, renewed, 12)).mean())
        out.append(Sample(t, power_w=shown))
        t += poll_s * rng.uniform(0.8, 1.2) * (1 if rng.random() > 0.03 else rng.uniform(2, 5))
    return out


def instant(power: Signal, rng: np.random.Generator) -> tuple[list[Sample], float]:
    """25 of every 100 ms, as on A100 and H100."""
    return power_sensor(power, rng, seen=0.25, period_s=0.1), 0.1


def rail(power: Signal, rng: np.random.Generator) -> tuple[list[Sample], float]:
    """A power monitor that averages over its whole period."""
    period_s = rng.uniform(0.02, 0.12)
    return power_sensor(power, rng, seen=1.0, period_s=period_s), period_s


SENSORS = (wrapped_counter, slow_counter, instant, rail)
SIGNALS = ("constant", "step", "sine", "spikes")


def test_the_error_is_within_the_uncertainty_in_95_of_100_random_trials() -> None:
    """1,000 trials over signals, sensors, rates of reading, lost readings and windows."""
    hits = dict.fromkeys((s.__name__ for s in SENSORS), 0)
    loose = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        power, make = signal(SIGNALS[seed % 4], rng), SENSORS[seed // 4 % 4]
        samples, period_s = make(power, rng)
        start_s = rng.uniform(0, 1)
        end_s = start_s + rng.uniform(1.5, 3)
        found = energy_between(samples, start_s=start_s, end_s=end_s, period_s=period_s, source="rail", scope="x")
        assert isinstance(found, Energy)
        hits[make.__name__] += abs(found.energy_j - integral(power, start_s, end_s)) <= found.uncertainty_j
        loose.append(found.uncertainty_j / found.energy_j)
    assert sum(hits.values()) >= 950, hits
    assert min(hits.values()) >= 0.95 * 250 - 5, hits
    assert np.median(loose) < 0.08, "an uncertainty that is always large would say nothing"


def test_what_the_machine_takes_anyway_is_told_apart() -> None:
    idle = Energy(20.0, 1.0, 4.0, "rail", "module rail VDD_IN")
    active = above_idle(Energy(150.0, 3.0, 10.0, "rail", "module rail VDD_IN"), idle)
    assert (active.idle_power_w, active.idle_j, active.active_j) == (5.0, 50.0, 100.0)
    assert active.uncertainty_j == pytest.approx(3.0 + 1.0 / 4 * 10)


def test_readings_are_integrated_as_they_come_with_windows_marked_as_they_pass() -> None:
    """The same to the last digits as from all readings at hand, in four windows of each of 40 trials."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        samples, period_s = SENSORS[seed % 4](signal(SIGNALS[seed // 4 % 4], rng), rng)
        marks = sorted(rng.uniform(0, 4, 5))
        meter, ahead = Integrator(period_s=period_s), list(marks)
        for sample in samples:
            while ahead and ahead[0] < sample.t_s:
                meter.mark(ahead.pop(0))
            meter.add(sample)
        for start_s, end_s in [*pairwise(marks), (marks[0], marks[-1])]:
            streamed = meter.between(start_s, end_s, source="rail", scope="x")
            kept = energy_between(samples, start_s=start_s, end_s=end_s, period_s=period_s, source="rail", scope="x")
            if isinstance(kept, Unresolved):
                assert streamed == kept
            else:
                assert isinstance(streamed, Energy)
                assert streamed.energy_j == pytest.approx(kept.energy_j, rel=1e-9)
                assert streamed.uncertainty_j == pytest.approx(kept.uncertainty_j, rel=1e-9)


@pytest.mark.parametrize("counter", [False, True])
def test_a_long_run_takes_no_more_memory_than_a_minute(counter: bool) -> None:
    rng = np.random.default_rng(5)
    meter, joules, before_s, held = Integrator(period_s=0.1), 0.0, 0.0, []
    meter.mark(1.0)
    tracemalloc.start()
    for number, watts in enumerate(rng.uniform(10, 50, 20_000)):
        joules += watts * 0.1
        before_s = number * 0.1
        meter.add(Sample(before_s, energy_j=joules) if counter else Sample(before_s, power_w=float(watts)))
        if number in (600, 19_990):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    meter.mark(before_s - 0.5)
    assert held[1] - held[0] < 8_000
    energy = meter.between(1.0, before_s - 0.5, source="rail", scope="x")
    assert isinstance(energy, Energy)
    assert energy.power_w == pytest.approx(30, rel=0.01)


def test_a_window_begins_and_ends_where_it_was_marked() -> None:
    meter = Integrator(period_s=0.1)
    meter.mark(0.0)
    for t in range(100):
        meter.add(Sample(t / 10, power_w=5.0))
    with pytest.raises(ValueError, match="mark"):
        meter.between(0.0, 3.0, source="rail", scope="x")


def test_constant_power_is_exact_and_its_uncertainty_is_at_least_one_update() -> None:
    samples = [Sample(t / 10, energy_j=20.0 * t / 10) for t in range(101)]
    energy = energy_between(samples, start_s=2.0, end_s=7.0, period_s=0.1, source="rapl", scope="CPU package")
    assert isinstance(energy, Energy)
    assert energy.energy_j == pytest.approx(100)
    assert energy.power_w == pytest.approx(20)
    assert energy.uncertainty_j >= 20 * 0.1
    assert (energy.source, energy.scope, energy.duration_s) == ("rapl", "CPU package", pytest.approx(5))


def test_a_short_window_is_unresolved_and_says_how_often_to_repeat() -> None:
    samples = [Sample(t / 10, energy_j=20.0 * t / 10) for t in range(101)]
    result = energy_between(samples, start_s=2.0, end_s=2.25, period_s=0.1, source="counter", scope="GPU")
    assert isinstance(result, Unresolved)
    assert result.repeats_needed == 4
    longer = energy_between(samples, start_s=2.0, end_s=2.0 + 4 * 0.25, period_s=0.1, source="counter", scope="GPU")
    assert isinstance(longer, Energy)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "fewer than two"),
        ([Sample(0.0, energy_j=1.0)], "fewer than two"),
        ([Sample(t / 10, energy_j=7.0) for t in range(60)], "did not move"),
        ([Sample(t / 10, energy_j=t if t < 30 else t - 30) for t in range(60)], "went back"),
        ([Sample(t / 10, energy_j=t) for t in range(20)], "do not cover"),
        ([Sample(t / 10, temp_c=40.0) for t in range(60)], "fewer than two"),
    ],
)
def test_readings_that_tell_nothing_give_a_reason_not_a_number(samples: list[Sample], reason: str) -> None:
    result = energy_between(samples, start_s=0.5, end_s=5.0, period_s=0.1, source="counter", scope="GPU")
    assert isinstance(result, Unresolved)
    assert reason in result.reason


def test_an_empty_window_is_unresolved() -> None:
    result = energy_between([], start_s=1, end_s=1, period_s=0.1, source="rail", scope="x")
    assert isinstance(result, Unresolved)


def test_the_update_period_is_seen_through_faster_polling() -> None:
    samples = [Sample(t / 100, energy_j=float(t // 10)) for t in range(200)]
    assert update_period(samples) == pytest.approx(0.1)
    assert update_period(samples[:30]) is None
    fast = [Sample(t / 100, energy_j=float(t)) for t in range(20)]
    assert update_period(fast) == pytest.approx(0.01)


def test_windows_side_by_side_add_up() -> None:
    rng = np.random.default_rng(3)
    samples = counter_samples(signal("sine", rng), rng, period_s=0.05, poll_s=0.02)
    cuts = [0.2, 1.3, 2.4, 3.9]
    parts = [
        energy_between(samples, start_s=a, end_s=b, period_s=0.05, source="counter", scope="x")
        for a, b in [*pairwise(cuts), (cuts[0], cuts[-1])]
    ]
    values = [p.energy_j for p in parts if isinstance(p, Energy)]
    assert sum(values[:3]) == pytest.approx(values[3])
