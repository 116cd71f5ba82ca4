"""Storages that tests read: a folder, fsspec's memory, and a web server that can be told to fail."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Web:
    """Serves a folder. `fails`: end of a path -> the status that it is answered with; `asked`: the paths of GETs."""

    url: str
    fails: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


class _Handler(SimpleHTTPRequestHandler):
    web: Web

    def send_head(self) -> Any:
        path = self.path.rstrip("/")
        if self.command == "GET":
            self.web.asked.append(path)
        for end, status in self.web.fails.items():
            if path.endswith(end):
                self.send_error(status)
                return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def web(folder: Path) -> Iterator[Web]:
    """A web server of `folder` on a free port."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        handler.web = Web(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield handler.web  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
