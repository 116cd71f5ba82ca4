"""Where the real models and inputs of the tests lie; they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path | None:
    """The folder of real models and data, or None: EDGEKIT_DATA, else shared/data beside the checkout."""
    given = os.environ.get("EDGEKIT_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def data_path(name: str) -> Path:
    """A file or folder of the real data; the test is skipped, by name, when it is absent."""
    folder = data_folder()
    if folder is None:
        pytest.skip(f"needs the real data '{name}': set EDGEKIT_DATA to the folder that holds it")
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs the real data '{name}', which is not in {folder.name}/")
    return path
