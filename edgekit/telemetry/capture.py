"""Recording a live machine's telemetry files over time into one archive, and nothing else of it.

The archive is a tar file: `capture.json` (what it is), `tree/` (the first reading of every file) and `frames.jsonl`
(one line a reading: its time and the files that changed, null where one could not be read). `replay.py` plays it.
"""

from __future__ import annotations

import datetime
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__
from edgekit._files import storage, write_atomic
from edgekit._lazy import require
from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.jetson import identify
from edgekit.telemetry.monitor import ORIGIN_FILE
from edgekit.telemetry.power_mode import QUERY_FILE, read_power_modes
from edgekit.telemetry.record import check_output
from edgekit.telemetry.sysfs import read_text

FORMAT = "edgekit board capture"
_RELIST_S = 1.0
"""How often devices are looked for that appeared or went away: listing costs more than reading."""
_FILES: dict[str, tuple[str, ...]] = {
    "proc/device-tree": ("model", "compatible"),
    "proc": ("cpuinfo", "meminfo", "stat"),
    "proc/sys/kernel": ("osrelease",),
    "etc": ("nv_tegra_release", "nvpmodel.conf", "os-release"),
    "sys/class/dmi/id": ("product_name",),
    "sys/devices/pwm-fan": ("cur_pwm",),
    "sys/bus/i2c/drivers/ina3221x/*-00*/iio:device*": (
        "rail_name_[0-9]",
        "in_voltage[0-9]_input",
        "in_current[0-9]_input",
        "in_power[0-9]_input",
        "crit_current_limit_[0-9]",
        "warn_current_limit_[0-9]",
    ),
    "sys/class/hwmon/hwmon*": (
        "name",
        "update_interval",
        "samples",
        "in[0-9]*_label",
        "in[0-9]*_input",
        "curr[0-9]*_label",
        "curr[0-9]*_input",
        "curr[0-9]*_max",
        "curr[0-9]*_crit",
        "curr[0-9]*_alarm",
        "power[0-9]*_label",
        "power[0-9]*_input",
        "temp[0-9]*_label",
        "temp[0-9]*_input",
        "temp[0-9]*_max",
        "temp[0-9]*_crit",
        "fan[0-9]*_label",
        "fan[0-9]*_input",
        "pwm[0-9]",
        "rpm",
        "oc[0-9]_event_cnt",
        "oc[0-9]_throt_en",
    ),
    "sys/class/thermal/thermal_zone*": ("type", "temp", "trip_point_*_temp", "trip_point_*_type", "trip_point_*_hyst"),
    "sys/class/thermal/cooling_device*": ("type", "cur_state", "max_state"),
    "sys/class/devfreq/*": ("cur_freq", "min_freq", "max_freq", "governor", "device/load"),
    "sys/devices/system/cpu/cpufreq/policy*": (
        "affected_cpus",
        "scaling_cur_freq",
        "scaling_min_freq",
        "scaling_max_freq",
        "scaling_governor",
    ),
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle": ("core_throttle_count", "package_throttle_count"),
    "sys/class/powercap/intel-rapl:*": ("name", "energy_uj", "max_energy_range_uj"),
}
"""Folder -> files in it, as patterns. Everything else of the machine stays where it is; no file here holds a serial
number but /proc/cpuinfo of some boards, from which that line is taken out."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What was written: `files` of the tree, `frames` over `duration_s`, the archive's `bytes`, its origin in words."""

    path: Path
    files: int
    frames: int
    duration_s: float
    bytes: int
    origin: str


def telemetry_files(root: Path) -> Iterator[str]:
    """The names, relative to `root`, of the files that a capture reads, in a stable order."""
    for folder, patterns in _FILES.items():
        for pattern in patterns:
            yield from sorted(str(p.relative_to(root)) for p in root.glob(f"{folder}/{pattern}"))


def read_frame(root: Path, names: Iterable[str]) -> dict[str, str | None]:
    """The files' text; None where one cannot be read now (a zone that is powered down)."""
    return {name: _read(root, name) for name in names}


