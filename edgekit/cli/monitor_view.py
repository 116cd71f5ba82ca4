"""How `edgekit monitor` looks: one reading as lines that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.telemetry.clocks import ClockReading
from edgekit.telemetry.gpus import GpuReading
from edgekit.telemetry.monitor import Identity, Snapshot
from edgekit.telemetry.nvml import SHORT
from edgekit.telemetry.rails import short_scope
from edgekit.telemetry.thermal import ZoneReading

BAR = 12
MOST_CLOCKS, MOST_ZONES = 8, 10
"""More lines of a kind are summed up in one, so that a large server fits a terminal as well."""
_WARM_C = 10.0
"""A zone this close to a trip point is yellow; beyond it, red."""


def render(identity: Identity, now: Snapshot, *, notes: Sequence[str] = (), ascii_only: bool = False) -> RenderableType:
    """One reading. `notes` are sentences for the end: what is missing and why."""
    lines = Table.grid(padding=(0, 2, 0, 0), expand=False)
    lines.add_column(min_width=8, no_wrap=True, style="bold")
    lines.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for title, body in _sections(now, ascii_only):
        for i, line in enumerate(body):
            lines.add_row(title if i == 0 else "", line)
    head: list[RenderableType] = [_head(identity, now)]
    if identity.origin:
        head.append(Text(identity.origin, style="italic"))
    tail = [Text(note, style="yellow") for note in (*now.problems, *notes, *(_mode_reason(now)))]
    return Group(*head, Text(), lines, *([Text(), *tail] if tail else []))


def _mode_reason(now: Snapshot) -> tuple[str, ...]:
    return (now.modes.reason,) if now.modes is not None and now.modes.reason else ()


def _head(identity: Identity, now: Snapshot) -> Text:
    text = Text(identity.model, style="bold")
    board = identity.board
    about = [
        f"JetPack {board.jetpack}" if board and board.jetpack else "",
        f"L4T {board.l4t}" if board and board.l4t else "",
    ]
    if board is None:
        about = [identity.system]
    if now.modes is not None and now.modes.current is not None:
        about.append(f"power mode {now.modes.current.name} ({now.modes.current.id})")
    return text.append("\n" + ", ".join(a for a in about if a), style="not bold")


def _sections(now: Snapshot, ascii_only: bool) -> Iterator[tuple[str, list[Text]]]:
    if now.powers:
        yield "power", [Text(f"{_number(p.power_w, 'W', 2):>10}  {short_scope(p.scope)}") for p in now.powers]
    if now.rails:
        width = max(len(r.label) for r in now.rails)
        yield (
            "rails",
            [
                Text(
                    f"{_number(r.power_w, 'W', 2):>10}  {r.label:<{width}}  "
                    f"{_number(r.voltage_v, 'V', 2):>8} {_number(r.current_a, 'A', 2):>8}"
                    + (f" of {r.current_limit_a:.1f} A" if r.current_limit_a else "")
                )
                for r in now.rails
            ],
        )
    zones = [*now.zones, *(ZoneReading(n, g.temp_c, g.trips) for g, n in zip(now.gpus, _gpu_names(now)))]
    if zones:
        yield "heat", _zone_lines(zones, ascii_only)
    if now.cpu_clocks or now.cpu_load is not None:
        yield "cpu", _cpu_lines(now, ascii_only)
    names = _gpu_names(now)
    gpus = [line for g, name in zip(now.gpus, names) for line in _gpu_lines(g, name, ascii_only)]
    gpus += [_clock(c, ascii_only) for c in now.gpu_clocks]
    if gpus:
        yield "gpu", gpus
    if now.memory_share is not None:
        yield "memory", [Text(f"{now.memory_share:>10.0%}  in use")]
    if now.fans:
        yield (
            "fan",
            [
                Text(f"{_percent(f.duty):>10}  {f.name}" + (f", {f.rpm} rpm" if f.rpm is not None else ""))
                for f in now.fans
            ],
        )
    yield "throttle", _throttle_lines(now)


def _zone_lines(zones: Sequence[ZoneReading], ascii_only: bool) -> list[Text]:
    known = [z for z in zones if z.temp_c is not None]
    down = [z.name for z in zones if z.temp_c is None]
    shown = sorted(known, key=lambda z: -(z.temp_c or 0))[:MOST_ZONES] if len(known) > MOST_ZONES else known
    width = max((len(z.name) for z in shown), default=0)
    lines = []
    for zone in shown:
        trip = zone.next_trip
        headroom_c = zone.headroom_c
        style = "" if headroom_c is None or headroom_c > _WARM_C else "red" if headroom_c <= 0 else "yellow"
        text = Text(f"{zone.temp_c:>8.1f} C", style=style).append(f"  {zone.name:<{width}}", style="default")
        if trip is not None and zone.temp_c is not None:
            text.append(f"  {_bar(zone.temp_c / trip.temp_c, ascii_only)} {trip.temp_c:.0f} C {trip.kind}")
        lines.append(text)
    if len(known) > len(shown):
        lines.append(Text(f"{'':>10}  and {len(known) - len(shown)} cooler zones", style="dim"))
    if down:
        lines.append(Text(f"{'-':>10}  powered down: {', '.join(down)}", style="dim"))
    return lines


def _cpu_lines(now: Snapshot, ascii_only: bool) -> list[Text]:
    lines = []
    if now.cpu_load is not None:
        lines.append(Text(f"{_percent(now.cpu_load):>10}  {_bar(now.cpu_load, ascii_only)} load of all CPUs"))
    clocks = now.cpu_clocks
    if len(clocks) <= MOST_CLOCKS:
        return lines + [_clock(c, ascii_only) for c in clocks]
    speeds = [c.now_hz for c in clocks if c.now_hz is not None]
    if speeds:
        mean_mhz = sum(speeds) / len(speeds) / 1e6
        lines.append(
            Text(
                f"{mean_mhz:>6.0f} MHz  mean of {len(speeds)}, from {min(speeds) / 1e6:.0f} to {max(speeds) / 1e6:.0f}"
            )
        )
    return lines


def _clock(clock: ClockReading, ascii_only: bool) -> Text:
    now = "-" if clock.now_hz is None else f"{clock.now_hz / 1e6:.0f} MHz"
    text = Text(f"{now:>10}  {clock.name}")
    if clock.max_hz:
        text.append(f" of {clock.max_hz / 1e6:.0f} MHz")
    if clock.pinned:
        text.append(", pinned")
    if clock.load is not None:
        text.append(f"  {_bar(clock.load, ascii_only)} {clock.load:.0%} load")
    return text


def _gpu_lines(gpu: GpuReading, name: str, ascii_only: bool) -> list[Text]:
    clock = ClockReading(name, gpu.clock_hz, None, gpu.max_clock_hz, gpu.load)
    facts = [f"memory {_percent(gpu.memory_share)} in use"]
    if gpu.memory_temp_c is not None:
        facts[0] += f" at {gpu.memory_temp_c:.0f} C"
    if gpu.power_limit_w is not None:
        facts.append(f"power limit {gpu.power_limit_w:.0f} W")
    lines = [_clock(clock, ascii_only), Text(f"{'':>10}  {', '.join(facts)}")]
    if gpu.mig:
        lines.append(Text(f"{'':>10}  {len(gpu.mig)} MIG instances; power is of the whole board", style="dim"))
    return lines


def _throttle_lines(now: Snapshot) -> list[Text]:
    causes = list(now.throttles)
    for gpu, name in zip(now.gpus, _gpu_names(now)):
        tail = f" of {name}" if len(now.gpus) > 1 else ""
        causes += [replace(t, cause=t.cause + tail) for t in gpu.throttles]
    active = [t for t in causes if t.active]
    lines = []
    for throttle in active:
        rate = f", {throttle.rate_hz:.1f} events/s" if throttle.rate_hz else ""
        lines.append(Text(f"       NOW  {throttle.cause}{rate}", style="bold red"))
    for throttle in causes:
        if throttle.events and not throttle.active:
            lines.append(Text(f"{throttle.events:>10}  {throttle.cause} since boot, none now", style="dim"))
    if not active:
        lines.insert(
            0,
            Text(f"      none  of {len(causes)} watched" if causes else "         -  no cause can be read here"),
        )
    return lines


def _gpu_names(now: Snapshot) -> list[str]:
    """Short names: the model, or where there are several GPUs, what their UUIDs begin with."""
    return [g.uuid[:SHORT] if len(now.gpus) > 1 else g.name for g in now.gpus]


def _bar(share: float, ascii_only: bool) -> str:
    full = round(BAR * min(1.0, max(0.0, share)))
    return ("#" if ascii_only else "█") * full + ("." if ascii_only else "░") * (BAR - full)


def _number(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f} {unit}"  # + 0.0: no "-0.00"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
