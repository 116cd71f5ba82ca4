from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import ModelError, RecipeError
from edgekit.export.torch_runner import TorchRunner, quiet
from edgekit.tensors import TensorSpec

X = TensorSpec("x", "float32", ("batch", 2))
FEED = {"x": np.array([[1, 2], [3, 4]], np.float32)}


class Returns(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def runner(function, **options) -> TorchRunner:
    return TorchRunner(Returns(function).eval(), [X], model="net", **options)


def test_outputs_are_named_by_the_recipe_by_dictionary_keys_or_by_number() -> None:
    assert list(runner(lambda x: (x, 2 * x), outputs=("a", "b")).run(FEED)) == ["a", "b"]
    assert list(runner(lambda x: {"score": x, "x": x}).run(FEED)) == ["score", "x_out"]
    assert list(runner(lambda x: [x, (x, None)]).run(FEED)) == ["output_0", "output_1"]
    result = runner(lambda x: x + 1).run(FEED)
    np.testing.assert_array_equal(result["output"], FEED["x"] + 1)


def test_inputs_go_by_name_where_forward_has_them_else_in_order() -> None:
    class Sub(nn.Module):
        def forward(self, b, a):
            return a - b

    a, b = TensorSpec("a", "float32", ("batch",)), TensorSpec("b", "float32", ("batch",))
    feed = {"a": np.array([5], np.float32), "b": np.array([3], np.float32)}
    assert TorchRunner(Sub(), [a, b], model="net").run(feed)["output"] == [2]

    class Star(nn.Module):
        def forward(self, *values):
            return values[0] - values[1]

    assert TorchRunner(Star(), [b, a], model="net").run(feed)["output"] == [-2]


def test_bfloat16_travels_as_its_bits() -> None:
    bits = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16).view(torch.uint16).numpy()
    double = TorchRunner(nn.Identity(), [TensorSpec("input", "bfloat16", ("batch", 2))], model="net")
    np.testing.assert_array_equal(double.run({"input": bits})["output"], bits)


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda x: torch.complex(x, x), ModelError, "Output 'output' has type complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), ModelError, "Output 'output' has type float8_e4m3fn"),
        (lambda x: None, RecipeError, "returns no tensor"),
        (lambda x: (x, "label"), RecipeError, "returns a str"),
        (lambda x: x @ x.new_zeros(5, 5), RecipeError, "failed with RuntimeError: mat1 and mat2"),
    ],
)
def test_results_that_cannot_be_carried_are_named(function, error, says) -> None:
    with pytest.raises(error, match=says):
        runner(function).run(FEED)


def test_output_names_must_fit() -> None:
    with pytest.raises(RecipeError, match=r"returns 2 tensors, its recipe names 1 outputs \(a\)"):
        runner(lambda x: (x, x), outputs=("a",)).run(FEED)
    with pytest.raises(RecipeError, match="use the name 'x' twice"):
        runner(lambda x: x, outputs=("x",))


def test_quiet_restores_log_levels() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
