"""Answers kept for requests that repeat, addressed by the content of their inputs and bounded in bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from edgekit.tensors import Feed, Tensors

ENTRY_BYTES = 512
"""What an entry costs beside its tensors, about."""


def key_of(feed: Feed) -> bytes:
    """A digest of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(feed):
        value = feed[name]
        if value.dtype == object:
            data = b"".join(b"%d:%b" % (len(t), t) for t in (str(v).encode() for v in value.ravel().tolist()))
        else:
            data = value.tobytes()
        digest.update(f"{len(name)}:{name}{value.dtype.str}{value.shape}{len(data)}:".encode())
        digest.update(data)
    return digest.digest()


class Cache:
    """Outputs by the digest of their inputs; those not used for longest make room. Not for several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[bytes, tuple[Tensors, int]] = OrderedDict()

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._entries)

    def get(self, key: bytes) -> Tensors | None:
        """The outputs under `key`, which callers leave as they are; or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, outputs: Tensors) -> None:
        """Keep `outputs`, unless they alone are too large."""
        # a view of a joined run would keep the whole run in memory
        own = {name: value if value.base is None else value.copy() for name, value in outputs.items()}
        size = ENTRY_BYTES
        for value in own.values():
            size += value.nbytes if value.dtype != object else sum(60 + len(str(v)) for v in value.ravel())
        if size > self.max_bytes:
            return
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        self._entries[key] = (own, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self.bytes -= self._entries.popitem(last=False)[1][1]
