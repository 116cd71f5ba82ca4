"""Heads that repeat: what is remembered, and that a remembered head changes no answer."""

from __future__ import annotations

import socket

import pytest

from edgekit.serve.heads import MAX_HEAD_BYTES, MAX_HEADS, Heads
from edgekit.serve.http_messages import HttpRequest
from tests.serve.running import Client, infer_body, tensor

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"


def asked(**changes: object) -> HttpRequest:
    fields = {"method": b"POST", "target": b"/a", "headers": {b"content-length": b"3"}, "body": b"xyz"} | changes
    return HttpRequest(**fields)


def test_a_known_head_gives_the_request_with_its_own_body() -> None:
    heads = Heads()
    assert heads.find(HEAD + b"xyz") is None
    heads.learn(HEAD + b"xyz", asked())
    known = heads.find(HEAD + b"abc")
    assert known is not None
    request = known.request(HEAD + b"abc")
    assert (request.method, request.target, request.body, request.keep_alive) == (b"POST", b"/a", b"abc", True)


@pytest.mark.parametrize("body", [b"", b"xy", b"xyz!", b"xyz" + HEAD + b"xyz"])
def test_another_length_is_for_the_parser(body: bytes) -> None:
    heads = Heads()
    heads.learn(HEAD + b"xyz", asked())
    assert heads.find(HEAD + body) is None


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (HEAD + b"xyzGET", asked()),  # more than the request
        (b"\r\n\r\n" + HEAD + b"xyz", asked()),  # line ends before it
        (HEAD + b"xyz", asked(keep_alive=False)),
        (HEAD + b"xyz", asked(old=True)),
        (HEAD + b"xyz", asked(headers={})),
        (HEAD + b"xyz", asked(headers={b"content-length": b"3", b"x-request-id": b"7"})),
        (HEAD + b"xyz", asked(headers={b"content-length": b"3", b"expect": b"100-continue"})),
        (b"POST /" + b"a" * MAX_HEAD_BYTES + HEAD[7:] + b"xyz", asked()),
    ],
)
def test_what_is_not_remembered(data: bytes, request_: HttpRequest) -> None:
    heads = Heads()
    heads.learn(data, request_)
    assert heads.find(data) is None


def test_memory_is_bounded() -> None:
    heads = Heads()
    for k in range(3 * MAX_HEADS):
        heads.learn(HEAD.replace(b"/a", b"/%d" % k) + b"xyz", asked())
    assert len(heads._known) <= MAX_HEADS


def _request(value: int, *lines: str) -> bytes:
    body = infer_body(tensor("x", [1], [value]))
    head = "\r\n".join(["POST /v2/models/scaled/infer HTTP/1.1", "Host: a", *lines, f"Content-Length: {len(body)}"])
    return f"{head}\r\n\r\n".encode() + body


def test_requests_that_repeat_their_head_get_their_own_answers(client: Client) -> None:
    for k in range(4):
        client.send(_request(k))
        assert client.read().json["outputs"][0]["data"][0] == 2 * k


def test_a_known_head_behind_others_in_one_piece_or_in_several(client: Client) -> None:
    first, second = _request(1), _request(2)
    for _ in range(2):
        client.send(first)
        assert client.read().json["outputs"][0]["data"][0] == 2
        client.send(first + second + first[:20])
        answers = [client.read(), client.read()]
        client.send(first[20:] + second)
        answers += [client.read(), client.read()]
        assert [a.json["outputs"][0]["data"][0] for a in answers] == [2, 4, 2, 4]


def test_nothing_is_read_after_the_last_request_though_its_head_is_known(client: Client) -> None:
    known, last = _request(1), _request(5, "Connection: close")
    client.send(known)
    client.read()
    client.send(last + known)
    assert client.read().json["outputs"][0]["data"][0] == 10
    client.socket.shutdown(socket.SHUT_WR)
    assert client.closed()


def test_known_heads_are_the_same_on_every_connection(server, client: Client) -> None:
    client.send(_request(1))
    client.read()
    with Client(server.url) as other:
        other.send(_request(6))
        assert other.read().json["outputs"][0]["data"][0] == 12
