"""Header blocks: what is remembered is never believed after the table changed."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.serve.grpc.route import INFER, route_of
from edgekit.serve.grpc.status import CallError, Status, error_block, percent_encoded
from edgekit.serve.h2.frames import Code, ConnectionFault
from edgekit.serve.h2.headers import HeaderReader, encode, head_of

BASE = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("content-type", "application/grpc")]
EXTRA = st.sampled_from(
    [("a", "1"), ("a", "2"), ("bb", "x" * 100), ("c", "y" * 1500), ("d", "z" * 3000), ("te", "trailers")]
)
LISTS = st.lists(st.lists(EXTRA, max_size=4), min_size=2, max_size=30)


@settings(max_examples=120, deadline=None)
@given(LISTS, st.lists(st.sampled_from([0, 64, 300, 4096]), max_size=5))
def test_a_reader_with_a_memory_reads_as_one_without(lists: list[list[tuple[str, str]]], sizes: list[int]) -> None:
    encoder, plain, reader = hpack.Encoder(), hpack.Decoder(), HeaderReader(max_list_bytes=1 << 16)
    for i, extra in enumerate(lists * 2):
        if sizes and i % 5 == 4:
            encoder.header_table_size = sizes[i % len(sizes)]
        block = encoder.encode(BASE + extra)
        wanted = head_of(list(plain.decode(block, raw=True)))
        got = reader.read(block)
        assert (got.method, got.path, got.headers, got.fault) == (
            wanted.method,
            wanted.path,
            wanted.headers,
            wanted.fault,
        )


def test_a_block_that_repeats_is_decoded_once() -> None:
    encoder, reader = hpack.Encoder(), HeaderReader(max_list_bytes=1 << 16)
    reader.read(encoder.encode(BASE))
    block = encoder.encode(BASE)
    head = reader.read(block)
    assert reader.read(block) is head
    reader.read(encoder.encode([*BASE, ("new", "1")]))
    assert reader.read(encoder.encode(BASE)) is not head
    for i in range(500):
        reader.read(block[:-1] + bytes((block[-1],)) + b"\x00\x01x" + bytes((2,)) + b"%02d" % (i % 100))
    assert len(reader.known) <= 16


def test_damage_ends_the_connection() -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderReader(max_list_bytes=100).read(b"\xff\xff")
    assert caught.value.code == Code.COMPRESSION_ERROR
    with pytest.raises(ConnectionFault) as caught:
        HeaderReader(max_list_bytes=100).read(hpack.Encoder().encode([("a", "b" * 200)]))
    assert caught.value.code == Code.ENHANCE_YOUR_CALM


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=400)), max_size=5))
def test_what_is_encoded_leaves_the_peers_table_alone(fields: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder()
    assert list(decoder.decode(encode(fields), raw=True)) == fields
    assert not decoder.header_table.dynamic_entries


@given(st.text())
def test_messages_survive_percent_encoding(text: str) -> None:
    from urllib.parse import unquote

    raw = percent_encoded(text)
    assert all(0x20 <= byte <= 0x7E for byte in raw)
    assert unquote(raw.decode()) == text.encode(errors="replace").decode()


def test_routes() -> None:
    methods = {b"/a": INFER}

    def route(**extra: str) -> object:
        fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in extra.items()]
        base = [(k.encode(), v.encode()) for k, v in BASE if k.replace("-", "_") not in extra]
        return route_of(head_of([*base, *fields]), methods)

    for text, seconds in (("5S", 5), ("100m", 0.1), ("2M", 120), ("1H", 3600), ("7u", 7e-6), ("9n", 9e-9)):
        assert route(grpc_timeout=text).timeout_s == pytest.approx(seconds)
    for text in ("5", "S", "123456789S", "-1S", "1s", " 1S", "1.5S"):
        assert route(grpc_timeout=text).refusal is not None
    assert [route(grpc_encoding=e).encoding for e in ("identity", "gzip", "deflate")] == ["", "gzip", "deflate"]
    assert route(grpc_encoding="br").refusal is not None
    for kind in ("application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8"):
        assert route(content_type=kind).refusal is None
    for kind in ("application/grpc+json", "application/grpc-web", "text/plain"):
        assert route(content_type=kind).refusal is not None


def test_a_later_try_is_offered_where_it_may_help() -> None:
    block = error_block(CallError(Status.RESOURCE_EXHAUSTED, "full", retry_after_s=2))
    fields = dict(hpack.Decoder().decode(block))
    assert fields["grpc-retry-pushback-ms"] == "2000"
    assert fields[":status"] == "200"
