"""Sign a package with an Ed25519 key, or make a key pair for it. Needs: pip install 'edgekit[sign]'

The signature lies in X.edge/signature.json and covers every file of the package; nothing else in it changes. A change
of the package makes it void: sign last. Who has the .pub file can check it: edgekit verify, unpack and serve take it.

  edgekit sign --new-key team.key              writes team.key (keep it) and team.key.pub
  edgekit sign resnet.edge --key team.key
  edgekit verify resnet.edge --verify-key team.key.pub
  edgekit serve models/ --require-signature team.key.pub
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit sign`."""
    parser.add_argument("package", metavar="X.edge", nargs="?", help="the package to sign")
    parser.add_argument("--key", type=Path, metavar="KEY", help="the private key, PEM without a password")
    parser.add_argument("--new-key", type=Path, metavar="FILE", help="make a key pair: FILE (mode 600) and FILE.pub")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit sign`."""
    from edgekit.cli.output import print_json, print_text
    from edgekit.errors import UsageError
    from edgekit.package import Package
    from edgekit.signature import new_key, short, sign

    if args.new_key is not None:
        if args.package is not None or args.key is not None:
            raise UsageError("--new-key makes a key pair and signs nothing. Sign with: edgekit sign X.edge --key KEY")
        fingerprint = new_key(args.new_key)
        if args.json:
            print_json({"key": str(args.new_key), "public_key": f"{args.new_key}.pub", "fingerprint": fingerprint})
            return 0
        print_text(f"{args.new_key}: the private key, readable by you alone; keep it where packages are signed")
        print_text(f"{args.new_key}.pub: the public key, for whoever checks signatures")
        print_text(f"fingerprint {short(fingerprint)}")
        return 0
    if args.package is None or args.key is None:
        raise UsageError("Which package, by which key? For example: edgekit sign X.edge --key KEY")
    package = Package.open(args.package)
    fingerprint = sign(package, args.key)
    if args.json:
        print_json({"package": str(package.path), "fingerprint": fingerprint})
        return 0
    print_text(f"{package.path.name} is signed by {short(fingerprint)}")
    return 0
