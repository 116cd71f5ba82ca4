from __future__ import annotations

import pytest

from edgekit.telemetry.knots import CounterKnots, PowerKnots


def bends(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The line that readings of a power signal renewed every 100 ms stand for."""
    track = PowerKnots(0.1)
    for t_s, power_w in points:
        track.add(t_s, power_w)
    return [(k.t_s, k.power_w) for k in track.knots()]


def test_a_jump_counts_with_the_sensors_period_however_often_it_is_read() -> None:
    points = [(t / 100, 10.0 if t < 50 else 30.0) for t in range(100)]  # read every 10 ms, renewed every 100 ms
    assert bends(points) == [(0.0, 10.0), (pytest.approx(0.4), 10.0), (0.5, 30.0), (0.99, 30.0)]
    each = [(t / 10, float(t)) for t in range(5)]
    assert bends(each) == each
    lost = [(0.0, 1.0), (0.1, 1.0), (0.9, 2.0)]
    assert bends(lost) == lost


def test_long_runs_keep_their_ends_their_marks_and_what_is_new() -> None:
    track = PowerKnots(0.1)
    for i in range(1000):
        if i == 500:
            track.mark(49.95)
        track.add(i / 10, float(i))
    times = [k.t_s for k in track.knots()]
    assert len(times) < 100
    assert {0.0, 0.1, 49.9, 50.0, 99.8, 99.9} <= set(times)
    assert track.knots()[-1].area_j == pytest.approx(999 / 2 * 99.9)


def test_a_counter_read_twice_at_once_is_read_once() -> None:
    track = CounterKnots(0.1)
    for i in range(30):
        for _ in range(2):
            track.add(i / 10, i * 2.0)
    assert track.readings == 30
    figure = track.figure(0.5, 2.5)
    assert not isinstance(figure, str)
    assert figure.energy_j == pytest.approx(40)
