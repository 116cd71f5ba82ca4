"""The HTTP door as an OpenAPI document, for tools that make clients, pages or tests of it."""

from __future__ import annotations

from typing import Any

import edgekit

_JSON = "application/json"
_NAMES = {
    "name": "the model's name",
    "version": "one of the model's versions",
    "region": "name of a region of shared memory",
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of every path that takes or gives JSON."""
    paths: dict[str, Any] = {
        "/v2/health/live": _get("Whether the server is there", bare=True),
        "/v2/health/ready": _get("Whether requests should be sent here", bare=True, also=(503,)),
        "/v2": _get("Name, version and extensions", "Server"),
        "/v2/repository/index": _post("Every model with its state", "IndexRequest", "Index", optional=True),
        "/v2/logging": {**_get("Settings of the log", "Settings"), **_post("Change them", "Settings", "Settings")},
        "/v2/trace/setting": {**_get("Settings of traces", "Settings"), **_post("Change them", "Settings", "Settings")},
        "/v2/models/stats": _get("Counters of all models", "Statistics"),
        "/v2/systemsharedmemory/status": _get("Regions of shared memory", "Regions"),
        "/v2/systemsharedmemory/unregister": _post("Forget all regions", "", ""),
        "/v2/systemsharedmemory/region/{region}/register": _post("Register a region", "Region", "", also=(403, 503)),
        "/v2/systemsharedmemory/region/{region}/unregister": _post("Forget a region", "", ""),
        "/v2/repository/models/{name}/load": _post("Load a model", "Control", "", optional=True, also=(403, 404)),
        "/v2/repository/models/{name}/unload": _post(
            "Serve a model no longer", "Control", "", optional=True, also=(403, 404)
        ),
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus",
                "responses": {"200": {"description": "text", "content": _TEXT}},
            }
        },
    }
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        paths[base] = _get("Inputs and outputs", "Model", also=(404,))
        paths[f"{base}/ready"] = _get("Whether the model takes requests", bare=True, also=(400,))
        paths[f"{base}/config"] = _get("The model in the words of Triton", "Config", also=(404,))
        paths[f"{base}/stats"] = _get("Its counters", "Statistics", also=(404,))
        paths[f"{base}/sample"] = _get("A request with a sample of its package", "InferRequest", also=(404, 413))
        paths[f"{base}/infer"] = _post("Run it", "InferRequest", "InferResponse", also=(404, 413, 415, 503, 504))
    for path, methods in paths.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        if names:
            methods["parameters"] = [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": _NAMES[name],
                    "schema": {"type": "string", "minLength": 1},
                }
                for name in names
            ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgekit",
            "version": edgekit.__version__,
            "description": "The Open Inference Protocol v2 with Triton's extensions.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "responses": {"Error": {"description": "One sentence", "content": _content("Error")}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def _content(schema: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _responses(schema: str, also: tuple[int, ...]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done"}
    if schema:
        good["content"] = _content(schema)
    return {"200": good, **{str(s): {"$ref": "#/components/responses/Error"} for s in sorted({401, 403, *also})}}


def _get(summary: str, schema: str = "", *, bare: bool = False, also: tuple[int, ...] = ()) -> dict[str, Any]:
    responses = _responses(schema, also)
    if bare:  # health says no more than its status
        responses |= {str(s): {"description": "No", "content": _content("Any")} for s in also}
    return {"get": {"summary": summary, "responses": responses}}


def _post(
    summary: str, takes: str, gives: str, *, optional: bool = False, also: tuple[int, ...] = ()
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(gives, (400, *also))}
    if takes:
        operation["requestBody"] = {"required": not optional, "content": _content(takes)}
    return {"post": operation}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_TENSOR = {"name": _STRING, "shape": _list({"type": "integer", "minimum": -1}), "datatype": {"enum": list(_DATATYPES)}}
_DATA = {"data": _list({}), "parameters": _ANY_OBJECT}
_SCHEMAS: dict[str, Any] = {
    "Any": {},
    "Error": _object({"error": _STRING}),
    "Server": _object({"name": _STRING, "version": _STRING, "extensions": _list(_STRING)}),
    "Model": _object(
        {
            "name": _STRING,
            "versions": _list(_STRING),
            "platform": _STRING,
            "inputs": _list(_object(_TENSOR)),
            "outputs": _list(_object(_TENSOR)),
        }
    ),
    "Config": _ANY_OBJECT,
    "Settings": _ANY_OBJECT,
    "Statistics": _object({"model_stats": _list(_ANY_OBJECT)}),
    "IndexRequest": _object({}, {"ready": {"type": "boolean"}}),
    "Index": _list(_object({"name": _STRING, "version": _STRING, "state": _STRING, "reason": _STRING})),
    "Control": _object({}, {"parameters": _ANY_OBJECT}),
    "Region": _object({"key": _STRING, "byte_size": {"type": "integer", "minimum": 1}}, {"offset": _COUNT}),
    "Regions": _list(_object({"name": _STRING, "key": _STRING, "offset": _COUNT, "byte_size": _COUNT})),
    "InferRequest": _object(
        {"inputs": _list(_object(_TENSOR, _DATA))},
        {
            "id": _STRING,
            "outputs": _list(_object({"name": _STRING}, {"parameters": _ANY_OBJECT})),
            "parameters": _ANY_OBJECT,
        },
    ),
    "InferResponse": _object(
        {"model_name": _STRING, "model_version": _STRING, "outputs": _list(_object(_TENSOR, _DATA))}, {"id": _STRING}
    ),
}
