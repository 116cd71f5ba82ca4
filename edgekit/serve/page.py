"""The live page at /: its files, the sample that its form sends, and who may use a browser to ask."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edgekit.serve.http_messages import Handler, HttpRequest, HttpResponse, Respond, error_response
from edgekit.serve.messages import RequestError
from edgekit.serve.model import Model
from edgekit.tensors import dtype_of, take_samples

_FILES = {
    "": ("page.html", b"text/html; charset=utf-8"),
    "page.css": ("page.css", b"text/css; charset=utf-8"),
    "page.js": ("page.js", b"text/javascript; charset=utf-8"),
}
_HEADERS = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n"
)
MOST_VALUES = 1_000_000
"""A sample with more values is not told as JSON."""


def page_file(name: str) -> Handler:
    """Answers with a file of the page: "" is the page itself."""
    return lambda _request, respond: respond(HttpResponse(200, [_read(name)], _FILES[name][1], _HEADERS))


@cache
def _read(name: str) -> bytes:
    from importlib.resources import files  # only for those who look

    return files("edgekit.serve").joinpath("assets", _FILES[name][0]).read_bytes()


def sample_request(model: Model) -> dict[str, Any]:
    """An inference request, ready to be sent, with one sample of the model's package.

    Raises:
        RequestError: the package has no sample (404), or one that is too large for JSON (413).
        PackageError, IntegrityError: the package cannot be read (any more).
    """
    from edgekit.package import Package

    if model.path is None or not model.path.is_dir():
        raise RequestError(404, f"Model '{model.name}' comes from no package, so there is no sample of it.")
    package = Package.open(model.path)
    if package.manifest.samples is None:
        raise RequestError(404, f"The package of '{model.name}' holds no samples.")
    feed = take_samples(package.samples().inputs, model.inputs, 0, 1, model.inputs)
    values = sum(value.size for value in feed.values())
    if values > MOST_VALUES:
        raise RequestError(413, f"A sample of '{model.name}' has {values} values, more than fit into JSON.")
    inputs = [
        {
            "name": spec.name,
            "shape": list(feed[spec.name].shape),
            "datatype": dtype_of(spec.dtype).oip,
            "data": _plain(feed[spec.name]),
        }
        for spec in model.inputs
        if spec.name in feed
    ]
    request: dict[str, Any] = {"inputs": inputs}
    if model.labels and model.outputs:
        request["outputs"] = [{"name": model.outputs[0].name, "parameters": {"classification": 5}}]
    return request


def _plain(value: np.ndarray[Any, Any]) -> list[Any]:
    if value.dtype.kind == "f":
        return [float(f"{x:.7g}") for x in value.ravel().tolist()]
    return [x.decode(errors="replace") if isinstance(x, bytes) else x for x in value.ravel().tolist()]


def same_site(handle: Handler) -> Handler:
    """`handle`, except what a browser sends for another site's page: that site has no business here.

    A page that is open in a browser on this machine reaches servers that only this machine can reach.
    """

    def answer(request: HttpRequest, respond: Respond) -> None:
        origin = request.headers.get(b"origin")
        if origin is None or _is_of(origin, request.headers.get(b"host", b"")):
            handle(request, respond)
            return
        error = RequestError(403, f"Pages of '{origin[:100].decode('latin-1')}' may not use this server.")
        respond(error_response(error))

    return answer


def _is_of(origin: bytes, host: bytes) -> bool:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").strip().lower()
    except ValueError:
        return False
