"""The interface is the one that Triton's clients were made from, name by name and number by number."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from edgekit.serve.grpc.schema import FILES, file_descriptor, schema


def shape(message: Any) -> dict[str, Any]:
    """All that decides what a message's bytes mean."""
    out: dict[str, Any] = {}
    for field in message.fields:
        kind = field.message_type or field.enum_type
        oneof = field.containing_oneof
        out[field.name] = (
            field.number,
            field.type,
            field.is_repeated,
            field.is_packed,
            oneof and oneof.name,
            kind and kind.full_name,
        )
        if field.enum_type:
            out[f"{field.name} values"] = {v.name: v.number for v in field.enum_type.values}
    for nested in message.nested_types:
        out[f"message {nested.name}"] = shape(nested)
    return out


def test_every_message_is_tritons() -> None:
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    assert len(theirs) > 60
    for name, message in theirs.items():
        assert shape(schema().message(name).DESCRIPTOR) == shape(message), name


def test_every_method_is_tritons() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        ours = schema().methods[f"/{service.full_name}/{method.name}".encode()]
        assert ours.request.DESCRIPTOR.full_name == method.input_type.full_name
        assert ours.response.DESCRIPTOR.full_name == method.output_type.full_name
        assert ours.streaming == method.client_streaming == method.server_streaming
    assert len(schema().methods) == len(service.methods) + 1  # and health


def test_messages_live_beside_those_of_a_client_in_one_process() -> None:
    ours, theirs = schema().message("ModelInferRequest"), service_pb2.ModelInferRequest
    message = theirs(model_name="m")
    message.parameters["p"].double_param = 0.5
    again = ours.FromString(message.SerializeToString())
    assert again.parameters["p"].double_param == 0.5
    assert theirs.FromString(again.SerializeToString()) == message


@pytest.mark.parametrize(
    "text", ["import 'x';", 'syntax = "proto2";', "message A { reserved 1; }", "service A { other }"]
)
def test_what_is_not_understood_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"understood|expected|invalid literal"):
        file_descriptor("x.proto", text)
    assert "inference.proto" in FILES
