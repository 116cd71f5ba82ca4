from __future__ import annotations

from typing import Any

import onnx
import pytest

from plugins_trt.body import Body, add_functions, function_of, model_of
from plugins_trt.errors import PluginError
from plugins_trt.registry import operator, operators


def without_functions(name: str, opset: int = 18) -> Any:
    """A model whose node has lost its function, as PyTorch's exporter writes it."""
    op = operator(name)
    model = model_of(op, op.examples()[0])
    del model.functions[:]
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = opset
    return model


@pytest.mark.parametrize("opset", [18, 20, 21])
def test_functions_are_added_for_the_models_own_operator_set(opset: int) -> None:
    model = without_functions("group_norm_silu", opset)
    made = add_functions(model, tuple(operators().values()))
    assert [f.name for f in made.functions] == ["group_norm_silu"]
    assert made.functions[0].opset_import[0].version == opset
    onnx.checker.check_model(made, full_check=True)
    assert not model.functions, "what is given is not changed"
    assert add_functions(made, tuple(operators().values())) == made


def test_a_model_that_is_too_old_is_refused() -> None:
    with pytest.raises(PluginError, match="operator set is 17, and the functions of group_norm_silu need 18"):
        add_functions(without_functions("group_norm_silu", 17), tuple(operators().values()))


def test_a_model_without_the_operators_stays_as_it_is() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    assert add_functions(model, tuple(operators().values())) == model


def test_a_node_inside_a_branch_gets_its_function() -> None:
    inner = without_functions("group_norm_silu")
    branch = onnx.helper.make_graph(inner.graph.node, "then", [], inner.graph.output)
    node = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    graph = onnx.helper.make_graph([node], "g", [flag, *inner.graph.input], inner.graph.output)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    made = add_functions(model, tuple(operators().values()))
    assert [f.name for f in made.functions] == ["group_norm_silu"]
    assert {o.domain for o in made.opset_import} == {"", "edgekit"}


@pytest.mark.parametrize("name", operators())
def test_a_function_declares_every_attribute(name: str) -> None:
    op = operator(name)
    function = function_of(op)
    assert list(function.attribute) == [attribute.name for attribute in op.attributes]
    assert list(function.input) == [port.name for port in op.inputs]
    assert list(function.output) == list(op.outputs)


def test_a_body_with_too_few_outputs_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="has 2 outputs, its body 1"):
        Body(operator("layer_norm_residual_sum")).returns("y")
