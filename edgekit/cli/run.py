"""Run files through a package and print what the model says.

Images (PNG, JPEG, BMP, WebP, TIFF) and WAV files go through the package's declared preprocessing; .npz files hold
inputs by name, .npy the only input. Classifiers print labels and probabilities, detectors what they found, other models
a summary of each output; -o writes all outputs to an .npz file.

Without --device and --variant the best variant for this machine runs, and a line says which and why. A package of
stages may be spread over devices: --split --device cuda:0,cuda:1
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np

from edgekit._files import storage, write_atomic
from edgekit.cli.output import note, print_json, print_table
from edgekit.cli.source import local
from edgekit.errors import UsageError
from edgekit.inference import DETECTIONS, Result, detections, gather, infer_files, scores
from edgekit.package import Package
from edgekit.runtime.devices import parse_devices
from edgekit.runtime.placed import open_placed
from edgekit.tensors import Tensors, shape_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", help="the package, or its URL")
    parser.add_argument("inputs", metavar="FILE", nargs="+", type=Path, help="image, .wav, .npz or .npy")
    parser.add_argument("-o", "--output", metavar="OUT.npz", type=Path, help="write the outputs here")
    parser.add_argument("--force", action="store_true", help="replace OUT.npz if it exists")
    parser.add_argument("--variant", metavar="ID", help="run this variant (default: the best for this machine)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda:N, or with --split several: cuda:0,cuda:1")
    parser.add_argument("--split", action="store_true", help="run each stage of a package of stages on its own device")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to print (default 3)")
    parser.add_argument(
        "--min-score", type=float, default=0.25, metavar="S", help="detections to print have this score (default 0.25)"
    )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="rows of one file in one call (default 32)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Run the files, print, write."""
    if args.top < 1 or args.batch < 1:
        raise UsageError("--top and --batch must be at least 1.")
    if args.output is not None:
        _check_output(args.output, args.force)
    package = Package.open(local(args.package))
    devices = parse_devices(args.device) if args.device is not None else ()
    if len(devices) > 1 and not args.split:
        raise UsageError(
            f"run sends one call at a time, which {len(devices)} devices do not make faster. Name one device, or "
            "spread the stages of a package over them with --split."
        )
    labels = package.labels()
    classify = package.manifest.task == "classification"
    detect = set(DETECTIONS) <= {s.name for s in package.manifest.output_specs}
    opened = open_placed(package, variant=args.variant, threads=args.threads, devices=devices, split=args.split)
    with opened.session as session:
        note(f"{package.name}: {opened.summary}")
        results = list(infer_files(package, session, args.inputs, batch=args.batch))
        if args.output is not None:
            _write(args.output, gather(results, session))
            note(f"wrote {args.output}")
    if args.json:
        print_json([_document(r, labels, args, classify=classify, detect=detect) for r in results])
    elif classify:
        print_table(["file", *("label", "probability>") * args.top], _class_rows(results, labels, args.top))
    elif detect:
        ends = ("left>", "top>", "right>", "bottom>")
        title = "boxes as the model gives them"
        print_table(["file", "object", "score>", *ends], _found_rows(results, labels, args.min_score), title=title)
    else:
        print_table(["file", "output", "shape", "min>", "mean>", "max>"], _summary_rows(results))
    return 0


def _class_rows(results: list[Result], labels: tuple[str, ...], top: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for result in results:
        for row in range(result.samples):
            name = result.source if result.samples == 1 else f"{result.source}[{row}]"
            cells: list[object] = [name]
            for score in scores(result.outputs, labels, row=row, top=top):
                cells += [score.label, f"{score.probability:.4f}"]
            rows.append(cells)
    return rows


def _found_rows(results: list[Result], labels: tuple[str, ...], least: float) -> list[list[object]]:
    rows: list[list[object]] = []
    for result in results:
        for row in range(result.samples):
            name = result.source if result.samples == 1 else f"{result.source}[{row}]"
            found = detections(result.outputs, labels, row=row, least=least)
            rows += [[name, d.label, f"{d.score:.4f}", *(f"{v:.1f}" for v in d.box)] for d in found]
            rows += [] if found else [[name, "nothing", *[""] * 5]]
    return rows


def _summary_rows(results: list[Result]) -> list[list[object]]:
    rows: list[list[object]] = []
    for result in results:
        for name, value in result.outputs.items():
            numbers = value.dtype.kind in "fiub" and value.size
            stats = [float(f(value)) for f in (np.min, np.mean, np.max)] if numbers else [None] * 3
            rows.append([result.source, name, shape_text(value.shape), *stats])
    return rows


def _document(
    result: Result, labels: tuple[str, ...], args: argparse.Namespace, *, classify: bool, detect: bool
) -> dict[str, object]:
    document: dict[str, object] = {"file": result.source, "samples": result.samples}
    if classify:
        document["classes"] = [scores(result.outputs, labels, row=i, top=args.top) for i in range(result.samples)]
    if detect:
        each = (detections(result.outputs, labels, row=i, least=args.min_score) for i in range(result.samples))
        document["detections"] = list(each)
    document["outputs"] = {k: {"shape": v.shape, "dtype": str(v.dtype)} for k, v in result.outputs.items()}
    return document


def _check_output(path: Path, force: bool) -> None:
    if path.suffix != ".npz":
        raise UsageError(f"'{path}' is not an .npz name; expected for example: -o out.npz")
    if path.exists() and not force:
        raise UsageError(f"'{path}' exists. Choose another name, or replace it with --force.")
    if not path.parent.is_dir():
        raise UsageError(f"Folder '{path.parent}' does not exist. Make it first.")


def _write(path: Path, arrays: Tensors) -> None:
    buffer = io.BytesIO()
    plain: dict[str, Any] = {k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()}
    np.savez_compressed(buffer, **plain)
    with storage(path):
        write_atomic(path, buffer.getvalue())
