"""Whether a package or a pipeline on disk is still what it was, told without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from edgekit.package import REPORTS
from edgekit.serve.options import option_files

Signature: TypeAlias = tuple[Any, ...]


def signature_of(path: Path) -> Signature:
    """Changes when a file of the package or its options does; reports are results, not content."""
    files = list(option_files(path))
    if path.is_dir():
        files += (p for p in path.rglob("*") if REPORTS not in p.relative_to(path).parts)
    else:
        files.append(path)
    out = []
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:
            continue
        if not file.is_dir():
            out.append((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(out)
