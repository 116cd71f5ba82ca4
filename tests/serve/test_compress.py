"""gzip and deflate of bodies."""

from __future__ import annotations

import gzip
import zlib

import pytest

from edgekit.errors import InputError
from edgekit.serve.compress import accepted, compress, decompress
from edgekit.serve.messages import RequestError

TEXT = b"sixteen bytes.. " * 1000


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_compressed_is_read_again(coding: str) -> None:
    packed = compress([TEXT[:100], memoryview(TEXT)[100:]], coding)
    assert len(packed) < len(TEXT) / 10
    assert decompress(packed, coding, max_bytes=len(TEXT)) == TEXT


def test_forms_that_clients_send() -> None:
    bare = zlib.compressobj(wbits=-15)
    for body, coding in (
        (gzip.compress(TEXT), "x-gzip"),
        (gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]), "gzip"),  # two members
        (zlib.compress(TEXT), "deflate"),
        (bare.compress(TEXT) + bare.flush(), "deflate"),
        (TEXT, "identity"),
    ):
        assert decompress(body, coding, max_bytes=1 << 20) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(coding: str) -> None:
    bomb = compress([bytes(10_000_000)], coding)
    assert len(bomb) < 100_000
    with pytest.raises(RequestError, match="longer than 1000 bytes") as caught:
        decompress(bomb, coding, max_bytes=1000)
    assert caught.value.status == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_broken_streams(coding: str) -> None:
    whole = compress([TEXT], coding)
    for body in (b"", whole[:-5], whole + b"x", b"nonsense, and then some", bytes(30)):
        with pytest.raises(InputError):
            decompress(body, coding, max_bytes=1 << 20)


def test_an_unknown_coding() -> None:
    with pytest.raises(RequestError, match="'br' is not known") as caught:
        decompress(b"", "br", max_bytes=1)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("gzip", "gzip"),
        ("GZIP, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0", ""),
        ("identity", ""),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip; q = nonsense", ""),
        ("br", ""),
        ("", ""),
    ],
)
def test_what_a_client_accepts(header: str, coding: str) -> None:
    assert accepted(header) == coding
