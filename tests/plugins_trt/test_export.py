"""A recipe whose model uses an operator, through the commands that a user would type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import onnx
import pytest

RECIPE = """
import numpy as np
import torch
import plugins_trt.torch as ops
from edgekit import ModelSpec, TensorSpec

SHAPE = ("batch", 5, 64)

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 64)
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x, residual):
        y, total = ops.layer_norm_residual_sum(self.linear(x), residual, self.norm.weight, self.norm.bias, epsilon=1e-6)
        return torch.relu(y) + total

def samples(n, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, 5, 64)).astype(np.float32) for name in ("x", "residual")}

inputs = tuple(TensorSpec(name, "float32", SHAPE) for name in ("x", "residual"))
SPEC = ModelSpec(name="block", build=lambda: Block().eval(), inputs=inputs, samples=samples)
"""


def test_a_recipe_keeps_its_operators_through_export_and_fp16(
    tmp_path: Path, edgekit: Callable[..., CompletedProcess[str]]
) -> None:
    pytest.importorskip("torch")
    recipe, package = tmp_path / "block.py", tmp_path / "block.edge"
    recipe.write_text(RECIPE)
    for arguments in (
        ("export", recipe, "-o", package),
        ("quantize", package, "--precision", "fp16"),
        ("verify", package),
    ):
        done = edgekit(*arguments)
        assert done.returncode == 0, done.stderr
    for name in ("fp32.onnx", "fp16.onnx"):
        model = onnx.load(package / name)
        onnx.checker.check_model(model, full_check=True)
        (node,) = [node for node in model.graph.node if node.domain == "edgekit"]
        assert node.op_type == "layer_norm_residual_sum"
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"epsilon": pytest.approx(1e-6), "rms": 0}
        assert [f.name for f in model.functions] == ["layer_norm_residual_sum"]
