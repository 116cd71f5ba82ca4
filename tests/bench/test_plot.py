from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgekit.bench import BatchPoint, BenchReport, Latency, Machine, SpeedUp, VariantBench
from edgekit.bench.plot import png_of
from edgekit.errors import MissingDependencyError


def report(variants: int = 3, *, sweep: int = 7, tail: float = 1.5) -> BenchReport:
    """A report with made-up figures, to draw."""
    rows = []
    for i in range(variants):
        p50_s = 0.01 / (1 + i)
        points = tuple(
            BatchPoint(batch=2**k, samples_per_s=100 * (1 + i) * (k + 1), p50_s=p50_s, calls=5) for k in range(sweep)
        )
        rows.append(
            VariantBench(
                id=f"v{i}",
                precision="fp32",
                bytes=1,
                device="ONNX Runtime 1.31, CPU, 2 threads",
                latency=Latency(
                    calls=100, p50_s=p50_s, p90_s=1.2 * p50_s, p99_s=tail * p50_s, max_s=9 * tail * p50_s, mean_s=p50_s
                ),
                speedup=SpeedUp(ratio=1 + i, low=1, high=2, rounds=4),
                warmup_calls=5,
                steady=True,
                throughput=points[-1],
                sweep=points,
            )
        )
    return BenchReport(
        edgekit="0",
        package="made_up.edge",
        package_digest="",
        created="2026-01-01",
        machine=Machine(cpu="A CPU", architecture="x86_64", cores=2, system="Linux"),
        batch=1,
        threads=2,
        inputs="random tensors",
        real_inputs=False,
        reference="v0",
        variants=tuple(rows),
    )


@pytest.mark.parametrize(
    "drawn",
    [report(), report(1, sweep=1), report(8, sweep=1), report(2, tail=60)],
    ids=["three", "one", "many", "tail"],
)
def test_a_picture_is_drawn_with_a_colour_for_each_variant(drawn: BenchReport) -> None:
    with Image.open(io.BytesIO(png_of(drawn))) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert 0.4 < (pixels == 255).all(axis=2).mean() < 0.98
    bars = [np.array([int(h[i : i + 2], 16) for i in (1, 3, 5)]) for h in ("#4c72b0", "#dd8452")]
    for color in bars[: len(drawn.variants)]:
        near = (np.abs(pixels.astype(int) - color).sum(axis=2) < 70).sum()
        assert near > 200


def test_no_global_state_of_matplotlib_is_touched() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    png_of(report())
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"edgekit\[bench\]"):
        png_of(msgspec.structs.replace(report()))
