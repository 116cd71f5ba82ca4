"""One picture of a sweep: every point by p99 and energy (or throughput), the front, the limit and the choice."""

from __future__ import annotations

import io

from edgekit._lazy import require
from edgekit.bench.plot import COLORS
from edgekit.tune.front import Point, setting_text
from edgekit.tune.sweep import TuneReport

_INK, _GREY, _RED = "#222222", "#8a8a8a", "#c44e52"
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def tune_png(report: TuneReport) -> bytes:
    """The sweep as a PNG image.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", why="draw reports/tune.png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(10, 6.2), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    by_energy = all(p.joules_per_sample is not None for p in report.points)

    def height(p: Point) -> float:
        return 1e3 * p.joules_per_sample if by_energy and p.joules_per_sample is not None else p.samples_per_s

    variants = list(dict.fromkeys(p.variant for p in report.points))
    powers = list(dict.fromkeys(p.power for p in report.points))
    for i, variant in enumerate(variants):
        for j, power in enumerate(powers):
            own = [p for p in report.points if (p.variant, p.power) == (variant, power)]
            axes.scatter(
                [1e3 * p.p99_s for p in own],
                [height(p) for p in own],
                s=26,
                color=COLORS[i % len(COLORS)],
                marker=_MARKS[j % len(_MARKS)],
                alpha=0.55,
                label=f"{variant} {power}".strip(),
                zorder=3,
            )
    front = [(1e3 * p.p99_s, height(p)) for p in report.front]
    if front:
        axes.plot(*zip(*front), color=_INK, linewidth=1, zorder=2, label="front")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(LogLocator(subs=()))
    if report.max_p99_s is not None:
        axes.axvline(1e3 * report.max_p99_s, color=_RED, linewidth=1)
        axes.annotate(
            "limit of p99",
            (1e3 * report.max_p99_s, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(4, -8),
            textcoords="offset points",
            fontsize=8.5,
            color=_RED,
        )
    if report.chosen is not None:
        p = report.chosen
        axes.scatter([1e3 * p.p99_s], [height(p)], s=170, facecolor="none", edgecolor=_INK, linewidth=1.8, zorder=4)
        words = ", ".join(filter(None, (setting_text(p.variant, p.batch, p.threads, p.streams), p.power)))
        axes.annotate(
            words,
            (1e3 * p.p99_s, height(p)),
            xytext=(0, 14),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_INK,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=5,
        )
    axes.set_xlabel("p99 of a call, ms", color=_INK)
    what = "Energy, mJ a sample (less is better)" if by_energy else "Throughput, samples/s (more is better)"
    axes.set_title(what, loc="left", fontsize=11, color=_INK)
    axes.margins(0.1)
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)
    figure.suptitle(f"{report.package}: {report.objective}", x=0.012, ha="left", fontsize=14, fontweight="bold")
    scope = f" · {report.scope}, by {report.source}" if report.scope else ""
    figure.supxlabel(f"{report.machine.cpu}{scope}", x=0.012, ha="left", fontsize=8.5, color=_GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
