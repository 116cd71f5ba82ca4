"""Every recipe of models/ the whole way, by the commands that a user types.

    python scripts/zoo.py                 all recipes (make zoo)
    python scripts/zoo.py lenet5 vit      these; the other rows stay
    python scripts/zoo.py --fast          the half that is done soonest, compared with what is recorded (make zoo-fast)

A recipe is trained if its weights are missing, exported and compared with PyTorch, made FP16 and INT8 within its
tolerance, checked against its metric, compiled by TensorRT-RTX, measured in ONNX Runtime, and served: one sample is
asked for over HTTP. Each step is a process of its own. What came of it goes to benchmarks/results/zoo.json, and from
there into models/README.md. With --fast nothing is written: the exit code is 1 if a row that was whole no longer is.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgekit.errors import EdgekitError  # noqa: E402
from edgekit.package import Package  # noqa: E402
from edgekit.tensors import dtype_of, take_samples  # noqa: E402
from scripts.zoo_table import PAYS, readme, whole  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"
README = ROOT / "models" / "README.md"
TARGETS = ("sm_86", "sm_120")
STAGES = "STAGES"
"""In place of a spec's name: the row of a recipe's stages as one package."""
SERVED = 1e-3
"""Largest difference from the reference in the server's answer, relative to the largest value of the output."""


class StepError(Exception):
    """A step that could not be done, in the words of what failed."""


