"""Calls that come in one piece, head and body, and are answered in one: no stream is made for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from edgekit.serve.h2 import frames as h2

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection
    from edgekit.serve.h2.headers import Head
    from edgekit.serve.h2.owner import Whole
    from edgekit.serve.h2.stream import Stream


def answered_at_once(connection: Connection, number: int, data: bytes, start: int, stop: int) -> int:
    """Answer the call whose header block is `data[start:stop]` if its door can, at once or as the loop's turn ends.

    That is every call but a new one, within all limits, with a head that is known and a body that follows it as the
    one and last DATA frame. Returns where the next frame begins; 0 if the call is for the long way.
    """
    head = connection.reader.known.get(data[start:stop])
    if head is None or head.fault or number <= connection.last or not number & 1:
        return 0
    begin = stop + h2.FRAME_HEAD_BYTES
    if begin > len(data):
        return 0
    high, low, kind, flags, owner = h2.unpack_head(data, stop)
    size = int(high << 8 | low)
    end, limits = begin + size, connection.limits
    if kind != h2.DATA or flags != h2.END_STREAM or owner != number or end > len(data):
        return 0
    if size > min(limits.frame_bytes, limits.stream_window_bytes, connection.window):
        return 0
    output = connection.output
    if connection.refusing or output.backlog or not output.plain:
        return 0
    if len(connection.streams) + connection.owed >= limits.streams:
        return 0
    answer = connection.door.at_once(head, data[begin:end], output.room, partial(_owed, connection, number, head))
    if answer is None:
        return 0
    connection.last = number
    connection.turn -= 1
    connection.take(size)
    if isinstance(answer, tuple):
        _deliver(connection, number, head, answer)
    else:
        connection.owed += 1
    return end


def _owed(connection: Connection, number: int, head: Head, answer: Whole | Exception) -> None:
    """The answer to a call that the door took to answer soon."""
    connection.owed -= 1
    if connection.lost:
        return
    if isinstance(answer, tuple):
        _deliver(connection, number, head, answer)
        if not connection.output.corked:
            connection.output.flush()
    else:
        _stream(connection, number, head).fail(answer)
    connection.leave_if_done()


def _deliver(connection: Connection, number: int, head: Head, answer: Whole) -> None:
    if connection.output.whole(number, *answer):
        connection.answered += 1
    else:  # more than the client's windows take
        connection.output.answer(_stream(connection, number, head), *answer)


def _stream(connection: Connection, number: int, head: Head) -> Stream:
    """The stream that was not made so far."""
    stream = connection.door.new_stream(connection, number, connection.output.stream_window, head)
    connection.streams[number] = stream
    stream.remote_open = False
    return stream
