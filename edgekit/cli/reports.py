"""How commands put their reports into a package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from edgekit.cli.output import note
from edgekit.errors import EdgekitError, MissingDependencyError, StorageError
from edgekit.package import Package


def write_reports(package: Package, name: str, document: Any, *, picture: Callable[[], bytes] | None = None) -> int:
    """Write reports/NAME.json, and reports/NAME.png where `picture` draws one; the exit code.

    What keeps them from being written is said and no error: the command still prints its figures. Without matplotlib
    there is no picture, which is said too.
    """
    try:
        data = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        written = [package.write_report(f"{name}.json", data)]
        if picture is not None:
            try:
                written.append(package.write_report(f"{name}.png", picture()))
            except MissingDependencyError as error:
                note(f"no picture: {error}")
    except StorageError as error:
        note(f"edgekit: {error}")
        return EdgekitError.exit_code
    note(f"wrote {', '.join(str(p) for p in written)}")
    return 0
