"""Sockets that a server listens on: made by it, by a supervisor for its workers, or handed over by systemd."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import EdgekitError, UsageError

BACKLOG = 1024
UDS_MODE = 0o660
"""Who may use a Unix socket if nothing else is said: its user and its group."""

_PATH_BYTES = 107


@dataclass
class Sockets:
    """Bound sockets: for HTTP, for gRPC, and Unix sockets for either. `files` are those that were made for them."""

    http: list[socket.socket] = field(default_factory=list)
    grpc: list[socket.socket] = field(default_factory=list)
    unix: list[socket.socket] = field(default_factory=list)
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """host:port of HTTP; empty without."""
        return address_of(self.http[0]) if self.http else ""

    @property
    def grpc_address(self) -> str:
        """host:port of gRPC; empty without."""
        return address_of(self.grpc[0]) if self.grpc else ""

    def close(self) -> None:
        """Close this process's copies."""
        for one in (*self.http, *self.grpc, *self.unix):
            one.close()

    def remove_files(self) -> None:
        """Remove the files of Unix sockets, but not those that another server has put there since."""
        for path, identity in self.files.items():
            with contextlib.suppress(OSError):
                if _identity(path) == identity:
                    path.unlink()


def bind(
    host: str,
    port: int | None,
    grpc_port: int | None,
    *,
    uds: Path | None = None,
    uds_mode: int = UDS_MODE,
    shared: bool = False,
) -> Sockets:
    """Bind, without listening yet. None for a port: not there; 0: a free one. `shared`: with SO_REUSEPORT.

    Raises:
        EdgekitError: a port is taken or not allowed.
        UsageError: the host is not an address, or the path cannot be a socket.
    """
    sockets = Sockets()
    try:
        if port is not None:
            sockets.http = bind_tcp(host, port, option="--port", shared=shared)
        if grpc_port is not None:
            sockets.grpc = bind_tcp(host, grpc_port, option="--grpc-port", shared=shared)
        if uds is not None:
            sockets.unix = [bind_unix(uds, mode=uds_mode)]
            sockets.files[uds] = _identity(uds)
    except BaseException:
        sockets.close()
        raise
    return sockets


def bind_tcp(host: str, port: int, *, option: str, shared: bool = False) -> list[socket.socket]:
    """A socket for each address that `host` stands for, all of one port. `option` is named when the port cannot be had.

    Raises:
        EdgekitError: the port is taken or not allowed.
        UsageError: the host is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"Host '{host}' is not an address ({error}). Try --host 127.0.0.1.") from error
    sockets: list[socket.socket] = []
    try:
        for family, place in dict.fromkeys((f, a) for f, *_, a in found):
            where = (place[0], port, *place[2:])
            sockets.append(_bound(socket.AddressFamily(family), where, shared=shared))
            port = port or sockets[0].getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        fixes = {
            errno.EADDRINUSE: f"is in use. Choose another with {option}, or any free one with {option} 0",
            errno.EACCES: f"is not allowed to this user. Choose one above 1023 with {option}",
            errno.EADDRNOTAVAIL: "cannot be listened on: the address is not this machine's. Try --host 127.0.0.1",
        }
        why = fixes.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise EdgekitError(f"Port {port} of {host} {why}.") from error
    return sockets


def _bound(family: socket.AddressFamily, where: tuple[object, ...], *, shared: bool) -> socket.socket:
    def plain() -> socket.socket:
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return one

    one = plain()
    try:
        one.bind(where)
        if not shared:
            return one
        where = one.getsockname()  # the port is nobody else's: another server of this user would share it in silence
        one.close()
        one = plain()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(where)
    except BaseException:
        one.close()
        raise
    return one


def twin(one: socket.socket) -> socket.socket:
    """Another socket of the same address, which the kernel shares connections with: both have SO_REUSEPORT."""
    other = socket.socket(one.family, socket.SOCK_STREAM)
    try:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if one.family == socket.AF_INET6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(one.getsockname())
    except BaseException:
        other.close()
        raise
    return other


def bind_unix(path: Path, *, mode: int = UDS_MODE) -> socket.socket:
    """A Unix socket at `path`, in place of one that a server left behind which is gone.

    Raises:
        EdgekitError: a server listens there, or the folder cannot be written.
        UsageError: the path is too long for a socket, or something else is there.
    """
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise UsageError(f"'{path}' is too long for a socket: expected {_PATH_BYTES} bytes at most.")
    _remove_stale(path)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777)  # nobody can connect before the mode is set
    try:
        one.bind(str(path))
        os.chmod(path, mode)
    except OSError as error:
        one.close()
        raise EdgekitError(f"Socket '{path}' cannot be made: {error.strerror or error}. Check its folder.") from error
    finally:
        os.umask(mask)
    return one


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgekitError(f"Socket '{path}' cannot be made: {error.strerror or error}. Check its folder.") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"'{path}' is there and no socket. Choose another path with --uds, or remove it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise EdgekitError(f"Socket '{path}' is there and cannot be used: {error.strerror or error}.") from error
    raise EdgekitError(f"Socket '{path}' is in use by another server. Choose another path with --uds.")


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def all_local(sockets: Sequence[socket.socket]) -> bool:
    """Whether only this machine can reach these sockets."""
    return all(one.family == socket.AF_UNIX or is_local(one.getsockname()[0]) for one in sockets)


def address_of(one: socket.socket) -> str:
    """host:port of a socket, as URLs have it."""
    host, port = one.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
