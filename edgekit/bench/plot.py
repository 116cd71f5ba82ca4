"""One picture of a benchmark: latency percentiles by variant, throughput over batch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from edgekit._lazy import require
from edgekit.bench.report import BenchReport, VariantBench

COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd")
_INK, _GREY = "#222222", "#8a8a8a"


def png_of(report: BenchReport) -> bytes:
    """The report as a PNG image.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", why="draw reports/bench.png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(report.variants)
    figure = Figure(figsize=(11, max(4.2, 1.9 + 0.75 * rows)), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    several = any(len(v.sweep) > 1 for v in report.variants)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _latencies(left, report)
    if several:
        _throughputs(right, report.variants)
    else:
        _rates(right, report.variants)
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    figure.suptitle(report.package, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
    where = f"{report.machine.cpu} · {report.variants[0].device.partition(',')[0]} · {threads} · {report.inputs}"
    figure.supxlabel(where, x=0.012, ha="left", fontsize=8.5, color=_GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _latencies(axes: Any, report: BenchReport) -> None:
    """A bar to the median, a line on to p99 with marks at p90 and p99, and the maximum in words."""
    variants = report.variants
    longest_s = max(v.latency.p99_s for v in variants)
    unit, scale = ("ms", 1e3) if max(v.latency.p50_s for v in variants) >= 1e-3 else ("µs", 1e6)
    # A tail of many medians would squeeze the bars: it is cut, and said in words.
    right = scale * min(1.2 * longest_s, 5 * max(v.latency.p50_s for v in variants))
    for place, v in enumerate(variants):
        p50, p90, p99, most = (scale * x for x in (v.latency.p50_s, v.latency.p90_s, v.latency.p99_s, v.latency.max_s))
        end = min(p99, 0.74 * right)
        axes.barh(place, p50, height=0.5, color=COLORS[place % len(COLORS)], alpha=0.9, zorder=2)
        axes.plot([p50, end], [place, place], color=_INK, linewidth=1.2, zorder=3)
        if p90 <= end:
            axes.plot([p90], [place], marker="|", markersize=9, color=_INK, zorder=3)
        axes.plot([end], [place], marker="|" if end == p99 else ">", markersize=16 if end == p99 else 6, color=_INK)
        speed = "" if v.id == report.reference else f"   {v.speedup.ratio:.2f}× {report.reference}"
        axes.annotate(f"{_short(p50)} {unit}{speed}", (0, place - 0.37), va="center", fontsize=9, color=_INK)
        tail = f"max {_short(most)}" if end == p99 else f"p99 {_short(p99)}, max {_short(most)}"
        style = {"va": "center", "fontsize": 8.5, "color": _GREY}
        axes.annotate(tail, (end, place), xytext=(6, 0), textcoords="offset points", **style)
    axes.set_yticks(range(len(variants)), [v.id for v in variants], fontsize=10)
    axes.set_ylim(len(variants) - 0.5, -0.7)
    axes.set_xlim(0, right)
    axes.set_xlabel(f"latency at batch {report.batch}, {unit}   (bar: p50, marks: p90 and p99)", color=_INK)
    axes.set_title("Latency (less is better)", loc="left", fontsize=11, color=_INK)
    _plain(axes, grid="x")


def _throughputs(axes: Any, variants: Sequence[VariantBench]) -> None:
    """Samples a second over batch size; each variant's best point is filled and named."""
    sizes = sorted({p.batch for v in variants for p in v.sweep})
    for place, v in enumerate(variants):
        color = COLORS[place % len(COLORS)]
        xs, ys = [p.batch for p in v.sweep], [p.samples_per_s for p in v.sweep]
        axes.plot(xs, ys, color=color, marker="o", markersize=5, markerfacecolor="white", linewidth=1.8, label=v.id)
        axes.plot([v.throughput.batch], [v.throughput.samples_per_s], marker="o", markersize=7, color=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.12 * max(v.throughput.samples_per_s for v in variants))
    axes.set_xlabel("batch size   (filled: best)", color=_INK)
    axes.set_title("Throughput, samples/s (more is better)", loc="left", fontsize=11, color=_INK)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=9, loc="best")
    _plain(axes, grid="y")


def _rates(axes: Any, variants: Sequence[VariantBench]) -> None:
    """Throughput of models whose batch is fixed: one bar a variant."""
    for place, v in enumerate(variants):
        rate = v.throughput.samples_per_s
        axes.barh(place, rate, height=0.5, color=COLORS[place % len(COLORS)], alpha=0.9, zorder=2)
        axes.annotate(_short(rate), (rate, place - 0.36), ha="right", va="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(variants)), [v.id for v in variants], fontsize=10)
    axes.set_ylim(len(variants) - 0.5, -0.7)
    axes.set_xlim(0, 1.12 * max(v.throughput.samples_per_s for v in variants))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("samples/s at the model's own batch", color=_INK)
    axes.set_title("Throughput (more is better)", loc="left", fontsize=11, color=_INK)
    _plain(axes, grid="x")


def _plain(axes: Any, *, grid: str) -> None:
    for side in ("top", "right", "left" if grid == "x" else "top"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
