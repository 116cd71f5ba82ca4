"""Header blocks: decoded by the hpack library once, then known again while they mean the same; and encoded."""

from __future__ import annotations

import re
from typing import Any

from edgekit._lazy import require
from edgekit.serve.h2.frames import Code, ConnectionFault

TABLE_BYTES = 4096
"""Size of the peer's dynamic table, the protocol's default."""

EMPTY_TABLE = b"\x20"
"""The instruction, at the start of a block, that the sender's dynamic table has size 0 from here on."""

STATUS_200 = b"\x88"
_MAX_CACHED = 16
_MAX_CACHED_BYTES = 4096
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE_END = b" \t"
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))


class Head:
    """The head of one request. `headers` are the regular ones, joined by a comma where a name repeats.

    `fault` says why it is malformed as a request's head, if it is; `trailer` tells that it may follow a body.
    `route` is for the caller's own use: equal blocks share a Head.
    """

    __slots__ = ("fault", "headers", "method", "path", "route", "trailer")

    def __init__(
        self, method: bytes, path: bytes, headers: dict[bytes, bytes], *, fault: str = "", trailer: bool = False
    ) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.fault, self.trailer = fault, trailer
        self.route: Any = None


class HeaderReader:
    """Decodes the header blocks of one connection.

    A block's meaning depends on the connection's dynamic table. A steady client's blocks repeat byte for byte and leave
    that table alone, so they are remembered (`known`) until a block changes it.
    """

    def __init__(self, *, max_list_bytes: int) -> None:
        self._hpack = require("hpack", why="serve over gRPC")
        self._decoder = self._hpack.Decoder(max_header_list_size=max_list_bytes)
        self._table = self._decoder.header_table
        self.known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The head in `block`.

        Raises:
            ConnectionFault: the block cannot be decoded, or is too long; the table is not known any more.
        """
        head = self.known.get(block)
        if head is not None:
            return head
        entries = self._table.dynamic_entries
        first, count, size = entries[0] if entries else None, len(entries), self._table.maxsize
        try:
            fields = self._decoder.decode(block, raw=True)
        except self._hpack.OversizedHeaderListError:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "the header list is too long") from None
        except Exception as error:  # the library's own errors, and what it lets through on damaged input
            raise ConnectionFault(Code.COMPRESSION_ERROR, f"the header block is damaged ({error})") from None
        head = head_of(fields)
        entries = self._table.dynamic_entries  # an insertion makes a new first entry, a resize another size
        if len(entries) != count or self._table.maxsize != size or (entries and entries[0] is not first):
            self.known.clear()
        elif len(block) + sum(len(name) + len(value) for name, value in fields) <= _MAX_CACHED_BYTES:
            if len(self.known) >= _MAX_CACHED:
                self.known.clear()
            self.known[block] = head
        return head


def head_of(fields: list[tuple[bytes, bytes]]) -> Head:
    """A request's head from its fields in order, checked as RFC 9113, section 8.2 and 8.3 ask."""
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    fault = ""
    for name, value in fields:
        if name[:1] == b":":
            if headers or name in pseudo or name not in _PSEUDO:
                fault = "a pseudo-header is unknown, repeated or late"
            pseudo[name] = value
            continue
        if _NAME.fullmatch(name) is None or name in _CONNECTION or (name == b"te" and value != b"trailers"):
            fault = "a header's name is not one of HTTP/2"
        if b"\0" in value or b"\r" in value or b"\n" in value or value.strip(_VALUE_END) != value:
            fault = "a header's value holds what it may not"
        headers[name] = headers[name] + b"," + value if name in headers else value
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    trailer = not fault and not pseudo
    if not fault and (not method or not path or b":scheme" not in pseudo):
        fault = "a pseudo-header is missing"
    return Head(method, path, headers, fault=fault, trailer=trailer)


def encode(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A block of literal fields that leave the peer's table alone, so that it can be sent on any connection."""
    out = []
    for name, value in fields:
        out += [b"\x00", _length(len(name)), name, _length(len(value)), value]
    return b"".join(out)


def _length(size: int) -> bytes:
    """An integer with a 7-bit prefix (RFC 7541, section 5.1)."""
    if size < 127:
        return bytes((size,))
    out, rest = bytearray((127,)), size - 127
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)
