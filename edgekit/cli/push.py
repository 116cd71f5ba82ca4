"""Put a package on a device over ssh: sent, tested there, and put in place in one step. Servers that watch the folder
take it up; the version before stays, to go back to.

Only files that the device does not have are sent, and a broken push goes on where it stopped. The package's samples run
through the device's own edgekit before the switch: if a variant fails, what was there stays. EDGEKIT_SSH names another
command than ssh.

  edgekit push resnet.edge jetson@10.0.0.7:/srv/models
  edgekit push resnet.edge orin:/srv/models --keep 3 --remote-edgekit /opt/edgekit/bin/edgekit
  edgekit push --rollback resnet orin:/srv/models
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgekit.cli.device import add_ssh_arguments, host_of

if TYPE_CHECKING:
    from edgekit.deliver.push import Pushed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit push`."""
    parser.add_argument("package", metavar="X.edge", help="the package; with --rollback, its name")
    parser.add_argument("target", metavar="USER@HOST:FOLDER", help="the device, and the folder that its server reads")
    parser.add_argument("--rollback", action="store_true", help="put the version before the current one in place again")
    parser.add_argument("--keep", type=_count, default=1, metavar="N", help="versions that stay beside it (default: 1)")
    add_ssh_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit push`."""
    from edgekit.cli.output import note, print_json, print_text, progress_bytes
    from edgekit.deliver.push import push, roll_back
    from edgekit.deliver.ssh import Destination
    from edgekit.package import Package

    target = Destination.parse(args.target)
    if args.rollback:
        with host_of(args, target.host) as host:
            back = roll_back(args.package, host, target.folder)
        if args.json:
            print_json(back)
        else:
            print_text(f"{back.host}:{back.path} is {back.version} again; {back.withdrawn} was taken back")
        return 0
    package = Package.open(args.package)
    with host_of(args, target.host) as host, progress_bytes(f"push {package.path.name}", None) as bar:
        pushed = push(
            package,
            host,
            target.folder,
            keep=args.keep,
            edgekit=args.remote_edgekit,
            progress=bar.to,
            note=note,
        )
    if args.json:
        print_json(pushed)
    else:
        print_text(_text(pushed))
    return 0


def _text(pushed: Pushed) -> str:
    where = f"{pushed.host}:{pushed.path}"
    if pushed.version is None or pushed.self_test is None:
        return f"{where} is this package already, every digest checked; nothing was done"
    before = f", {pushed.previous} is kept" if pushed.previous else ""
    test = pushed.self_test
    tested = f"tested there: {', '.join(test.variants)}" if test.edgekit else f"NOT tested there: {test.note}"
    return f"{where} is {pushed.version} now{before}\n{tested}"


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1000")
    return int(text)
