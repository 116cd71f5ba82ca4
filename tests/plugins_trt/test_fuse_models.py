"""Whole models, as PyTorch's two exporters write them: everything there is to find is found, and computes the same."""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.quantize.fp16 import half_model
from edgekit.quantize.prepare import prepared
from edgekit.runtime.ort import OrtSession
from plugins_trt.fuse import fused
from plugins_trt.nodes import with_plugins
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn
silu = nn.functional.silu


class Residual(nn.Module):  # type: ignore[misc,name-defined]
    """A block of a diffusion U-Net: two norms with SiLU and convolutions, the time step in between."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, channels), nn.GroupNorm(4, out, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.time, self.skip = nn.Linear(16, out), nn.Conv2d(channels, out, 1)

    def forward(self, x: Any, t: Any) -> Any:
        h = self.conv1(silu(self.norm1(x))) + self.time(silu(t))[:, :, None, None]
        return self.conv2(silu(self.norm2(h))) + self.skip(x)


class UNet(nn.Module):  # type: ignore[misc,name-defined]
    """Down, up, and a norm before the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.up = Residual(8, 16), Residual(16, 32), Residual(48, 16)
        self.shrink, self.twice = nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)
        self.norm, self.out = nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Any, t: Any) -> Any:
        h = self.down(x, t)
        low = self.twice(self.low(self.shrink(h), t))
        return self.out(silu(self.norm(self.up(torch.cat([h, low], 1), t))))


class Speech(nn.Module):  # type: ignore[misc,name-defined]
    """LSTM layers in both directions, then an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 20, num_layers=2, bidirectional=True, batch_first=True)
        layer = nn.TransformerEncoderLayer(40, 2, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Any) -> Any:
        return self.encoder(self.lstm(x)[0])


INPUTS = {UNet: {"x": (2, 8, 16, 16), "t": (2, 16)}, Speech: {"x": (2, 7, 10)}}
FOUND = {UNet: {"group_norm_silu": 7}, Speech: {"lstm": 2, "layer_norm_residual": 2}}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@cache
def exported(net: Any, *, dynamo: bool) -> Any:
    """The model at operator set 18, with a free batch."""
    shapes = INPUTS[net]
    torch.manual_seed(0)
    arrays, options = tuple(torch.randn(s) for s in shapes.values()), {"opset_version": 18, "verbose": False}
    if dynamo:
        free = tuple({0: torch.export.Dim("batch")} for _ in shapes)
        return torch.onnx.export(net().eval(), arrays, dynamo=True, dynamic_shapes=free, **options).model_proto
    data = io.BytesIO()
    free_axes = {name: {0: "batch"} for name in shapes}
    names = list(shapes)
    torch.onnx.export(
        net().eval(), arrays, data, dynamo=False, dynamic_axes=free_axes, input_names=names, do_constant_folding=True,
        **options,
    )  # fmt: skip
    return onnx.load_from_string(data.getvalue())


@pytest.mark.parametrize("net", [UNet, Speech])
@pytest.mark.parametrize("how", ["dynamo", "dynamo half", "torchscript"])
def test_all_that_there_is_in_a_model(net: Any, how: str) -> None:
    model = exported(net, dynamo=how != "torchscript")
    model = half_model(prepared(model)) if "half" in how else model
    made, fusions = fused(model, operators().values())
    assert Counter(fusion.operator for fusion in fusions) == FOUND[net]
    kinds = {node.op_type for node in made.graph.node}
    assert not kinds & {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "LSTM"}
    plugged = with_plugins(made, operators(), sm=87)
    assert not plugged.refused
    assert len(plugged.used) == sum(FOUND[net].values())
    dtype = "float16" if "half" in how else "float32"
    assert all(use.inputs.startswith(dtype) for use in plugged.used)
    rng = np.random.default_rng(0)
    names = [value.name for value in model.graph.input]
    shapes = dict(zip(names, INPUTS[net].values()))
    feed = {name: rng.standard_normal((3, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.SerializeToString()) as after:
        want = list(before.run(feed).values())
        assert_close(list(after.run(feed).values()), want, relative=1e-2 if "half" in how else 1e-4)
