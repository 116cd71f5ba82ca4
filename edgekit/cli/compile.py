"""Compile a package for a GPU: adds a TensorRT engine for every variant and target.

A target is a board or card (orin-nano, rtx-4090, l4), an architecture (sm_86), or this machine's GPU (this).
Engines for RTX GPUs are built on any machine by TensorRT-RTX (pip install 'edgekit[rtx]'); engines for Jetson and
datacenter GPUs on the device itself. The precision is the variant's: run edgekit quantize first. Every stage of a
package of stages is compiled.

  edgekit compile resnet.edge --target rtx-4090 sm_86
  edgekit compile resnet.edge --target orin-nano thor --plan      (what would work there: no GPU, no TensorRT)
  edgekit compile resnet.edge --target this --shapes x:1x3x224x224..8x3x224x224..32x3x224x224
  edgekit compile resnet.edge --on jetson@10.0.0.7      (built there, for its GPU, and brought home)
  edgekit compile --targets
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgekit.cli.device import add_ssh_arguments

if TYPE_CHECKING:
    from edgekit.engine.apply import Compiled
    from edgekit.engine.options import BuildOptions
    from edgekit.engine.profiles import Profile
    from edgekit.package import Package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", nargs="?", help="the package to add engines to")
    parser.add_argument("--target", metavar="T", nargs="+", action="extend", help="what to compile for (default: this)")
    parser.add_argument("--targets", action="store_true", help="list the targets and what they are")
    parser.add_argument("--plan", action="store_true", help="build nothing: say what would work; exit 1 if it breaks")
    parser.add_argument("--jetpack", metavar="V", help="with --plan: judge this release alone (6.2)")
    parser.add_argument("--variant", metavar="V", nargs="+", action="extend", help="default: fp16, bf16 and int8-trt")
    parser.add_argument(
        "--shapes",
        metavar="IN:MIN..OPT..MAX",
        action="append",
        help="shapes that the engine accepts; inputs separated by commas; repeat for several profiles "
        "(default: batch 1..8..32)",
    )
    parser.add_argument(
        "--module", choices=("tensorrt", "tensorrt-rtx"), help="the builder (default: the one that can)"
    )
    parser.add_argument("--workspace", metavar="MB", type=int, help="most scratch memory that a layer may take")
    parser.add_argument("--level", metavar="0..5", type=int, help="0 builds quickly, 5 gives the fastest engine")
    parser.add_argument(
        "--hardware",
        choices=("none", "same", "ampere+"),
        default="none",
        help="run on every GPU of the same compute capability, or on Ampere and later",
    )
    parser.add_argument("--version-compatible", action="store_true", help="run on later TensorRT of the same major")
    parser.add_argument("--strip", action="store_true", help="leave the weights out of the engine")
    parser.add_argument("--refit", action="store_true", help="let the weights be changed later")
    parser.add_argument("--dla", metavar="CORE", type=int, help="use this deep-learning accelerator, else the GPU")
    parser.add_argument("--sparsity", action="store_true", help="use 2:4 sparse weights where the weights are")
    parser.add_argument(
        "--verbosity", choices=("detailed", "names", "none"), default="detailed", help="what the engine tells of itself"
    )
    parser.add_argument(
        "--no-plugins", action="store_true", help="leave every layer to TensorRT (edgekit plugins list)"
    )
    parser.add_argument("--no-timing-cache", action="store_true", help="time every kernel again")
    parser.add_argument("--no-cache", action="store_true", help="build even if an equal engine is there")
    parser.add_argument(
        "--on", metavar="USER@HOST[:FOLDER]", help="build on that device over ssh, and bring the engines home"
    )
    add_ssh_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit compile`."""
    import msgspec

    from edgekit.cli.output import note
    from edgekit.engine.apply import compile_package
    from edgekit.engine.profiles import parse_shapes
    from edgekit.errors import UsageError
    from edgekit.package import Package

    if args.targets:
        return _list_targets(as_json=args.json)
    if args.package is None:
        raise UsageError("Which package? For example: edgekit compile X.edge --target orin-nano")
    package = Package.open(args.package)
    profiles = [parse_shapes(text) for text in args.shapes or ()]
    options = _options(args)
    if args.plan:
        if args.on:
            raise UsageError("--plan says what would work without a device. Leave out --on, or --plan.")
        return _plan(args, package, profiles)
    if package.stage_names and profiles:
        raise UsageError(
            f"'{package.path.name}' is made of stages, whose inputs differ. Give --shapes for one: "
            f"edgekit compile {args.package}/{package.stages()[0][0].package} --shapes ..."
        )
    if args.on:
        from edgekit.cli.compile_on import compile_there

        _print(compile_there(package, args), as_json=args.json, package=args.package)
        return 0
    made: list[Compiled] = []
    with _Report() as report:
        for prefix, own in _models(package):
            _, engines = compile_package(
                own,
                args.target or ["this"],
                variants=args.variant or (),
                profiles=profiles,
                options=options,
                kind=args.module,
                use_cache=not args.no_cache,
                progress=report,
                note=note,
            )
            made += [msgspec.structs.replace(c, id=f"{prefix}{c.id}") for c in engines]
    _print(made, as_json=args.json, package=args.package)
    return 0


def _models(package: Package) -> list[tuple[str, Package]]:
    """The package, or each of its stages with "STAGE/" before the names of its engines."""
    return [(f"{stage.name}/", own) for stage, own in package.stages()] or [("", package)]


