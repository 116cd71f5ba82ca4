"""Calls that come in one piece, head and body, and are answered in one: no stream is made for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.serve.h2 import frames as h2

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection


def answered_at_once(connection: Connection, number: int, data: bytes, start: int, stop: int) -> int:
    """Answer the call whose header block is `data[start:stop]` if its door can at once; 0 if that is for the long way.

    That is every call but a new one, within all limits, with a head that is known and a body that follows it as the
    one and last DATA frame. Returns where the next frame begins.
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
    if connection.refusing or len(connection.streams) >= limits.streams or output.backlog or not output.plain:
        return 0
    answer = connection.door.at_once(head, data[begin:end])
    if answer is None:
        return 0
    connection.last = number
    connection.turn -= 1
    connection.take(size)
    if output.whole(number, *answer):
        connection.answered += 1
    else:  # more than the client's windows take
        stream = connection.door.new_stream(connection, number, output.stream_window, head)
        connection.streams[number] = stream
        stream.remote_open = False
        output.answer(stream, *answer)
    return end
