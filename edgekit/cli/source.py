"""Where a command reads a package: on disk, or under a URL."""

from __future__ import annotations

from pathlib import Path

from edgekit.cli.output import note
from edgekit.errors import UsageError
from edgekit.remote.bucket import is_url, shown

_ENDINGS = (".edge", ".edge.tar", ".edge.tar.gz")


def local(place: str) -> Path:
    """`place`, or the copy in the cache of the package that it names by URL, brought up to date.

    Raises:
        UsageError: a URL that names no package.
        MissingDependencyError: fsspec or the driver of the protocol is not installed.
        RemoteError, IntegrityError, StorageError: it could not be fetched, and was not before.
    """
    if not is_url(place):
        return Path(place)
    from edgekit.remote.mirror import fetch  # only where there is something to fetch

    if not shown(place).rstrip("/").endswith(_ENDINGS):
        raise UsageError(f"'{shown(place)}' names no package; expected {shown(place).rstrip('/')}/NAME.edge")
    return fetch(place, tell=note)
