"""Run every file of a folder through a package and write one table.

  edgekit batch resnet.edge photos/ -o labels.parquet
  edgekit batch resnet.edge photos/ -o labels.csv --top 1
  edgekit batch resnet.edge /data/photos -o /data/labels.parquet --ray auto

Inputs are what `edgekit run` takes: images and WAV files through the package's
preprocessing, .npz and .npy. A row of the table is a file, or a sample of one:
path, row, the best labels with their scores (or the output tensors), error. A
file that cannot be read or run is a row with its error, and makes the exit
code 1.

Interrupted, by Ctrl-C or by a kill, the same command goes on where it was;
until the table is complete, the work lies in .OUT.partial beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.batch.columns import Layout
from edgekit.batch.formats import format_for
from edgekit.batch.job import PART_S, Engine, Hears, LocalEngine, Report, check_output, run_batch
from edgekit.batch.pipeline import Pipeline, batch_size
from edgekit.batch.plan import Changes
from edgekit.cli.output import note, print_json, print_text, progress_rate
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.runtime.devices import parse_devices
from edgekit.runtime.placed import open_placed

NAMED = 5
"""Inputs that are named where more have changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument("folder", metavar="INPUT_DIR", type=Path, help="folder of images, .wav, .npz or .npy files")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="the table: .parquet, .csv or .jsonl"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run did")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes a row (default 3)")
    parser.add_argument("--tensors", action="store_true", help="a classifier's output tensors too")
    parser.add_argument("--variant", metavar="ID", help="run this variant (default: the best for this machine)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda:N, or several side by side: cuda:0,cuda:1")
    parser.add_argument("--batch", type=int, metavar="N", help="rows in one call (default: measured)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the model (default: one a core)")
    parser.add_argument("--readers", type=int, metavar="N", help="threads that read and decode (default: one a core)")
    parser.add_argument(
        "--checkpoint", type=float, default=PART_S, metavar="S", help="seconds of work that a kill may cost (default 5)"
    )
    more = parser.add_argument_group("past one machine", "inputs on storage that every node sees; extra: ray")
    more.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster: auto, HOST:PORT, or local for one started here")
    more.add_argument("--workers", type=int, metavar="N", help="with --ray: workers (default: one a GPU, else a node)")


def run(args: argparse.Namespace) -> int:
    """Run the folder, write the table, say how it went."""
    for name in ("top", "batch", "threads", "readers", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1.")
    check_output(args.output, force=args.force)
    package = Package.open(args.package)
    layout = Layout(package, top=args.top, tensors=args.tensors)
    format_for(args.output, layout.columns)  # before anything is loaded: a wrong name, or pyarrow that is missing
    with _engine(args, package, layout) as engine:
        report = _run(args, package, engine)
    if args.json:
        print_json(report)
    else:
        print_text(_summary(report))
    if report.changed_since_read:
        note(f"changed while this ran, so their rows may be of what they were: {_few(report.changed_since_read)}")
    if report.failed:
        note(f"{report.failed} of {report.files} files failed; column 'error' of '{report.output}' says why for each.")
    return 1 if report.failed else 0


@contextmanager
def _engine(args: argparse.Namespace, package: Package, layout: Layout) -> Iterator[Engine]:
    if args.ray is not None:
        with _cluster(args, package) as engine:
            yield engine
        return
    if args.workers is not None:
        raise UsageError("--workers is for a Ray cluster: give --ray too. One process uses all cores as it is.")
    devices = parse_devices(args.device) if args.device is not None else ()
    opened = open_placed(package, variant=args.variant, threads=args.threads, devices=devices)
    with opened.session as session:
        batch = batch_size(package, session, wanted=args.batch)
        note(f"{package.name}: {opened.summary}, batches of {batch}")
        pipeline = Pipeline(package, session, layout, batch=batch, readers=args.readers)
        yield LocalEngine(pipeline, session.variant, keep_s=args.checkpoint)


@contextmanager
def _cluster(args: argparse.Namespace, package: Package) -> Iterator[Engine]:
    from edgekit.batch.cluster import ClusterEngine, Options
    from edgekit.cluster import connected

    if args.device is not None:
        raise UsageError("--device is for one machine; on a Ray cluster each worker gets a GPU where there are any.")
    options = Options(
        output=str(args.output),
        top=args.top,
        tensors=args.tensors,
        variant=args.variant,
        batch=args.batch,
        threads=args.threads,
        readers=args.readers,
    )
    with connected(args.ray) as ray:
        engine = ClusterEngine(ray, package, options, workers=args.workers)
        share = engine.share
        each = f"{share.gpus} GPU" if share.gpus else f"{share.cpus} CPUs"
        note(f"{package.name}: Ray cluster of {engine.nodes} node(s), {share.workers} worker(s) with {each} each")
        yield engine


def _run(args: argparse.Namespace, package: Package, engine: Engine) -> Report:
    done = total = 0
    with progress_rate(package.name, "files") as bar:

        def begun(before: int, files: int) -> None:
            nonlocal done, total
            done, total = before, files
            bar.begin(before, files)

        def kept(files: int) -> None:
            nonlocal done
            done += files

        try:
            return run_batch(
                package,
                args.folder,
                args.output,
                engine=engine,
                top=args.top,
                tensors=args.tensors,
                restart=args.restart,
                hears=Hears(resumed=_resumed, begun=begun, done=bar, kept=kept),
            )
        except BaseException:
            if total:
                note(f"{done} of {total} files are done and kept; the same command goes on from there.")
            raise


def _resumed(changes: Changes, done: int) -> None:
    if done:
        note(f"going on with an interrupted run: {done} files are done")
    for what, names in (
        ("changed since, run again", changes.changed),
        ("new since, added", changes.added),
        ("gone since, left out", changes.removed),
    ):
        if names:
            note(f"{what}: {_few(names)}")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{n}'" for n in names[:NAMED]) + more


def _summary(report: Report) -> str:
    speed = report.files_per_s
    rate = f" in {report.seconds:.1f} s: {speed:.{0 if speed >= 10 else 2}f} files/s" if speed else ""
    before = f", {report.before} of them by an interrupted run" if report.before else ""
    return f"{report.files} files, {report.rows} rows{before}{rate}\nwrote {report.output}"
