"""Make a package from a PyTorch model or an ONNX file, and check it against the original.

SOURCE is one of
  models/net.py            a recipe: its SPEC says how the model is built and what goes in
  models/net.py:NAME       another name in that file: a ModelSpec, a torch.nn.Module, or a function that returns one
  package.module:factory   the same, from an installed module
  model.pt2                a program saved by torch.export.save
  model.onnx               an ONNX file of opset 7 or newer

Several sources make a package of stages, in the order they run (NAME=SOURCE names a stage): an output of one is the
input of that name of a later one; --link joins other names. Each stage lies in the package as a package of its own.
--stages and --split-at cut one .onnx file into stages.

A recipe and a module are Python and are executed. The same samples run through the original and the exported model at
batch 1, 3 and 8; if they differ by more than --tolerance, nothing is written and the exit code is 1.

examples:
  edgekit export models/digits_cnn.py -o digits.edge
  edgekit export torchvision.models:resnet18 -o resnet18.edge --input image:float32:batch,3,224,224 --samples photos.npz
  edgekit export squeezenet.onnx -o squeezenet.edge --labels imagenet.txt --dynamic-batch
  edgekit export models/digits_cnn.py -o digits.edge --with-preprocess 480x640:RGB
  edgekit export denoiser.onnx decoder.onnx -o pipeline.edge --link decoder.x=denoiser.latent
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import bytes_text, note, print_json, print_table, print_text
from edgekit.cli.stages import print_stages
from edgekit.errors import ModelError, UsageError
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from edgekit.export.frames import Frame
    from edgekit.package import Package


OPSETS = range(18, 24)
"""What PyTorch's exporter writes, and onnx converts to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit export`."""
    parser.add_argument(
        "source", metavar="SOURCE", nargs="+", help="recipe.py, path.py:NAME, module:factory, .pt2 or .onnx"
    )
    parser.add_argument("-o", "--output", metavar="X.edge", help="package to make (default: the model's name, here)")
    parser.add_argument("--force", action="store_true", help="replace the package that is there")
    parser.add_argument("--name", help="name of the model (default: the recipe's, or the file's)")
    parser.add_argument("--task", help='what the first output means: "classification" turns on labels and agreement')
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX operator set (default: 18, or a newer file's own)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME:DTYPE:DIMS",
        help="an input of a bare module: image:float32:batch,3,224,224; named dimensions are free (may be repeated)",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="FILE.npz|DIR", help="real inputs: arrays by input name, or a folder of files"
    )
    parser.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="STAGE.INPUT=TENSOR",
        help="with several sources: what an input takes, where the names differ (may be repeated)",
    )
    parser.add_argument("--stages", type=int, metavar="N", help="cut one .onnx file into N stages of about equal work")
    parser.add_argument(
        "--split-at",
        action="append",
        default=[],
        metavar="TENSOR",
        help="cut one .onnx file behind this tensor (repeat)",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--preprocess", type=Path, metavar="FILE.json", help="how files become inputs, as in a manifest's preprocess"
    )
    parser.add_argument(
        "--with-preprocess",
        metavar="HxW[:COLOR]",
        help="take a camera's frames as they are, uint8, and preprocess them in the graph: 480x640, 1080x1920:BGR",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="REL",
        help="largest difference accepted, relative to the largest output (default: 1e-4 for float32)",
    )
    parser.add_argument("--static", action="store_true", help="fix every named dimension; the batch becomes 1")
    parser.add_argument(
        "--dynamic-batch", action="store_true", help="make the batch of an .onnx file, fixed at 1, free"
    )


