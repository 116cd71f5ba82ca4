"""`edgekit compile --on`: the same command on a device, its engines brought home."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.engine.apply import Compiled
    from edgekit.package import Package

VALUES = ("shapes", "module", "workspace", "level", "hardware", "dla", "verbosity")
FLAGS = ("version_compatible", "strip", "refit", "sparsity", "no_plugins", "no_timing_cache", "no_cache")


def arguments_of(args: argparse.Namespace) -> list[str]:
    """The arguments of `edgekit compile` that go along to the device."""
    words = [
        word for name in ("target", "variant") if getattr(args, name) for word in (f"--{name}", *getattr(args, name))
    ]
    for name in VALUES:
        value = getattr(args, name)
        for one in value if isinstance(value, list) else () if value is None else (value,):
            words.append(f"--{name}={one}")
    return [*words, *(f"--{name.replace('_', '-')}" for name in FLAGS if getattr(args, name))]


def compile_there(package: Package, args: argparse.Namespace) -> list[Compiled]:
    """Compile `package` on the device that `args.on` names, and add what was built to it."""
    import msgspec

    from edgekit.cli.device import host_of
    from edgekit.cli.output import note, progress_bytes
    from edgekit.deliver.compile_on import FOLDER, compile_on
    from edgekit.deliver.ssh import Destination
    from edgekit.engine.apply import Compiled

    target = Destination.parse(args.on, default=FOLDER)
    with host_of(args, target.host) as host, progress_bytes(f"{package.path.name} and {target.host}", None) as bar:
        answer = compile_on(
            package,
            host,
            target.folder,
            arguments_of(args),
            edgekit=args.remote_edgekit,
            progress=bar.to,
            note=note,
        )
    return msgspec.convert(msgspec.json.decode(answer)["engines"], list[Compiled])
