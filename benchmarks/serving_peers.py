"""Servers that serving.py measures edgekit against, each in an environment of its own: nothing of edgekit is imported.

    python benchmarks/serving_peers.py NAME MODEL.onnx PORT

All do what edgekit does for the request of serving.py, in the least code their makers ask for: 64 float32 to ONNX
Runtime (one thread) and 10 float32 back. `floor` and `uvicorn` do not look at the JSON part at all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}
HEAD = json.dumps({"model_name": "mlp", "model_version": "1", "outputs": [OUTPUT]}, separators=(",", ":")).encode()
LINES = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)


def session_of(model: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def serve_uvicorn(model: str, port: int) -> None:
    """A bare ASGI handler that does nothing but call ONNX Runtime."""
    import uvicorn

    session = session_of(model)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(HEAD)),
        (b"content-length", b"%d" % (len(HEAD) + 40)),
    ]
    empty = [(b"content-length", b"0")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] == "GET":
            await send({"type": "http.response.start", "status": 200, "headers": empty})
            await send({"type": "http.response.body", "body": b""})
            return
        head = 0
        for name, value in scope["headers"]:
            if name == b"inference-header-content-length":
                head = int(value)
        x = np.frombuffer(body, np.float32, 64, head).reshape(1, 64)
        (y,) = session.run(["y"], {"x": x})
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": HEAD + y.tobytes()})

    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="error", access_log=False)


def serve_floor(model: str, port: int) -> None:
    """`asyncio.Protocol`, httptools and uvloop: what Python costs at least."""
    import httptools
    import uvloop

    session = session_of(model)
    answer_head = LINES % (len(HEAD), len(HEAD) + 40) + HEAD

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.parser = httptools.HttpRequestParser(self)
            self.body, self.head = b"", 0

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_header(self, name: bytes, value: bytes) -> None:
            if name.lower() == b"inference-header-content-length":
                self.head = int(value)

        def on_body(self, body: bytes) -> None:
            self.body = self.body + body if self.body else body

        def on_message_complete(self) -> None:
            if not self.body:
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                return
            x = np.frombuffer(self.body, np.float32, 64, self.head).reshape(1, 64)
            (y,) = session.run(["y"], {"x": x})
            self.transport.write(answer_head + y.tobytes())
            self.body = b""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


if sys.argv[1:2] == ["litserve"]:  # its processes import this file and look for the class by name, as MLServer does
    import litserve

    class LitApi(litserve.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            self.session = session_of(sys.argv[2])

        def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe reads the annotation
            return np.array(request["x"], np.float32).reshape(1, 64)

        def predict(self, x: Any) -> Any:
            return self.session.run(["y"], {"x": x})[0]

        def encode_response(self, y: Any) -> Any:
            return {"y": y[0].tolist()}


def serve_litserve(_model: str, port: int) -> None:
    """JSON: {"x": [64 numbers]} to {"y": [10 numbers]}, as its guide shows."""
    server = litserve.LitServer(LitApi(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False, access_log=False)


if sys.argv[1:2] == ["mlserver"]:
    import mlserver
    from mlserver.codecs import NumpyCodec

    class MlModel(mlserver.MLModel):  # type: ignore[misc]
        async def load(self) -> bool:
            self.session = session_of(sys.argv[2])
            return True

        async def predict(self, payload: mlserver.types.InferenceRequest) -> mlserver.types.InferenceResponse:
            x = NumpyCodec.decode_input(payload.inputs[0])
            (y,) = self.session.run(["y"], {"x": x.astype(np.float32).reshape(1, 64)})
            return mlserver.types.InferenceResponse(model_name="mlp", outputs=[NumpyCodec.encode_output("y", y)])


def serve_mlserver(_model: str, port: int) -> None:
    """JSON, without parallel workers, which only make it slower here."""
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    server = mlserver.MLServer(mlserver.Settings(parallel_workers=0, host="127.0.0.1", debug=False, **ports))
    asyncio.run(server.start([mlserver.ModelSettings(name="mlp", implementation=MlModel)]))


def serve_kserve(model: str, port: int) -> None:
    """One process, binary tensors."""
    import kserve
    from kserve.protocol.infer_type import InferOutput, InferResponse

    class Mlp(kserve.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("mlp")
            self.session, self.ready = session_of(model), True

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            x = payload.inputs[0].as_numpy().astype(np.float32).reshape(1, 64)
            (y,) = self.session.run(["y"], {"x": x})
            output = InferOutput("y", [1, 10], "FP32")
            output.set_data_from_numpy(y, binary_data=True)
            return InferResponse("", "mlp", [output])

    kserve.ModelServer(http_port=port, enable_grpc=False, workers=1, access_log_format=None).start([Mlp()])


def main() -> None:
    name, model, port = sys.argv[1:4]
    globals()[f"serve_{name}"](model, int(port))


if __name__ == "__main__":
    main()
