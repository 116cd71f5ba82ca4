"""All that a package consists of: its manifest and those of its stages, and every file that they vouch for."""

from __future__ import annotations

import hashlib

from edgekit.manifest import File, encode
from edgekit.package import MANIFEST, REPORTS, SIGNATURE, Package


def manifests(package: Package) -> dict[str, bytes]:
    """The bytes of each manifest by its path in the package: its own first, then those of its stages, in order.

    They are the bytes on disk when the package was opened. Raises PackageError or IntegrityError as `Package.stages`.
    """
    out = {MANIFEST: encode(package.manifest)}
    for stage, own in package.stages():
        out[f"{stage.package}/{MANIFEST}"] = encode(own.manifest)
    return out


def digests(found: dict[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def contents(package: Package) -> dict[str, File]:
    """Every file of the package by its path in it, manifests first; without reports, signature and what is unknown.

    Nothing is read but manifests: digests and sizes are those that they state.
    """
    out = {
        name: File(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in manifests(package).items()
    }
    for prefix, own in [("", package), *((f"{stage.package}/", own) for stage, own in package.stages())]:
        for file in own.manifest.all_files().values():
            out[prefix + file.name] = File(name=prefix + file.name, sha256=file.sha256, bytes=file.bytes)
    return out


def strangers(package: Package) -> list[str]:
    """Files in the package's folder that no manifest vouches for, sorted; reports and the signature are none."""
    known = {SIGNATURE, *contents(package)}
    reports = (f"{REPORTS}/", *(f"{stage.package}/{REPORTS}/" for stage, _ in package.stages()))
    present = {p.relative_to(package.path).as_posix() for p in package.path.rglob("*") if p.is_symlink() or p.is_file()}
    return sorted(n for n in present - known if not n.startswith(reports))
