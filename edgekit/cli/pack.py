"""Write a package as one file, the same bytes for the same content, wherever and whenever it is packed.

The file is a plain tar archive: weights hardly compress, and a device needs nothing to read it. A name that ends with
.edge.tar.gz compresses it. Reports are left out; a signature goes along. See docs/deployment.md.

  edgekit pack resnet.edge                     writes resnet.edge.tar
  edgekit pack resnet.edge -o out/net.edge.tar.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit pack`."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="NAME.edge.tar or NAME.edge.tar.gz (default: X.edge.tar here)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit pack`."""
    from edgekit.cli.output import bytes_text, note, print_json, print_text, progress_bytes
    from edgekit.contents import contents, strangers
    from edgekit.deliver.archive import pack
    from edgekit.package import Package

    package = Package.open(args.package)
    output = args.output or Path(f"{package.path.name}.tar")
    left_out = strangers(package)
    with progress_bytes(f"pack {package.path.name}", sum(f.bytes for f in contents(package).values())) as advance:
        packed = pack(package, output, force=args.force, progress=advance)
    if left_out:
        note(f"left out, for no manifest knows them: {', '.join(left_out)}")
    if args.json:
        print_json(packed)
        return 0
    print_text(f"{packed.path}: {packed.files} files of {packed.package}, {bytes_text(packed.bytes)}")
    print_text(f"sha256 {packed.sha256}")
    return 0
