"""Serve packages over HTTP and gRPC, with the Open Inference Protocol (KServe v2).

  edgekit serve resnet.edge                    one model
  edgekit serve resnet.edge words.edge         several
  edgekit serve models/                        every package of a folder
  curl http://127.0.0.1:8000/v2/models/resnet
  edgekit serve resnet.edge --grpc-port off    HTTP only

Every package is checked, warmed and tested on its own samples before the first request is taken. Clients of Triton
(tritonclient) work unmodified, with JSON or binary tensors. Values that are not finite become null in JSON answers:
ask for binary data where that matters. A package that is replaced on disk is loaded beside the old one and takes its
place once it was tested. Where a model runs, and how many requests run together, is measured at the start. SIGINT and
SIGTERM end the server after it has answered what it was asked.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `edgekit serve`."""
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="NAME.edge, or a folder that holds packages")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument(
        "--grpc-port",
        type=_grpc_port,
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
        default=2.0,
        metavar="S",
        help="seconds between looks for packages that were added, replaced or removed; 0 for never (default: 2)",
    )
    more.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        help="let clients load and unload models (default: if only this machine can reach the server)",
    )
    more.add_argument("--log", choices=("text", "json"), default="text", help="form of the log (default: text)")
    more.add_argument("--log-requests", action="store_true", help="log a line for every inference")
    more.add_argument("--trace-file", type=Path, metavar="FILE", help="where traces go that clients switch on")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. With --json, one line of JSON says where once requests are taken."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before numpy starts a thread a core, which a server has no use for
    import msgspec

    from edgekit.serve.library import Library
    from edgekit.serve.server import Server
    from edgekit.serve.settings import JsonFormatter, LogSettings, TraceSettings

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if args.log == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("edgekit").addHandler(handler)
    logging.getLogger("edgekit.serve").setLevel(logging.INFO)
    library = Library(args.packages, given=_options(args))
    models = library.load_all(loaded=lambda model: _say(str(model)))
    server = Server(
        models,
        host=args.host,
        port=args.port,
        grpc_port=_chosen(args.grpc_port, args.port),
        library=library,
        watch_s=args.watch or None,
        control=args.control,
    )
    server.app.traces = TraceSettings(args.trace_file)
    server.app.logs = LogSettings(verbose=args.log_requests)

    def ready(url: str) -> None:
        grpc = server.grpc_address
        _say(f"ready on {url}, gRPC on {grpc}" if grpc else f"ready on {url}")
        if args.json:
            names = [
                {"name": m.name, "version": m.version, "variant": m.session.variant, "device": m.session.device}
                for m in models
            ]
            sys.stdout.write(msgspec.json.encode({"url": url, "grpc": grpc or None, "models": names}).decode() + "\n")
            sys.stdout.flush()

    server.run(ready=ready, signals=True)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; expected 0 to 65535")
    return int(text)


def _grpc_port(text: str) -> int | str:
    return text if text == "off" else _port(text)


def _chosen(grpc_port: int | str | None, port: int) -> int | None:
    """The port for gRPC, or None for no gRPC: as it was given, else the one after HTTP's."""
    if grpc_port is None:
        return port + 1 if 0 < port < 65535 else 0
    return None if isinstance(grpc_port, str) else grpc_port


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
