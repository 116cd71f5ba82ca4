"""`edgekit serve --ray`: the same packages as deployments of Ray Serve."""

from __future__ import annotations

import argparse
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.package import Package

NOT_THERE = {
    "grpc_port": "--grpc-port",
    "uds": "--uds",
    "device": "--device",
    "split": "--split",
    "watch": "--watch",
    "control": "--control",
    "log_requests": "--log-requests",
    "otel": "--otel",
    "trace_file": "--trace-file",
    "energy_header": "--energy-header",
    "heat_guard": "--heat-guard",
    "tls_cert": "--tls-cert",
    "token_file": "--token-file",
    "require_signature": "--require-signature",
}
"""Options that one server has and Ray Serve does not, or has in ways of its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments for Ray."""
    more = parser.add_argument_group("Ray", "HTTP only, behind Ray Serve's proxy; extra: ray; see docs/fleet.md")
    more.add_argument("--ray", metavar="ADDRESS", help="serve on a cluster: auto, HOST:PORT, or local to start one")
    more.add_argument("--replicas", type=_replicas, metavar="MIN:MAX", help="copies of each model (default: 1:4)")
    more.add_argument(
        "--target-requests", type=int, metavar="N", help="requests under way in a replica that it scales for (8)"
    )


def run(args: argparse.Namespace, given: Mapping[str, Any]) -> int:
    """Serve on Ray until told to stop. `given`: options of every model."""
    from edgekit.cli.output import note
    from edgekit.cluster import connected
    from edgekit.package import Package
    from edgekit.serve.on_ray import RaySite, Scaling

    for name, option in NOT_THERE.items():
        if getattr(args, name, None):
            raise UsageError(f"{option} is not for --ray. Leave it out, or serve from this machine without --ray.")
    if args.workers != 1 or args.port in ("off", 0):
        raise UsageError("With --ray, give --replicas instead of --workers, and a --port of its own.")
    if args.target_requests is not None and args.target_requests < 1:
        raise UsageError("--target-requests must be at least 1.")
    least, most = args.replicas or (1, 4)
    packages = [Package.open(path) for path in args.packages]
    scaling = Scaling(least=least, most=most, target=args.target_requests or 8, queue=args.queue_limit or 256)
    results = sys.stdout  # Ray's own prints go elsewhere while it is connected
    with connected(args.ray) as ray:
        site = RaySite(ray, host=args.host, port=args.port)
        try:
            site.start(packages, given=given, scaling=scaling, threads=args.threads)
            for package in packages:
                note(f"{package.name}: {least} to {most} replicas")
            note(f"ready on {site.url}")
            if args.json:
                _told(results, site.url, packages)
            threading.Event().wait()
        except KeyboardInterrupt:
            note("stopping")
        finally:
            site.stop()
    return 0


def _told(out: TextIO, url: str, packages: Sequence[Package]) -> None:
    import msgspec

    models = [{"name": p.name, "version": p.manifest.version} for p in packages]
    out.write(msgspec.json.encode({"url": url, "grpc": None, "models": models}).decode() + "\n")
    out.flush()


def _replicas(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text)
    least = int(found[1]) if found else 0
    most = int(found[2] or found[1]) if found else 0
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not a range of replicas; expected for example 1:4")
    return least, most
