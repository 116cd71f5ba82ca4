"""gzip and deflate of whole bodies, bounded."""

from __future__ import annotations

import zlib

from edgekit.errors import InputError
from edgekit.serve.messages import RequestError

MIN_BYTES = 1024
"""Answers below this are sent as they are: the coding would not make them smaller."""

_GZIP, _ZLIB, _RAW = 31, 15, -15


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """`body` decoded from its Content-Encoding: "gzip", "deflate" or "identity".

    Raises:
        InputError: the body is not whole and valid in that coding.
        RequestError: the coding is unknown (415), or the decoded body is longer than `max_bytes` (413).
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RequestError(415, f"Content-Encoding '{encoding}' is not known; expected gzip, deflate or identity.")
    out = []
    left = max_bytes
    window = _GZIP
    if encoding == "deflate":  # the standard says zlib's format, some clients send the bare stream
        zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        window = _ZLIB if zlib_header else _RAW
    while True:
        stream = zlib.decompressobj(window)
        try:
            out.append(stream.decompress(body, left + 1))
        except zlib.error as error:
            raise InputError(f"The body is not valid {encoding} ({error}).") from None
        left -= len(out[-1])
        if left < 0:
            raise RequestError(413, f"The decoded body is longer than {max_bytes} bytes, the most this server reads.")
        if not stream.eof:
            raise InputError(f"The body is cut: its {encoding} stream does not end.")
        if not stream.unused_data:
            return out[0] if len(out) == 1 else b"".join(out)
        if window != _GZIP:
            raise InputError(f"The body goes on after its {encoding} stream ends.")
        body = stream.unused_data  # gzip may be several members in a row


def accepted(header: str) -> str:
    """The coding to answer with for an Accept-Encoding header: "gzip", "deflate", or "" for none."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, _, rest = item.partition(";")
        weight = 1.0
        key, _, value = rest.strip().partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
        weights[name.strip()] = weight
    other = weights.get("*", 0.0)
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, other))
    return best if weights.get(best, other) > 0 else ""


def compress(parts: list[bytes | memoryview], encoding: str) -> bytes:
    """`parts` as one body in "gzip" or "deflate", at the level that costs least."""
    stream = zlib.compressobj(1, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return b"".join([*(stream.compress(part) for part in parts), stream.flush()])