class Row:
    """One recipe's way through the stages; `found` gathers what is written down."""

    def __init__(self, recipe: Path, name: str, folder: Path, *, bench: bool, limit_s: float) -> None:
        self.recipe, self.spec = recipe, name
        self.source = str(recipe.relative_to(ROOT)) + ("" if name == "SPEC" else f":{name}")
        self.label = recipe.stem + ("" if name == "SPEC" else f":{name.lower()}")
        self.package = folder / f"{self.label.replace(':', '-')}.edge"
        self.bench = bench
        self.found: dict[str, Any] = {"recipe": self.source, "steps": {}}
        self.limit_s = limit_s
        self.until = 0.0  # when the row must be done; it starts with run()
        self.arguments: dict[str, list[str]] = {}
        self.stages: dict[str, str] = {}
        self.judge = str(recipe.relative_to(ROOT)) if name == STAGES else self.source

    def run(self) -> dict[str, Any]:
        """All steps in order; without a package the rest is left out, any other step may fail alone."""
        start = time.monotonic()
        self.until = start + self.limit_s
        if self.step("build", self.describe) and self.step("export", self.export):
            for name, work in (("fp16", self.fp16), ("int8", self.int8), ("verify", self.verify)):
                self.step(name, work)
            for target in TARGETS:
                self.step(target, lambda target=target: self.compile(target))
            if self.bench:
                self.step("bench", self.measure)
            self.step("serve", self.serve)
        shutil.rmtree(self.package, ignore_errors=True)
        trained = self.found.get("trained_s") or 0.0
        self.found["seconds"] = round(time.monotonic() - start - trained, 1)
        self.found["made"] = machine()
        self.say(f"{'whole' if whole(self.found) else 'not whole'}, {self.found['seconds']:.0f} s")
        return self.found

    def say(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def step(self, name: str, work: Any) -> bool:
        """Do `work`; whether it went well, how long it took and what was said go into the row."""
        start = time.monotonic()
        try:
            work()
            words = ""
        except (StepError, LookupError, ValueError, OSError) as error:
            words = str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"
            self.say(f"{name}: {words}")
        self.found["steps"][name] = {"ok": not words, "seconds": round(time.monotonic() - start, 1), "words": words}
        return not words

    def command(self, command: Sequence[str | Path], *, may_fail: bool = False) -> str:
        """Run one process in a group of its own within the row's time, and return what it printed."""
        left = self.until - time.monotonic()
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*map(str, command)], cwd=ROOT, start_new_session=True, **pipes) as process:
            try:
                out, err = process.communicate(timeout=max(1.0, left))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise StepError(f"not done within the row's {self.limit_s:.0f} s") from None
        if process.returncode and not (may_fail and process.returncode == 1):
            lines = [line for line in err.strip().splitlines() if line.strip()]
            said = [line for line in lines if line.startswith("edgekit: ")]
            words = (said or lines or [f"exit code {process.returncode}"])[-1].removeprefix("edgekit: ")
            raise StepError(words.replace(str(self.package), self.package.name))
        return out

    def edgekit(self, command: str, *args: str | Path, may_fail: bool = False) -> Any:
        """One command of edgekit, its answer as JSON."""
        own = self.arguments.get(command, [])
        text = self.command([sys.executable, "-m", "edgekit", command, *args, *own, "--json"], may_fail=may_fail)
        answer = json.loads(text)
        if isinstance(answer, dict) and "error" in answer:
            raise StepError(str(answer["error"]).replace(str(self.package), self.package.name))
        return answer

    def describe(self) -> None:
        """What the recipe says of itself, and the size of its net; trains it where its weights are missing."""
        about = json.loads(self.command([sys.executable, __file__, "--describe", self.source]))
        if about["missing"]:
            start = time.monotonic()
            self.say("trains, its weights are missing")
            self.command([sys.executable, self.recipe])
            self.found["trained_s"] = round(time.monotonic() - start, 1)
            self.until += self.found["trained_s"]
            about = json.loads(self.command([sys.executable, __file__, "--describe", self.source]))
        self.arguments, self.stages = about.pop("arguments"), about.pop("stages")
        del about["missing"]
        self.found |= about

    def export(self) -> None:
        sources = [f"{name}={source}" for name, source in self.stages.items()] or [self.source]
        manifest = self.edgekit("export", *sources, "-o", self.package)["manifest"]
        if self.stages:
            parts = [own.manifest for _, own in Package.open(self.package).stages()]
            self.found["parity"] = max(p.max_rel for part in parts for p in part.provenance.parity)
            self.found |= {"metric": "", "fp32": {"bytes": sum(part.variants[0].bytes for part in parts)}}
            return
        reference = manifest["variants"][0]
        self.found["parity"] = max((p["max_rel"] for p in manifest["provenance"]["parity"]), default=None)
        metrics = reference["accuracy"].get("metrics") or {}
        self.found["metric"] = next(iter(metrics), "")
        self.found["fp32"] = {"metric": metrics.get(self.found["metric"]), "bytes": reference["bytes"]}

    def quantize(self, precision: str) -> None:
        """The package, or each stage by its own recipe: what that does to the whole, `verify` tells."""
        budget = self.found["tolerance"].get(precision)
        args = [] if budget is None else ["--max-drop", str(budget)]
        for name, source in (self.stages or {"": self.source}).items():
            package = self.package / f"{name}.edge" if name else self.package
            command = ("quantize", package, "--precision", precision, "--recipe", source)
            report = self.edgekit(*command, *args, may_fail=True)
            for variant in report["variants"]:
                before = self.found.get(variant["id"], {"bytes": 0})
                self.found[variant["id"]] = {
                    "metric": variant["result"] if report["measure"] == self.found["metric"] else None,
                    "measure": report["measure"],
                    "lost_points": variant["drop"],
                    "bytes": variant["bytes"] + before["bytes"],
                }
            over = [v for v in report["variants"] if not v["within_budget"]]
            if over:
                lost = f"{over[0]['id']} loses {over[0]['drop']:.2f} points of {report['measure']}"
                raise StepError(f"{name}{name and ': '}{lost}, {report['budget']:g} are allowed")

    def fp16(self) -> None:
        self.quantize("fp16")

    def int8(self) -> None:
        self.quantize("int8")

    def verify(self) -> None:
        report = self.edgekit("verify", self.package, "--recipe", self.judge, may_fail=True)
        checks, self.found["metric"] = report["checks"], report["metric"] or ""
        for check in checks:
            variant = check["variant"].removeprefix("all stages/")
            if check["metrics"] and variant in self.found:
                self.found[variant]["metric"] = check["metrics"][self.found["metric"]]
                if self.stages:
                    self.found[variant] |= {"measure": self.found["metric"], "lost_points": check["drop"]}
        wrong = [f"{c['variant']}: {c['reason']}" for c in checks if not c["passed"]]
        if wrong:
            raise StepError("; ".join(wrong))

    def compile(self, target: str) -> None:
        answer = self.edgekit("compile", self.package, "--target", target, "--variant", "fp16", "--no-cache")
        engines = answer["engines"]
        totals = {key: sum(e[key] for e in engines) for key in ("bytes", "build_s")}
        self.found[target] = {**totals, "module": engines[0]["module"]}

    def measure(self) -> None:
        report = self.edgekit("bench", self.package, "--quick", "--threads", "1", "--no-plot")
        for variant in report["variants"]:
            if variant["id"] in self.found:
                speed = variant["speedup"] or {}
                self.found[variant["id"]] |= {
                    "p50_ms": round(1000 * variant["latency"]["p50_s"], 4),
                    "speed_up": speed.get("ratio"),
                    "speed_up_range": [speed.get("low"), speed.get("high")],
                }
        gain = self.found.get("int8", {}).get("speed_up")
        if gain is not None and round(gain, 2) < PAYS:
            self.say(f"INT8 does not pay here: {gain:.2f} times the speed of FP32")

    def serve(self) -> None:
        """Ask the server for one of the package's samples, and compare with what the original gave."""
        command = [sys.executable, "-m", "edgekit", "serve", self.package, "--variant", "fp32", "--port", "0"]
        command += ["--grpc-port", "off", "--json", *self.arguments.get("serve", [])]
        with tempfile.TemporaryFile("w+") as log:
            server = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            watch = threading.Timer(max(1.0, self.until - time.monotonic()), server.kill)
            watch.start()
            try:
                assert server.stdout is not None
                line = server.stdout.readline()
                if not line or "url" not in json.loads(line):
                    log.seek(0)
                    raise StepError((log.read().strip().splitlines() or ["the server ended"])[-1])
                self.ask(json.loads(line)["url"])
            finally:
                watch.cancel()
                server.terminate()
                server.communicate()

    def ask(self, url: str) -> None:
        package = Package.open(self.package)
        manifest, samples = package.manifest, package.samples()
        inputs, outputs = manifest.input_specs, manifest.output_specs
        one = take_samples(samples.inputs, inputs, 0, 1, inputs)
        expected = take_samples(samples.outputs, outputs, 0, 1, inputs)
        tensors = [(s.name, dtype_of(s.dtype).oip, one[s.name]) for s in inputs]
        body = [{"name": n, "datatype": t, "shape": a.shape, "data": a.ravel().tolist()} for n, t, a in tensors]
        request = urllib.request.Request(
            f"{url}/v2/models/{manifest.name}/infer", json.dumps({"inputs": body}).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                given = json.load(reply)["outputs"]
        except urllib.error.HTTPError as error:
            raise StepError(f"the server answers {error.code}: {error.read().decode()}") from error
        answer = {o["name"]: np.array(o["data"], np.float64).reshape(o["shape"]) for o in given}
        worst = 0.0
        for name, array in expected.items():
            if answer[name].shape != array.shape:
                raise StepError(f"{name} has shape {answer[name].shape} over HTTP, {array.shape} in PyTorch")
            if array.size:
                largest = max(float(np.abs(array).max()), 1e-9)
                worst = max(worst, float(np.abs(answer[name] - array.astype(np.float64)).max()) / largest)
        self.found["served"] = {"max_rel": worst}
        if not worst <= SERVED:
            raise StepError(f"the answer over HTTP differs from PyTorch's by {worst:.2g} of the largest value")


def machine() -> dict[str, str]:
    """Where and with what a row was made."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    packages = ("torch", "onnxruntime", "tensorrt-rtx-cu13-libs")
    return {
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name.removesuffix("-cu13-libs"): version(name) for name in packages},
    }


def describe(source: str) -> dict[str, Any]:
    """What the table says of a recipe before anything is run, and which of its weights are missing."""
    from edgekit.recipe import load_recipe, spec_from_recipe

    file, _, name = source.partition(":")
    spec = spec_from_recipe(file if name == STAGES else source)
    zoo = load_recipe(f"{file}:ZOO")
    from _zoo import weights_file  # loading the recipe made its folder importable

    missing = [] if zoo.weights == "random" else [p for p in zoo.parts if not weights_file(ROOT / file, p).is_file()]
    parameters = None if missing else sum(p.numel() for p in spec.build().parameters())
    return {
        "title": zoo.title + (", as stages" if name == STAGES else ""),
        "group": zoo.group,
        "data": zoo.data,
        "weights": zoo.weights,
        "parameters": parameters,
        "tolerance": dict(spec.tolerance),
        "higher_is_better": spec.higher_is_better,
        "missing": missing,
        "stages": {stage: f"{file}:{own}" for stage, own in zoo.stages.items()} if name == STAGES else {},
        "arguments": {command: list(args) for command, args in zoo.arguments.items()},
    }


def recipes(names: Sequence[str]) -> list[tuple[Path, str]]:
    """The recipes called `names`, or all, each with the names of its specs."""
    from edgekit.recipe import load_recipe

    files = {f.stem: f for f in sorted((ROOT / "models").glob("[!_]*.py"))}
    unknown = [n for n in names if n not in files]
    if unknown:
        raise SystemExit(f"no recipe is called {', '.join(unknown)}; there are {', '.join(files)}")
    chosen = [files[n] for n in names] if names else list(files.values())
    found = []
    for file in chosen:
        try:
            zoo = load_recipe(f"{file}:ZOO")
            specs = (*zoo.specs, STAGES) if zoo.stages else zoo.specs
        except EdgekitError:  # its row will say so
            specs = ("SPEC",)
        found += [(file, spec) for spec in specs]
    return found


def fast_half(recorded: dict[str, Any]) -> list[str]:
    """Names of the recipes that are done soonest, half of all, of those that are whole and whose weights are there."""
    kept = [row for row in recorded.values() if whole(row) and not row.get("trained_s")]
    rows = [(row["seconds"], row["recipe"].partition(":")[0]) for row in kept]
    chosen = [name for _, name in sorted(rows)[: (len(recorded) + 1) // 2]]
    return sorted({Path(name).stem for name in chosen})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes (default: all)")
    parser.add_argument("--fast", action="store_true", help="the fast half, two at a time, without latencies")
    parser.add_argument("--table", action="store_true", help="only write models/README.md from the results there are")
    parser.add_argument(
        "--limit", type=float, default=900, metavar="S", help="seconds for one row (default %(default)s)"
    )
    parser.add_argument("--describe", metavar="SOURCE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.describe:
        print(json.dumps(describe(args.describe)))
        return 0
    recorded = read()
    if args.table:
        README.write_text(readme(recorded))
        return 0
    start = time.monotonic()
    chosen = recipes(args.names or (fast_half(recorded) if args.fast else ()))
    with tempfile.TemporaryDirectory(prefix="edgekit-zoo-") as folder:
        rows = [Row(file, spec, Path(folder), bench=not args.fast, limit_s=args.limit) for file, spec in chosen]
        with ThreadPoolExecutor(2 if args.fast else 1) as pool:
            for row, found in zip(rows, pool.map(Row.run, rows)):
                if not args.fast:
                    write(row.label, found)
    print(f"{len(rows)} rows in {time.monotonic() - start:.0f} s", file=sys.stderr)
    failed = [row for row in rows if not whole(row.found)]
    for row in failed:
        for name, step in row.found["steps"].items():
            if not step["ok"]:
                print(f"{row.label}: {name}: {step['words']}")
    if args.fast:
        return 1 if any(whole(recorded[row.label]) for row in failed if row.label in recorded) else 0
    return 1 if failed else 0


def read() -> dict[str, Any]:
    """The rows recorded so far, by label."""
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else {}


def write(label: str, found: dict[str, Any]) -> None:
    """Record one row, and make the table again; rows of recipes that are gone are left out."""
    with (RESULTS.parent / ".zoo.lock").open("w") as lock:  # runs of other recipes may be under way
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = read() | {label: found}
        rows = {k: rows[k] for k in sorted(rows) if (ROOT / rows[k]["recipe"].partition(":")[0]).is_file()}
        RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        README.write_text(readme(rows))


if __name__ == "__main__":
    sys.exit(main())
