from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.errors import UsageError
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.weight_only import BLOCK, blocked, weight_only
from tests.quantize.nets import conv_net, mlp_block, model_of, random
from tests.quantize.test_qdq import data_of


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_rounded_within_half_a_step(bits: int) -> None:
    weight = random(70, 9)
    values, scale = blocked(weight, bits=bits)
    assert values.shape == (70, 9)
    assert scale.shape == (3, 9)
    back = values * np.repeat(scale, BLOCK, axis=0)[:70]
    error = float(((back - weight) ** 2).sum() / (weight**2).sum())
    assert error < (1e-2 if bits == 4 else 5e-5)


@pytest.mark.parametrize(("bits", "most"), [(8, 3e-4), (4, 2e-2)])
def test_a_transformer_block(bits: int, most: float) -> None:
    model, data = prepared(mlp_block()), data_of(random(8, 6, 32))
    made = weight_only(model, bits=bits)
    onnx.checker.check_model(made, full_check=True)
    assert made.ByteSize() < model.ByteSize() / (2 if bits == 8 else 3)
    assert 0 < gap(outputs_of(model, data), outputs_of(made, data), classes=False).error < most


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_either_side_transposed(trans: int) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=trans)]
    weight = random(64, 32)
    model = prepared(model_of(nodes, {"w": weight.T.copy() if trans else weight}, {"x": ("batch", 64)}, ["y"]))
    data = data_of(random(8, 64))
    made = weight_only(model, bits=8)
    assert gap(outputs_of(model, data), outputs_of(made, data), classes=False).error < 1e-4


def test_a_model_without_large_products_is_refused() -> None:
    with pytest.raises(UsageError, match="no MatMul or Gemm with 1024 weights"):
        weight_only(prepared(conv_net()), bits=4)
