from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.bench.report import Machine
from edgekit.bench.sustained import Sustained, run_sustained, summary_of
from edgekit.bench.sustained_plot import sustained_png
from tests.bench.test_measure import contender
from tests.telemetry import boards

MACHINE = Machine(cpu="Cortex-A78AE", architecture="aarch64", cores=6, system="Ubuntu 22.04")


@contextmanager
def warming_board(root: Path, *, tau_s: float, steady_c: float, slow_at_c: float = 1e9) -> Iterator[threading.Event]:
    """An Orin Nano that warms up from 40 degrees; from `slow_at_c` on its throttle alert is on, and the event set."""
    boards.orin_nano(root)
    zones = {z.joinpath("type").read_text().strip(): z / "temp" for z in root.glob("sys/class/thermal/thermal_zone*")}
    alert = next(
        d for d in root.glob("sys/class/thermal/cooling_device*") if "gpu-throttle" in d.joinpath("type").read_text()
    )
    slow, stop, begun = threading.Event(), threading.Event(), time.monotonic()

    def live() -> None:
        while not stop.wait(0.02):
            temp_c = steady_c - (steady_c - 40) * math.exp(-(time.monotonic() - begun) / tau_s)
            for name in ("cpu-thermal", "gpu-thermal", "tj-thermal"):
                replace(zones[name], f"{1000 * temp_c:.0f}\n")
            if temp_c >= slow_at_c and not slow.is_set():
                slow.set()
                replace(alert / "cur_state", "2\n")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield slow
    finally:
        stop.set()
        thread.join()


def replace(path: Path, text: str) -> None:
    """Readers see the old text or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def sustained_on(root: Path, slow: threading.Event, *, duration_s: float) -> Sustained:
    one = contender(0.002)
    quick = one.session.run

    def run(feed):  # type: ignore[no-untyped-def]
        time.sleep(0.006 if slow.is_set() else 0)
        return quick(feed)

    one.session.run = run  # type: ignore[method-assign]
    course = run_sustained(one, samples_per_call=1, duration_s=duration_s, root=root, earliest_s=1.0)
    return summary_of(
        course, package="a.edge", created="2026-01-01", machine=MACHINE, contender=one, batch=1, threads=1
    )


def test_it_ends_early_once_the_machine_is_warm(tmp_path: Path) -> None:
    with warming_board(tmp_path, tau_s=0.4, steady_c=70) as slow:
        report = sustained_on(tmp_path, slow, duration_s=20)
    assert report.ended == "steady"
    assert report.duration_s < 19.5  # a busy machine takes long to be steady
    assert report.throttled_after_s is None
    assert report.causes == {}
    assert report.limit_c == 99
    assert report.heating is not None
    assert abs(report.heating.steady_c - 70) <= max(0.5, report.heating.steady_error_c)
    assert abs(report.heating.tau_s - 0.4) < 0.15
    assert abs(report.sustained_w["module rail VDD_IN"] - 9.25) < 0.01
    assert report.missing == ()
    assert {"gpu-thermal", "cpu-thermal"} <= set(report.readings[-1].temp_c)


def test_throttling_is_timed_named_and_kept_out_of_the_fit(tmp_path: Path) -> None:
    """97 degrees are reached after 2.1 s; the alert comes there, and calls take four times as long."""
    with warming_board(tmp_path, tau_s=1.0, steady_c=105, slow_at_c=97) as slow:
        report = sustained_on(tmp_path, slow, duration_s=6)
    assert report.throttled_after_s is not None
    assert 1.5 < report.throttled_after_s < 3
    assert report.slowed_after_s is not None
    assert abs(report.slowed_after_s - report.throttled_after_s) < 1
    assert list(report.causes) == ["gpu-throttle-alert"]
    assert 0.4 < report.causes["gpu-throttle-alert"] < 0.85
    assert report.sustained_per_s < 0.6 * report.burst_per_s
    assert report.heating is not None
    assert abs(report.heating.steady_c - 105) <= max(1.0, 1.5 * report.heating.steady_error_c)
    assert report.heating.steady_c > report.limit_c  # it says beforehand that the limit will be met
    assert sustained_png(report).startswith(b"\x89PNG")
