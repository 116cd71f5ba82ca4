"""Serve packages over HTTP, with the Open Inference Protocol (KServe v2).

  edgekit serve resnet.edge                    one model
  edgekit serve resnet.edge words.edge         several
  edgekit serve models/                        every package of a folder
  curl http://127.0.0.1:8000/v2/models/resnet

Every package is checked, warmed and tested on its own samples before the first request is taken. Clients of Triton
(tritonclient) work unmodified, with JSON or binary tensors. Values that are not finite become null in JSON answers:
ask for binary data where that matters. SIGINT and SIGTERM end the server after it has answered what it was asked.
"""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `edgekit serve`."""
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="NAME.edge, or a folder that holds packages")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument("--variant", help="variant to serve (default: the best for this machine)")
    parser.add_argument("--threads", type=_threads, help="threads a model may use (default: chosen by measuring)")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. With --json, one line of JSON says where once requests are taken."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before numpy starts a thread a core, which a server has no use for
    import msgspec

    from edgekit.serve.repository import load_models
    from edgekit.serve.server import Server

    models = load_models(
        args.packages,
        variant=args.variant,
        threads=args.threads,
        loaded=lambda model: _say(str(model)),
    )
    server = Server(models, host=args.host, port=args.port)

    def ready(url: str) -> None:
        _say(f"ready on {url}")
        if args.json:
            names = [
                {"name": m.name, "version": m.version, "variant": m.session.variant, "device": m.session.device}
                for m in models
            ]
            sys.stdout.write(msgspec.json.encode({"url": url, "models": names}).decode() + "\n")
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


def _threads(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of threads; expected 1 or more")
    return int(text)
