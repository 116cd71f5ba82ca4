"""The wheel, and what a Jetson installs with it: resolved for aarch64 without compiling anything, and small."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.data import ROOT

LIMIT_MB = 150
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)), "manylinux2014_aarch64")
BOARDS = {"3.10": "JetPack 6", "3.12": "JetPack 7"}


def pip(*arguments: str | Path) -> None:
    """Run pip. A machine that reaches no index skips the test."""
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode and re.search(r"NewConnectionError|name resolution|from versions: none", done.stderr):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("edgekit-*.whl")
    return found


def test_the_wheel_is_pure_python_and_holds_every_source_and_asset(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "edgekit", "plugins_trt"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    assert set(tracked.stdout.split()) <= inside
    kinds = {Path(name).suffix for name in inside}
    assert kinds >= {".py", ".typed", ".toml", ".cu", ".cuh", ".html", ".js", ".css", ".proto"}
    assert not kinds & {".pyc", ".so", ".onnx", ".npz"}


def environment(python: str) -> dict[str, str]:
    """What markers are judged by on a Jetson with that Python."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "aarch64",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def needs(metadata: str, extras: set[str], python: str) -> list[Requirement]:
    """The requirements that hold there, of a distribution with these extras."""
    found = map(Requirement, Parser().parsestr(metadata).get_all("Requires-Dist") or ())
    here = environment(python)
    return [r for r in found if r.marker is None or any(r.marker.evaluate({**here, "extra": e}) for e in (*extras, ""))]


def bare(requirement: Requirement) -> str:
    """Without its marker: pip judges markers by the Python that runs it, not by the one it installs for."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def constraints(python: str) -> str:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = map(Requirement, lines)
    return "\n".join(bare(r) for r in pins if r.marker is None or r.marker.evaluate(environment(python)))


def debugging_bytes(path: Path) -> int:
    """Bytes in the `.debug_` sections of an ELF64 file, which `strip --strip-debug` takes out; 0 for other files."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return 0
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count, names = struct.unpack_from("<HHH", data, 58)
    (text,) = struct.unpack_from("<Q", data, table + names * entry + 24)
    total = 0
    for number in range(count):
        name, _, _, _, _, size = struct.unpack_from("<IIQQQQ", data, table + number * entry)
        total += size if data.startswith(b".debug_", text + name) else 0
    return total


@pytest.mark.slow
@pytest.mark.parametrize("python", BOARDS)
def test_a_jetson_installs_nothing_that_must_be_compiled_and_less_than_150_mb(
    python: str, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`edgekit[jetson]` as Dockerfile.jetson leaves it: with byte code, without libraries' tests and uvloop's debugging
    information."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    wanted = needs(metadata, {"jetson"}, python)
    wanted = [r for r in wanted if r.name != "edgekit"] + needs(metadata, {"serve"}, python)
    target, pins = tmp_path / "site-packages", tmp_path / "constraints.txt"
    pins.write_text(constraints(python))
    platforms = [word for one in PLATFORMS for word in ("--platform", one)]
    binary = ("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms)
    requirements = sorted({bare(r) for r in wanted})
    pip("install", "--quiet", "--target", target, "-c", pins, *binary, "--no-warn-conflicts", *requirements)
    pip("install", "--quiet", "--target", target, "--no-deps", *binary, wheel)

    libraries = list(target.rglob("*.so"))
    assert libraries
    assert all(p.read_bytes()[18:20] == b"\xb7\x00" for p in libraries), "ELF's number for AArch64"
    installed = {}
    for path in target.glob("*.dist-info/METADATA"):
        installed[canonicalize_name(Parser().parsestr(path.read_text())["Name"])] = path.read_text()
    for name, text in installed.items():
        extras = {"jetson", "serve"} if name == "edgekit" else set()
        missing = {canonicalize_name(r.name) for r in needs(text, extras, python)} - set(installed)
        assert not missing, f"{name} also needs {missing} with Python {python}"
    assert not {"torch", "onnx", "onnxruntime", "sympy", "matplotlib"} & set(installed)

    sizes: dict[str, int] = {}
    for path in target.rglob("*"):
        parts = path.relative_to(target).parts
        if path.is_file() and "tests" not in parts[:-1]:
            size = path.stat().st_size - (debugging_bytes(path) if parts[0] == "uvloop" else 0)
            owner = parts[0].partition(".")[0]
            sizes[owner] = sizes.get(owner, 0) + size
    total = sum(sizes.values()) / 1e6
    largest = ", ".join(f"{n} {b / 1e6:.1f}" for n, b in sorted(sizes.items(), key=lambda item: -item[1])[:6])
    with capsys.disabled():
        sys.stdout.write(
            f"\nedgekit[jetson] on {BOARDS[python]}, Python {python}: {total:.1f} MB ({largest}){os.linesep}"
        )
    assert total < LIMIT_MB