def run(args: argparse.Namespace) -> int:
    """Export, then print what was made. Raises what `edgekit.export.build.export` raises."""
    if args.tolerance is not None and not args.tolerance >= 0:
        raise UsageError(f"--tolerance {args.tolerance} is not usable; expected a positive number such as 1e-4.")
    if args.opset is not None and args.opset not in OPSETS:
        raise UsageError(f"--opset {args.opset} is not usable; expected {OPSETS[0]} to {OPSETS[-1]}.")
    inputs = [parse_input(text) for text in args.input]
    cut = args.stages is not None or bool(args.split_at)
    several = len(args.source) > 1 or cut
    if cut and (len(args.source) > 1 or Path(args.source[0]).suffix != ".onnx" or (args.stages and args.split_at)):
        raise UsageError("--stages N or --split-at TENSOR (one of the two) cuts one .onnx file into stages.")
    if several and (inputs or args.output is None):
        raise UsageError(
            "Several sources make a package of stages: name it with -o X.edge, and describe the inputs of a module in "
            "a recipe instead of --input."
        )
    if args.link and not several:
        raise UsageError("--link joins stages, and there is one source. Leave it out, or name the others.")
    from edgekit.export.build import export
    from edgekit.export.declared import Declared
    from edgekit.export.stages import export_stages, parse_link

    frame = None if args.with_preprocess is None else parse_frame(args.with_preprocess)
    if frame is not None and several:
        raise UsageError("--with-preprocess is for one source. Export the first stage with it, then join the stages.")
    declared = Declared(name=args.name, task=args.task, labels=args.labels, preprocess=args.preprocess, frame=frame)
    how = {name: getattr(args, name) for name in ("force", "samples", "opset", "tolerance", "static", "dynamic_batch")}

    gc.set_threshold(200_000, 20, 100)  # importing and tracing make a million lasting objects: 1 s less of collecting
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what a recipe prints must not spoil the result
        if several:
            sources = stack.enter_context(_parts(args)) if cut else args.source
            links = [parse_link(text) for text in args.link]
            package = export_stages(sources, output=args.output, declared=declared, links=links, note=note, **how)
        else:
            package = export(args.source[0], output=args.output, declared=declared, inputs=inputs, note=note, **how)
    if args.json:
        print_json({"package": str(package.path), "manifest": package.manifest})
    else:
        _show(package)
    return 0


@contextlib.contextmanager
def _parts(args: argparse.Namespace) -> Iterator[list[Path]]:
    """The one source, cut into files that are gone afterwards."""
    from edgekit.export.cut import parts_from_file

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        yield parts_from_file(Path(args.source[0]), Path(folder), count=args.stages or 0, at=args.split_at)


def parse_input(text: str) -> TensorSpec:
    """An `--input`: NAME:DTYPE:DIMS, dimensions a size or a name, none for a scalar. Raises UsageError."""
    parts = text.rsplit(":", 2)
    dims = [d.strip() for d in parts[-1].split(",")] if len(parts) == 3 and parts[-1] else []
    if len(parts) != 3 or not parts[0] or not all(dims):
        raise UsageError(
            f"--input '{text}' is not usable; expected NAME:DTYPE:DIMS, e.g. image:float32:batch,3,224,224."
        )
    for dim in dims:
        if not (dim.isdigit() and int(dim) > 0) and not dim.isidentifier():
            raise UsageError(f"--input '{text}' has dimension '{dim}'; expected a size or a name.")
    try:
        return TensorSpec(parts[0], parts[1], tuple(int(d) if d.isdigit() else d for d in dims))
    except ModelError as error:
        raise UsageError(f"--input '{text}' is not usable: {error}") from error


def parse_frame(text: str) -> Frame:
    """A `--with-preprocess`: HEIGHTxWIDTH in pixels, and a colour. Raises UsageError."""
    from edgekit.export.frames import Frame

    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?::(RGB|BGR|L))?", text)
    if found is None:
        raise UsageError(
            f"--with-preprocess '{text}' is not usable; expected a frame's height and width, 480x640, and RGB, BGR or "
            "L where it is not the model's: 480x640:BGR."
        )
    return Frame(int(found[1]), int(found[2]), found[3])  # type: ignore[arg-type]


def _show(package: Package) -> None:
    if package.stage_names:
        print_stages(package)
        return
    manifest = package.manifest
    variant = package.reference
    came = manifest.provenance
    print_table(
        ("batch>", "max abs error>", "max rel error>"),
        [(p.batch, f"{p.max_abs:.2e}", f"{p.max_rel:.2e}") for p in came.parity],
        title=f"parity with {'the original file' if came.framework.startswith('onnx') else 'PyTorch'}",
    )
    accuracy = variant.accuracy
    if accuracy is not None:
        for name, value in accuracy.metrics.items():
            print_text(f"{name} {value:.4g} on {accuracy.metric_samples} samples")
    for text in came.notes:
        print_text(f"note: {text}")
    ends = ", ".join(str(s) for s in manifest.input_specs), ", ".join(str(s) for s in manifest.output_specs)
    print_text(f"{ends[0]} -> {ends[1]}")
    print_text(f"{package.path.name}: {variant.id}, opset {came.opset}, {bytes_text(variant.bytes)}")