def capture(
    output: Path,
    *,
    root: Path = Path("/"),
    duration_s: float = 30.0,
    interval_s: float = 0.5,
    force: bool = False,
    tick: Callable[[float], None] = lambda elapsed_s: None,
) -> Captured:
    """Record the machine at `root` for `duration_s`, a reading every `interval_s`, into the archive `output`.

    Ctrl-C ends the recording early and keeps what there is. `tick` is called with the elapsed seconds.

    Raises:
        UsageError: a name that ends in neither .tar.zst nor .tar.gz, an output that exists, times that make no sense.
        MissingDependencyError: .tar.zst without the zstandard package.
        SensorError: there is nothing to record.
        StorageError: the archive could not be written; nothing was changed.
    """
    compress = _compressor(output)
    if not duration_s > 0 or not interval_s > 0:
        raise UsageError(f"--duration and --interval must be positive, got {duration_s} and {interval_s} s.")
    check_output(output, force=force)
    first = read_frame(root, telemetry_files(root))
    if not any(name.startswith("sys/") for name in first):
        raise SensorError(f"'{root}' has no telemetry files under sys/. In a container, mount /sys.")
    origin = _origin(root)
    modes = read_power_modes(root) if identify(root) is not None else None
    if modes is not None and modes.current is not None:
        first[QUERY_FILE] = f"NV Power Mode: {modes.current.name}\n{modes.current.id}"
    first[ORIGIN_FILE] = origin
    with tempfile.TemporaryFile() as lines:
        frames, elapsed_s = _record(root, first, lines, duration_s=duration_s, interval_s=interval_s, tick=tick)
        lines.seek(0)
        head = {
            "format": FORMAT,
            "version": 1,
            "edgekit": __version__,
            "origin": origin,
            "interval_s": interval_s,
            "duration_s": round(elapsed_s, 3),
            "frames": frames,
        }
        tree = {f"tree/{name}": text.encode() + b"\n" for name, text in first.items() if text is not None}
        members = {"capture.json": json.dumps(head, indent=2).encode(), **tree, "frames.jsonl": lines.read()}
    data = compress(_tar(members))
    with storage(output):
        write_atomic(output, data)
    return Captured(output, len(tree), frames, elapsed_s, len(data), origin)


def _record(
    root: Path,
    first: dict[str, str | None],
    lines: io.BufferedIOBase,
    *,
    duration_s: float,
    interval_s: float,
    tick: Callable[[float], None],
) -> tuple[int, float]:
    """Write a line for each reading; returns how many there are, and the seconds of the last."""
    last = dict(first)
    own = {name for name in first if name.startswith("edgekit/")}
    start_s = time.monotonic()
    frames, elapsed_s, listed_s = 0, 0.0, start_s
    names = tuple(first.keys() - own)
    try:
        while True:
            if time.monotonic() - listed_s >= _RELIST_S:
                names, listed_s = tuple(telemetry_files(root)), time.monotonic()
            now = read_frame(root, names)
            t_s = time.monotonic() - start_s
            gone = dict.fromkeys(last.keys() - now.keys() - own)
            changed = {n: v for n, v in {**now, **gone}.items() if n not in last or last[n] != v}
            lines.write(json.dumps({"t_s": round(t_s, 4), "files": changed}).encode() + b"\n")
            last.update(changed)
            frames, elapsed_s = frames + 1, t_s
            tick(t_s)
            wait_s = start_s + frames * interval_s - time.monotonic()
            if t_s + interval_s > duration_s:
                break
            time.sleep(max(0.0, wait_s))
    except KeyboardInterrupt:
        if not frames:
            raise
    return frames, elapsed_s


def _read(root: Path, name: str) -> str | None:
    text = read_text(root / name)
    if text is None:
        return None
    if name == "proc/stat":  # the rest counts every interrupt
        return "\n".join(line for line in text.splitlines() if line.startswith("cpu"))
    if name == "proc/cpuinfo":
        return "\n".join(line for line in text.splitlines() if not line.lower().startswith("serial"))
    return text


def _origin(root: Path) -> str:
    own = _read(root, ORIGIN_FILE)
    if own:  # a recording of a recording stays what it was
        return own
    board = identify(root)
    name = board.model if board is not None else _read(root, "sys/class/dmi/id/product_name") or "a machine"
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return f"captured from {name} on {day} by edgekit {__version__}"


def _compressor(output: Path) -> Callable[[bytes], bytes]:
    if output.name.endswith(".tar.zst"):
        zstandard = require("zstandard", why="write .tar.zst (a name that ends in .tar.gz needs nothing)")
        return lambda data: bytes(zstandard.ZstdCompressor(level=10).compress(data))
    if output.name.endswith(".tar.gz"):
        import gzip

        return lambda data: gzip.compress(data, mtime=0)
    raise UsageError(f"'{output}' is no name for a capture; expected for example: -o orin.tar.zst or -o orin.tar.gz")


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)  # no owner, no time: nothing of the machine but the files' text
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
