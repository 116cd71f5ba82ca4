"""How commands that work on another machine take its name and its ssh options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.deliver.ssh import Host


def add_ssh_arguments(parser: argparse.ArgumentParser) -> None:
    """How the device is reached."""
    more = parser.add_argument_group("device")
    more.add_argument(
        "--remote-edgekit", metavar="PATH", default="", help="edgekit on the device (default: looked for)"
    )
    more.add_argument("-p", "--port", type=int, metavar="N", help="its ssh port")
    more.add_argument("-i", "--identity", type=Path, metavar="KEY", help="the private key to show it")
    more.add_argument("--ssh-option", action="append", default=[], metavar="NAME=VALUE", help="as ssh -o (repeatable)")


def host_of(args: argparse.Namespace, name: str) -> Host:
    """The device of these arguments."""
    from edgekit.deliver.ssh import Host

    return Host(name, port=args.port, identity=args.identity, options=args.ssh_option)
