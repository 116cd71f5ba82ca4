"""The main job on real input: a PyTorch model becomes a package, is quantized, checked, measured and served.

Runs the same commands that a user types, then prints one table. `make demo` calls it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "models/digits_cnn.py"
PACKAGE = "demo/digits_cnn.edge"


def edgekit(*args: str, show: bool = True) -> str:
    """Run one command as a user would and return what it printed."""
    print(f"\n$ edgekit {' '.join(args)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "edgekit", *args], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if show:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"edgekit {args[0]} ended with exit code {done.returncode}")
    return done.stdout


def write_digits(folder: Path) -> list[tuple[str, int]]:
    """Three real digits as PNG files, with what they show."""
    data = load_digits()
    out = []
    for index in (6, 21, 1790):
        path = folder / f"digit_{index}.png"
        Image.fromarray(np.rint(data.images[index] * (255 / 16)).astype(np.uint8)).save(path)
        out.append((str(path.relative_to(ROOT)), int(data.target[index])))
    return out


def ask_server(digit: int) -> None:
    """Start the server, send one sample of the package over HTTP, print the answer."""
    command = [sys.executable, "-m", "edgekit", "serve", PACKAGE, "--port", "0", "--json"]
    print(f"\n$ edgekit serve {PACKAGE} --port 0", flush=True)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            with np.load(ROOT / PACKAGE / "samples.npz") as samples:
                image = samples["input/image"][digit : digit + 1]
                expected = int(samples["output/logits"][digit].argmax())
            body = {
                "inputs": [
                    {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
                ]
            }
            request = urllib.request.Request(f"{url}/v2/models/digits_cnn/infer", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=10) as reply:
                answer = json.load(reply)
            logits = answer["outputs"][0]["data"]
            best = int(np.argmax(logits))
            print(f"POST {url}/v2/models/digits_cnn/infer -> class {best}, PyTorch says {expected}")
            if best != expected:
                raise SystemExit("the server's answer is not PyTorch's")
        finally:
            server.terminate()


def main() -> None:
    start = time.monotonic()
    folder = ROOT / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    edgekit("export", RECIPE, "-o", PACKAGE)
    edgekit("quantize", PACKAGE, "--precision", "fp16", "--recipe", RECIPE)
    edgekit("quantize", PACKAGE, "--precision", "int8", "--recipe", RECIPE)
    edgekit("verify", PACKAGE, "--recipe", RECIPE)
    edgekit("bench", PACKAGE, "--quick", "--threads", "1")
    digits = write_digits(folder)
    edgekit("run", PACKAGE, *(path for path, _ in digits))
    print(f"(they show {', '.join(str(d) for _, d in digits)})")
    ask_server(0)
    print_summary()
    print(f"\nDone in {time.monotonic() - start:.0f} s. Plot: {PACKAGE}/reports/bench.png")


def print_summary() -> None:
    """One line a variant, from the reports that verify and bench wrote into the package."""
    from edgekit.cli.output import bytes_text, percent_text, print_table

    package = ROOT / PACKAGE
    manifest = json.loads((package / "manifest.json").read_text())
    checks = {c["variant"]: c for c in json.loads((package / "reports/verify.json").read_text())["checks"]}
    bench = {v["id"]: v for v in json.loads((package / "reports/bench.json").read_text())["variants"]}
    rows = []
    for variant in manifest["variants"]:
        name = variant["id"]
        if name not in checks or name not in bench:
            continue
        check, speed = checks[name], bench[name]
        rows.append(
            [
                name,
                variant["precision"],
                bytes_text(variant["bytes"]),
                percent_text(check["metrics"]["top1"]),
                percent_text(check["difference"]["agreement"]),
                f"{1000 * speed['latency']['p50_s']:.3f} ms",
                f"{speed['speedup']['ratio']:.2f}x" if speed["speedup"] else "1.00x",
            ]
        )
    print()
    columns = ["variant", "precision", "size>", "top-1>", "agreement>", "p50>", "speed-up>"]
    print_table(columns, rows, title="digits_cnn on this machine's CPU, one thread, batch 1")


if __name__ == "__main__":
    main()