def _plan(args: argparse.Namespace, package: Package, profiles: list[Profile]) -> int:
    import msgspec

    from edgekit.cli.output import print_json
    from edgekit.cli.plan import print_plan
    from edgekit.engine.plan import broken, plan_package
    from edgekit.engine.request import resolve
    from edgekit.gpu import this_gpu
    from edgekit.targets import targets

    names = args.target or [t.name for t in targets().values() if t.family == "jetson"]
    wanted = [resolve(name, this_gpu()) for name in dict.fromkeys(names)]
    found = []
    for prefix, own in _models(package):
        outlooks = plan_package(
            own,
            wanted,
            variants=args.variant or (),
            profiles=profiles,
            jetpack=args.jetpack,
            plugins=not args.no_plugins,
        )
        found += [msgspec.structs.replace(o, variant=f"{prefix}{o.variant}") for o in outlooks]
    failing = broken(found)
    if args.json:
        print_json({"outlooks": found, "breaks": failing})
    else:
        print_plan(found, failing, package=args.package)
    return 1 if failing else 0


def _options(args: argparse.Namespace) -> BuildOptions:
    from edgekit.engine.options import BuildOptions
    from edgekit.errors import UsageError

    if args.level is not None and not 0 <= args.level <= 5:
        raise UsageError(f"--level {args.level} is not a level; expected 0 to 5.")
    if args.workspace is not None and args.workspace < 1:
        raise UsageError(f"--workspace {args.workspace} is not a size; expected megabytes, 1 or more.")
    if args.dla is not None and args.dla < 0:
        raise UsageError(f"--dla {args.dla} is not a core; expected 0 or 1.")
    return BuildOptions(
        workspace_mb=args.workspace,
        level=args.level,
        hardware=args.hardware,
        version_compatible=args.version_compatible,
        strip=args.strip,
        refit=args.refit,
        dla=args.dla,
        sparsity=args.sparsity,
        verbosity=args.verbosity,
        timing_cache=not args.no_timing_cache,
        plugins=not args.no_plugins,
    )


class _Report:
    """Progress of builds to stderr: a line that is rewritten on a terminal, one every ten seconds elsewhere."""

    EVERY_S = 10.0

    def __enter__(self) -> _Report:
        import sys

        self._live = sys.stderr.isatty()
        self._last = ("", 0.0)
        self._width = 0
        return self

    def __exit__(self, *_error: object) -> None:
        self._clear()

    def __call__(self, engine: str, step: object) -> None:
        import sys

        from edgekit.cli.output import bytes_text
        from edgekit.engine.build import Step

        assert isinstance(step, Step)
        name, before = self._last
        if name != engine and not self._live:
            self._last = (engine, step.elapsed_s)
            sys.stderr.write(f"{engine}: building\n")
            sys.stderr.flush()
            return
        if name == engine and step.elapsed_s - before < (0.1 if self._live else self.EVERY_S):
            return
        self._last = (engine, step.elapsed_s)
        count = f" {step.done}/{step.total}" if step.total else ""
        text = f"{engine}: {step.phase}{count}, {step.elapsed_s:.0f} s, {bytes_text(step.peak_bytes)}"
        self._clear()
        sys.stderr.write(text if self._live else text + "\n")
        sys.stderr.flush()
        self._width = len(text) if self._live else 0

    def _clear(self) -> None:
        import sys

        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0


def _print(made: list[Compiled], *, as_json: bool, package: str) -> None:
    from edgekit.cli.engine import remarks
    from edgekit.cli.output import bytes_text, note, print_json, print_table, print_text

    if as_json:
        print_json({"engines": made})
        return
    rows = [
        [c.id, c.source, c.target, c.module, bytes_text(c.bytes), f"{c.build_s:.1f} s", _state(c.reused), _products(c)]
        for c in made
    ]
    print_table(["engine", "from", "target", "built by", "size>", "build>", "", "products run in"], rows)
    for c in made:
        if c.plugins:
            print_text(f"{c.id} runs layers as plugins: {', '.join(c.plugins)}")
        for text in c.warnings:
            note(f"warning: {c.id}: {text.splitlines()[0]}")
        for text in remarks(c.summary) if c.summary is not None else ():
            note(f"note: {c.id}: {text}")
    stage, slash, first = made[0].id.rpartition("/")
    print_text(
        f"Look inside with: edgekit inspect {package}{f'/{stage}.edge' if slash else ''} --variant {first} --layers"
    )


def _state(reused: str) -> str:
    return {"": "built", "package": "already there", "cache": "from the cache"}[reused]


def _products(c: Compiled) -> str | None:
    if c.summary is None or not c.summary.products:
        return None
    return ", ".join(f"{n} {p}" for p, n in sorted(c.summary.products.items()))


def _list_targets(*, as_json: bool) -> int:
    from edgekit.cli.output import print_json, print_table, print_text
    from edgekit.targets import targets

    known = targets()
    if as_json:
        print_json(list(known.values()))
        return 0
    columns = ["target", "what", "sm>", "memory GB>", "GB/s>", "FP16>", "INT8>", "FP8>", "W>", "built by", "JetPack"]
    rows = []
    for t in known.values():
        watts = "-" if t.power_w is None else "-".join(f"{w:g}" for w in dict.fromkeys(t.power_w))
        by = "TensorRT-RTX, anywhere" if t.rtx and t.family == "rtx" else "TensorRT, on it"
        if t.rtx and t.family != "rtx":
            by += "; TensorRT-RTX"
        figures = [t.sm, t.memory_gb, t.bandwidth_gb_s, t.fp16_tops, t.int8_tops, t.fp8_tops]
        rows.append([t.name, t.title, *figures, watts, by, ", ".join(t.jetpacks)])
    print_table(columns, rows)
    print_text("Rates: dense, 1e12 operations a second, as the data sheets state. Also: this, and sm_75 to sm_121.")
    return 0
