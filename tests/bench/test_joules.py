from __future__ import annotations

import time

from edgekit.bench.joules import joules_of, sensors_for
from edgekit.errors import SensorError
from edgekit.telemetry import Found, Sample
from tests.bench.test_measure import contender


class Counter:
    """A counter of a constant 20 W, renewed every 2 ms; `fails_after` readings it is gone."""

    name, source, period_s = "counter", "rapl", 0.002

    def __init__(self, part: str = "cpu", scope: str = "CPU package", fails_after: int = 10**9) -> None:
        self.part, self.scope, self.left = part, scope, fails_after

    def read(self) -> Sample:
        self.left -= 1
        if self.left < 0:
            raise SensorError("counter: gone.")
        now = time.monotonic()
        return Sample(now, energy_j=20 * (now // 0.002) * 0.002)


def test_joules_per_inference_are_power_times_latency() -> None:
    (found,), reason = joules_of(contender(0.005), [Counter()], seconds=0.3)
    assert reason == ""
    expected_j = 20 * found.duration_s / found.inferences
    assert abs(found.joules_per_inference - expected_j) <= found.uncertainty_j
    assert found.uncertainty_j < 0.2 * found.joules_per_inference
    assert (found.source, found.scope) == ("rapl", "CPU package")


def test_a_sensor_that_dies_is_a_reason_not_a_number() -> None:
    found, reason = joules_of(contender(0.005), [Counter(fails_after=200)], seconds=0.3)
    assert (found, reason) == ((), "counter: gone.")
    found, reason = joules_of(contender(0.005), [Counter(fails_after=0)], seconds=0.3)
    assert (found, reason) == ((), "counter: gone.")


def test_the_sensor_must_cover_the_device_that_runs() -> None:
    gpu, cpu, board = Counter("gpu", "GPU board X"), Counter("cpu"), Counter("board", "module rail VDD_IN")
    found = Found((gpu, cpu, board), ("NVML: no.",))
    assert sensors_for("ONNX Runtime 1.31, CPU, 2 threads", found) == ((cpu, board), "")
    assert sensors_for("ONNX Runtime 1.31, CUDA, 2 threads", found) == ((gpu, board), "")
    none, reason = sensors_for("ONNX Runtime 1.31, CPU, 2 threads", Found((gpu,), ("RAPL: no permission.",)))
    assert none == ()
    assert reason.startswith("RAPL: no permission.")
    assert "GPU board X" in reason


def test_without_any_sensor_there_is_still_a_sentence() -> None:
    assert sensors_for("CPU", Found()) == ((), "No energy sensor was found.")
