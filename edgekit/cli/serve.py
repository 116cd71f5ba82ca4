"""Serve packages over HTTP and gRPC, with the Open Inference Protocol (KServe v2).

  edgekit serve resnet.edge                    one model
  edgekit serve resnet.edge words.edge         several
  edgekit serve models/                        every package of a folder
  edgekit serve s3://bucket/models             the same, from object storage
  curl http://127.0.0.1:8000/v2/models/resnet
  edgekit serve resnet.edge --grpc-port off    HTTP only
  edgekit serve models/ --workers 4            four processes on one port
  edgekit serve resnet.edge --ray auto         on a Ray cluster, scaling by load
  edgekit serve models/ --host 0.0.0.0 --token-file tokens
                                               for clients with a token

Every package is checked, warmed and tested on its own samples before the first
request is taken. Clients of Triton (tritonclient) work unmodified, with JSON or
binary tensors. Values that are not finite become null in JSON answers: ask for
binary data where that matters. A package that is replaced on disk is loaded
beside the old one and takes its place once it was tested. Where a model runs,
and how many requests run together, is measured at the start. A browser shows a
live page at the URL. SIGINT and SIGTERM end the server after it has answered
what it was asked; SIGHUP reads certificates, tokens and keys again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli import serve_ray
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.serve.library import Library
    from edgekit.serve.listen import Sockets
    from edgekit.serve.peers import Peers
    from edgekit.serve.supervisor import Line
    from edgekit.serve.tls import TlsFiles

WATCH_S = 2.0
"""Seconds between looks at the disk unless something else is asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `edgekit serve`."""
    parser.add_argument(
        "packages", nargs="+", metavar="PACKAGE", help="NAME.edge, a folder of them, or a URL of either"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port_or_off, default=8000, help="port, 0 for a free one, off for none (8000)")
    parser.add_argument(
        "--grpc-port",
        type=_port_or_off,
        metavar="PORT",
        help="port to listen on for gRPC, 0 for a free one, off for none (default: the one after --port, 8001)",
    )
    parser.add_argument("--variant", help="variant to serve (default: the best for this machine)")
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda:0, or several side by side: cuda:0,cuda:1 (default: the best)"
    )
    parser.add_argument("--split", action="store_true", help="spread a package's stages over the devices instead")
    parser.add_argument("--threads", type=_count, help="threads a model may use (default: chosen by measuring)")
    more = parser.add_argument_group("scheduling", "also per model in serve.toml or NAME.toml; see docs/serving.md")
    more.add_argument("--instances", type=_count, metavar="N", help="runs of one model at a time (default: 1 on a CPU)")
    more.add_argument("--max-batch", type=_count, metavar="N", help="rows to join requests to (default: measured)")
    more.add_argument("--queue-delay-ms", type=_amount, metavar="MS", help="how long to wait for more to join (0)")
    more.add_argument("--queue-limit", type=_count, metavar="N", help="requests that may wait; more get 503 (256)")
    more.add_argument(
        "--timeout-ms", type=_amount, metavar="MS", help="how long a request may wait (default: any time)"
    )
    more.add_argument("--cache-mib", type=_amount, metavar="MIB", help="memory for answers to repeated requests (0)")
    more = parser.add_argument_group("operation")
    more.add_argument(
        "--watch",
        type=_amount,
        metavar="S",
        help="seconds between looks for packages that changed; 0 for never (default: 2, and 30 for URLs)",
    )
    more.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        help="let clients load and unload models (default: if only this machine can reach the server)",
    )
    more.add_argument("--workers", type=_count, default=1, metavar="N", help="processes that share the ports (1)")
    more.add_argument(
        "--worker-timeout",
        type=_amount,
        default=30.0,
        metavar="S",
        help="a worker without a sign of life for so long is started again (30; 0: never)",
    )
    more.add_argument("--uds", type=Path, metavar="PATH", help="also listen on a Unix socket, for HTTP and gRPC")
    more.add_argument("--uds-mode", type=_mode, default=0o660, metavar="OCTAL", help="who may use it (default: 660)")
    more.add_argument("--log", choices=("text", "json"), default="text", help="form of the log (default: text)")
    more.add_argument("--log-requests", action="store_true", help="log a line for every inference")
    more.add_argument("--otel", action="store_true", help="send a span of each request by OTLP (OTEL_* variables)")
    more.add_argument("--trace-file", type=Path, metavar="FILE", help="where traces go that clients switch on")
    more = parser.add_argument_group("energy and heat")
    more.add_argument("--energy-header", action="store_true", help="tell each request's joules: x-energy-joules")
    more.add_argument(
        "--heat-guard",
        type=_amount,
        metavar="C",
        help="step back when fewer than so many degrees are left until the machine slows down (off)",
    )
    more.add_argument(
        "--ready-when-throttled",
        action="store_true",
        help="stay ready while the machine is slowed down (default: health/ready is 503 then, with the cause)",
    )
    more.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="where the machine's /sys and /proc are mounted"
    )
    more = parser.add_argument_group("security", "files are read again on SIGHUP")
    more.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate with its chain: TLS on both ports")
    more.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, without a password")
    more.add_argument("--tls-client-ca", type=Path, metavar="PEM", help="clients must show a certificate from here")
    more.add_argument(
        "--token-file", type=Path, metavar="FILE", help="tokens of clients: a line each, TOKEN or TOKEN control"
    )
    more.add_argument(
        "--require-signature",
        type=Path,
        action="append",
        metavar="PUB",
        help="serve only packages that this key signed (repeatable; edgekit sign)",
    )
    more.add_argument(
        "--open-health",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer health questions without a token (default: yes)",
    )
    serve_ray.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. With --json, one line of JSON says where once requests are taken."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before numpy starts a thread a core, which a server has no use for
    if args.ray is not None:
        return serve_ray.run(args, _options(args))
    tls = _tls(args)
    if _http_port(args) is None and _grpc_port(args) is None and args.uds is None:
        raise UsageError("Nothing is listened on: --port is off, and there is neither --grpc-port nor --uds.")
    if not args.root.is_dir():
        raise UsageError(f"--root {args.root} is not a folder; expected the root of a file tree.")
    from edgekit.serve.systemd import handed_over

    sockets = handed_over()
    if args.workers == 1:
        return _work(args, tls, sockets, None)
    if sockets is not None:
        raise UsageError("Sockets from systemd cannot be shared by several workers. Leave out --workers.")
    from edgekit.serve.listen import bind
    from edgekit.serve.supervisor import Supervisor

    _log_to_stderr(args)
    sockets = bind(args.host, _http_port(args), _grpc_port(args), uds=args.uds, uds_mode=args.uds_mode, shared=True)
    importlib.import_module("edgekit.serve.server")  # once, for all workers
    hang_s = args.worker_timeout or None
    return Supervisor(args.workers, sockets, partial(_work, args, tls), hang_s=hang_s).run(partial(_announce, args))


def _work(
    args: argparse.Namespace,
    tls: TlsFiles | None,
    sockets: Sockets | None,
    peers: Peers | None,
    line: Line | None = None,
) -> int:
    """Load and serve, alone or as one of several workers, which tell their supervisor over `line`."""
    import msgspec

    from edgekit.runtime.ort import physical_cores
    from edgekit.serve.auth import Tokens
    from edgekit.serve.descriptors import make_room
    from edgekit.serve.h2.limits import Limits as GrpcLimits
    from edgekit.serve.limits import Limits
    from edgekit.serve.machine import MachineWatch
    from edgekit.serve.server import Server
    from edgekit.serve.settings import LogSettings, TraceSettings
    from edgekit.serve.systemd import Notifier
    from edgekit.signature import TrustedKeys

    _log_to_stderr(args, worker=None if peers is None else peers.slot)
    tokens = None if args.token_file is None else Tokens(args.token_file, open_health=args.open_health)
    share = None if peers is None else {"threads": max(1, physical_cores() // peers.count)}
    trust = TrustedKeys(args.require_signature) if args.require_signature else None
    first = peers is None or (peers.slot == 0 and peers.starts == 1)
    options = {"given": _options(args), "otherwise": share, "trust": trust}
    library = _library(args, options, say=_say if first else lambda _line: None)
    models = library.load_all(loaded=lambda model: _say(str(model)) if first else None)
    connections = min(Limits.connections, make_room())
    server = Server(
        models,
        limits=Limits(connections=connections),
        grpc_limits=GrpcLimits(connections=connections),
        host=args.host,
        port=_http_port(args),
        grpc_port=_grpc_port(args),
        uds=args.uds,
        uds_mode=args.uds_mode,
        sockets=sockets,
        library=library,
        watch_s=WATCH_S if args.watch is None else args.watch or None,
        control=args.control,
        tls=tls,
        tokens=tokens,
        notifier=line or Notifier(),
        peers=peers,
    )
    server.app.machine = MachineWatch(
        args.root, tells=peers is None or peers.slot == 0, guards=not args.ready_when_throttled
    )
    if args.heat_guard:
        from edgekit.serve.cooling import Cooling

        server.app.cooling = Cooling(server.app, args.heat_guard)
    if args.energy_header:
        from edgekit.serve.energy import EnergyMeter

        server.app.energy = EnergyMeter(args.root)
    server.app.traces = TraceSettings(args.trace_file)
    if args.otel:
        from edgekit.serve.spans import Spans

        server.app.traces.send_to(Spans())
    server.app.logs = LogSettings(verbose=int(args.log_requests))
    if line is not None:
        line.orphaned(server.stop)

    def started(url: str) -> None:
        names = [
            {"name": m.name, "version": m.version, "variant": m.session.variant, "device": m.session.device}
            for m in models
        ]
        text = msgspec.json.encode({"url": url, "grpc": server.grpc_address or None, "models": names}).decode()
        if line is None:
            _announce(args, text)
        else:
            line.announce(text)

    server.run(ready=started, signals=True)
    return 0


def _library(args: argparse.Namespace, options: dict[str, Any], *, say: Callable[[str], None]) -> Library:
    """The packages that were named, on disk or in object storage."""
    from edgekit.serve.library import Library

    if not any("://" in path for path in args.packages):
        return Library(args.packages, **options)
    from edgekit.serve.remote import LOOK_S, RemoteLibrary  # only where there is something to fetch

    look_s = LOOK_S if args.watch is None else args.watch
    return RemoteLibrary(args.packages, look_s=look_s, tell=say, **options)


def _announce(args: argparse.Namespace, text: str) -> None:
    found = json.loads(text)
    places = [found["url"]] if found["url"] else []
    places += [f"gRPC on {found['grpc']}"] if found["grpc"] else []
    places += [f"Unix socket {args.uds}"] if args.uds else []
    _say(f"ready on {', '.join(places)}" + (f", {args.workers} workers" if args.workers > 1 else ""))
    if args.json:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _log_to_stderr(args: argparse.Namespace, *, worker: int | None = None) -> None:
    from edgekit.serve.settings import JsonFormatter

    logger = logging.getLogger("edgekit")
    for old in [h for h in logger.handlers if isinstance(h, _Stderr)]:  # a worker's supervisor had one
        logger.removeHandler(old)
    handler = _Stderr()
    text = "%(levelname)s: " + ("" if worker is None else f"worker {worker}: ") + "%(message)s"
    handler.setFormatter(JsonFormatter(worker) if args.log == "json" else logging.Formatter(text))
    logger.addHandler(handler)
    logging.getLogger("edgekit.serve").setLevel(logging.INFO)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """The command's own handler."""


