"""The OpenAPI document: every path in it is answered, every reference in it is there, and answers fit what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.serve.running import Client

FILLED = {"{name}": "tiny", "{version}": "1", "{region}": "part"}


@pytest.fixture
def document(client: Client) -> dict[str, Any]:
    return dict(client.ask("GET", "/v2/openapi.json").json)


def test_every_path_is_answered_with_the_statuses_that_it_names(client: Client, document: dict[str, Any]) -> None:
    asked = 0
    for path, methods in document["paths"].items():
        target = re.sub(r"\{[a-z]+\}", lambda found: FILLED[found[0]], path)
        if target.endswith(("/load", "/unload")):
            continue  # the server of these tests is shared
        for method in ("get", "post"):
            if method in methods:
                answer = client.ask(method.upper(), target, b"{" if method == "post" else b"")
                assert str(answer.status) in methods[method]["responses"], (method, target, answer.status)
                asked += 1
            else:
                assert client.ask(method.upper(), target).status == 405
    assert asked > 20


def test_answers_have_what_the_document_promises(client: Client, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def assert_fits(value: Any, schema: dict[str, Any]) -> None:
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
        if "$ref" in schema:
            assert_fits(value, schemas[schema["$ref"].rpartition("/")[2]])
            return
        if "type" in schema:
            assert isinstance(value, kinds[schema["type"]])
        for name in schema.get("required", ()):
            assert name in value
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                assert_fits(value[name], inner)
        if schema.get("type") == "array":
            for item in value:
                assert_fits(item, schema["items"])
        if "enum" in schema:
            assert value in schema["enum"]

    sample = client.ask("GET", "/v2/models/tiny/sample").body
    for path, method, body in (
        ("/v2", "get", b""),
        ("/v2/models/{name}", "get", b""),
        ("/v2/models/{name}/stats", "get", b""),
        ("/v2/models/{name}/sample", "get", b""),
        ("/v2/models/{name}/infer", "post", sample),
        ("/v2/repository/index", "post", b""),
        ("/v2/systemsharedmemory/status", "get", b""),
    ):
        answer = client.ask(method.upper(), path.replace("{name}", "tiny"), body)
        assert answer.status == 200
        assert_fits(
            answer.json, document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        )


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        node: Any = document
        for part in reference.split("/"):
            node = node[part]
