"""`edgekit`: finds the command, runs it, and turns every error into one sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

COMMANDS = {
    "export": "PyTorch (or an ONNX file) -> package, checked against the original",
    "quantize": "add an INT8 or FP16 variant, calibrated on real samples",
    "compile": "add TensorRT engines for a Jetson, RTX or datacenter GPU",
    "verify": "check every variant that this machine can run against the reference",
    "bench": "latency percentiles, throughput and joules per inference, per variant",
    "tune": "the setting with the least energy or latency, and the commands for it",
    "serve": "serve packages over HTTP (Open Inference Protocol v2)",
    "run": "run images, WAV or npz files through a package",
    "batch": "run a folder of files through a package into one table, resumable",
    "inspect": "what is inside a package: variants, layers, FLOPs, bytes",
    "pack": "a package as one file, the same bytes for the same content",
    "unpack": "make a package of such a file again, every digest checked",
    "sign": "sign a package, or make a key pair for it",
    "push": "put a package on a device over ssh, tested there before it is used",
    "monitor": "live power, temperature, clocks and throttling",
    "board": "record a machine's telemetry files, to be replayed elsewhere",
    "plugins": "the CUDA plugins for TensorRT, and what each takes of each GPU",
    "doctor": "what this machine has, what is missing, how to fix it",
}
"""Command -> what it does. Each lives in `edgekit.cli.<command>` as `add_arguments(parser)` and `run(args)`."""

EPILOG = "exit codes: 0 success, 1 a check failed or the work could not be done, 2 misuse, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"edgekit: {message}. See: {self.prog} --help\n")
        raise SystemExit(2)


def _top_parser() -> argparse.ArgumentParser:
    from edgekit import __version__

    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    parser = _Parser(
        prog="edgekit",
        usage="edgekit COMMAND [ARGUMENTS]",
        description=f"From a PyTorch model to a box at the edge.\n\ncommands:\n{lines}",
        epilog=f"edgekit COMMAND --help explains one command.\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgekit {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, 1)
    return f"Did you mean '{close[0]}'?" if close else f"Commands are {', '.join(COMMANDS)}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` defaults to the process's arguments."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0].startswith("-"):
        parser = _top_parser()
        parser.parse_args(args)
        parser.print_help()
        return 0 if not args else 2
    name = args[0]
    if name not in COMMANDS:
        sys.stderr.write(f"edgekit: '{name}' is not a command. {_did_you_mean(name)}\n")
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    as_json = "--json" in args
    try:
        module = importlib.import_module(f"edgekit.cli.{name}")
        parser = _Parser(
            prog=f"edgekit {name}",
            description=module.__doc__,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(parser)
        parsed = parser.parse_args(args[1:])
        return int(module.run(parsed))
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-done was left behind", 130, as_json)
    except BrokenPipeError:  # the reader of our output left: `edgekit inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in args:
            raise
        return _fail(*_explain(error), as_json)


def _explain(error: Exception) -> tuple[str, int]:
    from edgekit.errors import EdgekitError

    if isinstance(error, EdgekitError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"'{error.filename}': " if error.filename else ""
        return f"{where}{error.strerror or error}. Check the path and the disk.", 1
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller batch or a smaller model.", 1
    text = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return f"unexpected {detail}. This is a bug in edgekit: run again with --debug and report what it prints.", 1


def _fail(message: str, code: int, as_json: bool) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"edgekit: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # SIGTERM cleans up as Ctrl-C does


if __name__ == "__main__":
    raise SystemExit(main())
