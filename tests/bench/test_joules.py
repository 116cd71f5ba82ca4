from __future__ import annotations

import time
from pathlib import Path

from edgekit.bench.joules import joules_of, sensors_for
from edgekit.errors import SensorError
from edgekit.telemetry import Found, Sample
from edgekit.tensors import Tensors
from tests.bench.test_measure import contender
from tests.telemetry.nvml_stub import run_with_stub


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
    [((found,), reason)] = joules_of([contender(0.005)], Found((Counter(),)), seconds=0.3)
    assert reason == ""
    expected_j = 20 * found.duration_s / found.inferences
    assert abs(found.joules_per_inference - expected_j) <= found.uncertainty_j
    assert found.uncertainty_j < 0.2 * found.joules_per_inference
    assert (found.source, found.scope) == ("rapl", "CPU package")
    assert found.idle_w is None


class Working(Counter):
    """Takes 20 W at rest and 50 W while a call of `session` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = False
        self.joules, self.last = 0.0, time.monotonic()

    def read(self) -> Sample:
        now = time.monotonic()
        self.joules += (50 if self.busy else 20) * (now - self.last)
        self.last = now
        return Sample(now, energy_j=self.joules)


def test_idle_is_told_from_the_work_and_trials_are_kept_apart() -> None:
    sensor = Working()
    one = contender(0.005)
    quick = one.session.run

    def run(feed: Tensors) -> Tensors:
        sensor.read()
        sensor.busy = True
        out = quick(feed)
        sensor.read()
        sensor.busy = False
        return out

    one.session.run = run  # type: ignore[method-assign]
    said: list[str] = []
    [((found,), _)] = joules_of([one], Found((sensor,)), seconds=0.6, trials=3, idle=True, say=said.append)
    assert said == ["energy of doing nothing", "energy of a"]
    assert found.idle_w is not None
    assert found.active_w is not None
    assert found.active_j is not None
    assert abs(found.idle_w - 20) < 2
    assert abs(found.active_w - 30) < 5
    assert abs(found.joules_per_inference - found.active_j - 20 * found.duration_s / found.inferences) < 0.02
    assert len(found.trials) == 3
    mean = sum(t.joules_per_inference for t in found.trials) / 3
    assert abs(mean - found.joules_per_inference) < 0.1 * mean


def test_trials_that_differ_widen_the_uncertainty() -> None:
    """A model whose second window takes twice the time of the others."""
    one = contender(0.002)
    steady = joules_of([one], Found((Counter(),)), seconds=0.3, trials=3)[0][0][0]
    calls = 0
    quick = one.session.run

    def run(feed: Tensors) -> Tensors:
        nonlocal calls
        calls += 1
        time.sleep(0.004 if calls % 90 > 45 else 0)
        return quick(feed)

    one.session.run = run  # type: ignore[method-assign]
    wide = joules_of([one], Found((Counter(),)), seconds=0.3, trials=3)[0][0][0]
    assert wide.uncertainty_j / wide.joules_per_inference > 1.5 * steady.uncertainty_j / steady.joules_per_inference


def test_a_sensor_that_dies_is_a_reason_not_a_number() -> None:
    for fails_after in (200, 0):
        assert joules_of([contender(0.005)], Found((Counter(fails_after=fails_after),)), seconds=0.3) == [
            ((), "counter: gone.")
        ]


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


def test_a_gpus_counter_by_nvml(tmp_path: Path) -> None:
    """A library that stands for the driver's: 100 W, shown every 100 ms. 5 ms a call is half a joule."""
    code = """
from edgekit.bench.joules import joules_of
from edgekit.runtime.fake import FakeSession
from edgekit.telemetry.nvml import find_nvml
from tests.bench.test_measure import contender
from tests.telemetry.nvml_stub import run_with_stub
class OnGpu(FakeSession):
    device = "ONNX Runtime 1.31, CUDA, 1 thread"
one = contender(0.005)
one.session.__class__ = OnGpu
[((j,), reason)] = joules_of([one], find_nvml(), seconds=0.1)
latency_s = j.duration_s / j.inferences
assert abs(j.joules_per_inference - 100 * latency_s) <= j.uncertainty_j < 0.2 * j.joules_per_inference, j
print(j.source, j.scope, reason)
"""
    assert run_with_stub(tmp_path, code, TIMED=100) == "counter GPU board Test GPU"
