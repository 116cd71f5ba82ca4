"""Room for connections: each takes one of the files that the kernel lets a process have open."""

from __future__ import annotations

import contextlib
import resource

WANTED = 8192
KEPT = 96
"""Files that are left for packages, sensors, logs and shared memory."""


def make_room(*, doors: int = 2) -> int:
    """Raise this process's limit of open files as far as it may, to `WANTED`. Returns the connections a door has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = WANTED if hard == unlimited else min(WANTED, hard)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    room = WANTED if soft == unlimited else soft
    return max(1, (room - KEPT) // doors)