def _tls(args: argparse.Namespace) -> TlsFiles | None:
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UsageError("TLS needs both --tls-cert and --tls-key.")
    if args.tls_cert is None:
        if args.tls_client_ca is not None:
            raise UsageError("--tls-client-ca is for servers with TLS: give --tls-cert and --tls-key too.")
        return None
    from edgekit.serve.tls import TlsFiles

    files = TlsFiles(cert=args.tls_cert, key=args.tls_key, client_ca=args.tls_client_ca)
    files.context("http/1.1")  # what is wrong with them is said before anything is loaded
    return files


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; expected 0 to 65535")
    return int(text)


def _port_or_off(text: str) -> int | str:
    return text if text == "off" else _port(text)


def _http_port(args: argparse.Namespace) -> int | None:
    return None if args.port == "off" else int(args.port)


def _grpc_port(args: argparse.Namespace) -> int | None:
    """The port for gRPC, or None for no gRPC: as it was given, else the one after HTTP's."""
    if args.grpc_port is None:
        return None if args.port == "off" else args.port + 1 if 0 < args.port < 65535 else 0
    return None if args.grpc_port == "off" else int(args.grpc_port)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"'{text}' is not a mode; expected octal digits such as 660")
    return mode


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says for every model, in the names of the options."""
    names = ("variant", "device", "threads", "instances", "max_batch", "queue_delay_ms", "queue_limit", "timeout_ms")
    values = {name: getattr(args, name) for name in (*names, "cache_mib")}
    values["split"] = args.split or None
    return {name: value for name, value in values.items() if value is not None}


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1024")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, 0 or more")
    return value
