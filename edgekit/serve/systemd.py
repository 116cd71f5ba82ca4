"""What systemd is told of a service (sd_notify), and sockets that it hands over; nothing of it is needed elsewhere."""

from __future__ import annotations

import os
import socket
import time

from edgekit.errors import UsageError
from edgekit.serve.listen import Sockets

_FIRST_FD = 3


class Notifier:
    """Tells the service manager in `NOTIFY_SOCKET`, if there is one; a path, or an abstract name after an @."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        micros = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(micros) / 2e6 if self._address and mine and micros.isdigit() and int(micros) else None
        """Seconds between signs of life, half of what is asked for; None: none are asked for."""

    def tell(self, *lines: str) -> None:
        """Send `lines`, such as READY=1. A manager that cannot be reached is no reason to fail."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as one:
                one.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return

    def ready(self, status: str) -> None:
        """Requests are taken."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Configuration is read again; `ready` follows."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Requests in flight are answered, then the end."""
        self.tell("STOPPING=1", "STATUS=answering what is in flight")

    def alive(self) -> None:
        """A sign of life."""
        self.tell("WATCHDOG=1")


def handed_over() -> Sockets | None:
    """Sockets that systemd listens on for this process (socket activation); None if there are none.

    `FileDescriptorName=` says what each is for: http or grpc. Without names the first is for HTTP, the second for gRPC.
    Unix sockets take both.

    Raises:
        UsageError: there are more than it can tell apart, or some are no listening sockets.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "0")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(key, None)
    if not count.isdigit() or int(count) < 1:
        return None
    sockets = Sockets()
    for number in range(int(count)):
        try:
            one = socket.socket(fileno=_FIRST_FD + number)
            os.set_inheritable(one.fileno(), False)
        except OSError as error:
            raise UsageError(f"Descriptor {_FIRST_FD + number} from systemd is no socket: {error.strerror}.") from error
        if one.type != socket.SOCK_STREAM:
            raise UsageError(f"Descriptor {_FIRST_FD + number} from systemd is no stream; expected ListenStream=.")
        name = names[number] if number < len(names) else ""
        _place(sockets, one, name)
    return sockets


def _place(sockets: Sockets, one: socket.socket, name: str) -> None:
    if one.family == socket.AF_UNIX:
        sockets.unix.append(one)
    elif name == "grpc" or (name != "http" and sockets.http and not sockets.grpc):
        sockets.grpc.append(one)
    elif name == "http" or not sockets.http:
        sockets.http.append(one)
    else:
        raise UsageError("systemd handed over more sockets than can be told apart. Name them http or grpc.")
