"""Request targets as the server reads them: the routes, and what guards them, must see the same path."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from edgekit.errors import InputError


def path_of(target: bytes) -> str:
    """The path of a request target, which may be a whole URL; without query."""
    text = target.decode("latin-1")
    if text.startswith(("http://", "https://")):
        text = "/" + text.partition("//")[2].partition("/")[2]
    return text.partition("?")[0].partition("#")[0]


def parts_of(path: str) -> list[str]:
    """The parts of a path between slashes, percent signs resolved in each. Raises InputError: it is not UTF-8."""
    try:
        return [unquote_to_bytes(part).decode() for part in path.split("/")]
    except UnicodeDecodeError:
        raise InputError("The path is not UTF-8.") from None
