"""Make a package of an archive that edgekit pack wrote: every digest is checked, and nothing is left if one is wrong.

With --verify-key, the signature is checked before any file is written.

  edgekit unpack resnet.edge.tar
  edgekit unpack resnet.edge.tar -o /models/resnet.edge --force --verify-key team.pub
  curl -s https://.../resnet.edge.tar | edgekit unpack -
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit unpack`."""
    parser.add_argument("archive", type=Path, metavar="FILE", help="the archive, or - for standard input")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="X.edge", help="where to (default: here, under the package's name)"
    )
    parser.add_argument("--force", action="store_true", help="replace the package that is there, in one step")
    parser.add_argument(
        "--verify-key", type=Path, action="append", metavar="PUB", help="it must be signed by this key (repeatable)"
    )
    parser.add_argument(
        "--limit-gb", type=_size, default=64.0, metavar="GB", help="refuse what would take more on disk (default: 64)"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit unpack`."""
    import sys

    from edgekit.cli.output import bytes_text, print_json, print_text, progress_bytes
    from edgekit.deliver.unpack import unpack
    from edgekit.signature import TrustedKeys, short

    keys = TrustedKeys(args.verify_key) if args.verify_key else None
    piped = str(args.archive) == "-"
    with progress_bytes(f"unpack {args.archive.name}", None) as advance:
        found = unpack(
            Path("standard input") if piped else args.archive,
            args.output,
            stream=sys.stdin.buffer if piped else None,
            force=args.force,
            keys=keys,
            limit_bytes=int(args.limit_gb * 1e9),
            progress=advance.to,
        )
    if args.json:
        print_json(found)
        return 0
    by = f", signed by {short(found.signed_by)}" if found.signed_by else ""
    print_text(
        f"{found.path}: {found.name} {found.version}, {found.files} files, {bytes_text(found.bytes)}: "
        f"every SHA-256 matches{by}"
    )
    return 0


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size in GB")
    return value
