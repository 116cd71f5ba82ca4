"""One picture of a sustained run: throughput, power, temperature and clocks over time, throttling shaded."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from edgekit._lazy import require
from edgekit.bench.plot import COLORS
from edgekit.bench.sustained import Reading, Sustained
from edgekit.telemetry.rails import short_scope

_INK, _GREY, _RED = "#222222", "#8a8a8a", "#c44e52"
_MOST_LINES = 5


def sustained_png(report: Sustained) -> bytes:
    """The run as a PNG image.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", why="draw reports/sustained.png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    minutes = report.duration_s >= 180
    scale, unit = (60.0, "min") if minutes else (1.0, "s")
    rates, power, heat, clocks = figure.subplots(4, 1, sharex=True, height_ratios=(1.3, 1, 1.3, 1))
    times = [s.start_s / scale for s in report.slices] + [report.duration_s / scale]
    rates.stairs([s.samples_per_s for s in report.slices], times, color=COLORS[0], linewidth=1.6, baseline=None)
    for value, name in ((report.burst_per_s, "burst"), (report.sustained_per_s, "sustained")):
        rates.axhline(value, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        higher = (report.burst_per_s >= report.sustained_per_s) == (name == "burst")
        rates.annotate(
            f"{name} {value:,.4g}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="bottom" if higher else "top",
            fontsize=8.5,
            color=_INK,
        )
    rates.set_ylim(0, 1.15 * max(s.samples_per_s for s in report.slices))
    _title(rates, "Throughput, samples/s")
    _lines(power, report.readings, lambda r: {short_scope(s): w for s, w in r.power_w.items()}, scale, 1.0)
    _title(power, "Power, W")
    power.set_ylim(bottom=0)
    _lines(heat, report.readings, lambda r: r.temp_c, scale, 1.0, first=report.heating.zone if report.heating else None)
    _limits(heat, report, scale)
    _title(heat, "Temperature, °C")
    _lines(clocks, report.readings, lambda r: r.clock_hz, scale, 1e-6)
    _title(clocks, "Clock, MHz")
    clocks.set_ylim(bottom=0)
    clocks.set_xlabel(f"time under load, {unit}", color=_INK)
    clocks.set_xlim(0, report.duration_s / scale)
    for axes in (rates, power, heat, clocks):
        _shade(axes, report.readings, scale)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=_INK)
    causes = ", ".join(report.causes)
    slowed = f" · shaded: slowed by {causes}" if causes else ""
    figure.suptitle(
        f"{report.package} {report.variant}", x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK
    )
    where = f"{report.machine.cpu} · {report.device} · batch {report.batch}{slowed}"
    figure.supxlabel(where, x=0.012, ha="left", fontsize=8.5, color=_GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=_INK)


def _lines(
    axes: Any,
    readings: Sequence[Reading],
    values: Callable[[Reading], dict[str, float]],
    scale: float,
    factor: float,
    *,
    first: str | None = None,
) -> None:
    """A line for each name, the highest ones where there are many, or the words that nothing was read."""
    highest: dict[str, float] = {}
    for r in readings:
        for name, value in values(r).items():
            highest[name] = max(value, highest.get(name, value))
    names = sorted(highest, key=lambda n: (n != first, -highest[n]))[:_MOST_LINES]
    for place, name in enumerate(names):
        points = [(r.t_s / scale, factor * values(r)[name]) for r in readings if name in values(r)]
        axes.plot(*zip(*points), color=COLORS[place % len(COLORS)], linewidth=1.5, label=name)
    if names:
        left_out = f"   and {len(highest) - len(names)} more" if len(highest) > len(names) else ""
        legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title=left_out)
        legend.get_title().set_fontsize(8)
    else:
        axes.text(0.5, 0.5, "cannot be read on this machine", transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_yticks([])


def _limits(axes: Any, report: Sustained, scale: float) -> None:
    """The fitted curve, the temperature that it tends to, and the trip point if it is near."""
    fit = report.heating
    if fit is not None:
        times = [report.duration_s * i / 100 for i in range(101)]
        curve = [fit.at(t) for t in times]
        axes.plot([t / scale for t in times], curve, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        text = f"fit: tends to {fit.steady_c:.1f} ± {fit.steady_error_c:.1g} °C, time constant {fit.tau_s:.3g} s"
        axes.annotate(text, (0.99, 0.06), xycoords="axes fraction", ha="right", fontsize=8.5, color=_INK)
    if report.limit_c is not None:
        top = max((v for r in report.readings for v in r.temp_c.values()), default=0.0)
        if report.limit_c - top < 40:
            axes.axhline(report.limit_c, color=_RED, linewidth=1)
            axes.annotate(
                f"limit {report.limit_c:.0f} °C",
                (0.01, report.limit_c),
                xycoords=("axes fraction", "data"),
                xytext=(0, -11),
                textcoords="offset points",
                fontsize=8.5,
                color=_RED,
            )


def _shade(axes: Any, readings: Sequence[Reading], scale: float) -> None:
    start: float | None = None
    for r in readings:
        if r.throttled and start is None:
            start = r.t_s
        elif not r.throttled and start is not None:
            axes.axvspan(start / scale, r.t_s / scale, color=_RED, alpha=0.12, linewidth=0)
            start = None
    if start is not None:
        axes.axvspan(start / scale, readings[-1].t_s / scale, color=_RED, alpha=0.12, linewidth=0)
