"""Packages behind a server that come from object storage: looked at now and then, served from a local copy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.remote.bucket import is_url
from edgekit.remote.mirror import Mirror
from edgekit.serve.library import Answer, Library
from edgekit.serve.model import Model

LOGGER = logging.getLogger(__name__)

LOOK_S = 30.0
"""Seconds between looks at a storage unless something else is asked for: each is a request or more, which costs."""


class RemoteLibrary(Library):
    """A `Library` some of whose `paths` are URLs, each looked at every `look_s` seconds while it is watched.

    What a storage denies, loses or damages changes nothing: the last whole version is served on, and the log says why,
    once.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        look_s: float = LOOK_S,
        tell: Callable[[str], None] = lambda _line: None,
        **options: Any,
    ) -> None:
        """`tell` hears, in a line, of each package that is brought here; `options` are those of `Library`.

        Raises:
            UsageError: a URL has no protocol that is known.
            MissingDependencyError: the driver of one is not installed.
        """
        given = [p if is_url(str(p)) else Path(p) for p in paths]
        mirrors = {p: Mirror(str(p), tell=tell) for p in given if not isinstance(p, Path)}
        super().__init__([p if isinstance(p, Path) else mirrors[p].path for p in given], **options)
        self._mirrors = list(mirrors.values())
        self._look_s, self._looked_s = look_s, 0.0
        self._said: dict[tuple[str, str], str] = {}

    def load_all(self, loaded: Callable[[Model], None] = lambda _model: None) -> list[Model]:
        """See `Library.load_all`. Raises RemoteError too: nothing can be fetched, and nothing was before."""
        for mirror in self._mirrors:
            mirror.start()
        self._looked_s = time.monotonic()
        return super().load_all(loaded)

    def load(self, name: str, extra: Mapping[str, Any] | None, answer: Answer) -> None:
        """See `Library.load`; the storages are looked at first."""
        self._orders.put(self._refresh)
        super().load(name, extra, answer)

    def poll(self) -> None:
        """See `Library.poll`; the storages are looked at when that is due."""
        if time.monotonic() - self._looked_s >= self._look_s:
            self._refresh()
        super().poll()

    def _refresh(self) -> None:
        for mirror in self._mirrors:
            problems = mirror.sync()
            for name, error in problems.items():
                self._tell_once(mirror.url, name, error)
            for key in [k for k in self._said if k[0] == mirror.url and k[1] not in problems]:
                del self._said[key]
        self._looked_s = time.monotonic()

    def _tell_once(self, url: str, name: str, error: EdgekitError) -> None:
        if self._said.get((url, name)) != str(error):
            self._said[url, name] = str(error)
            LOGGER.warning("%s What was fetched before is served on.", error)
