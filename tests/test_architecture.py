"""The rules of the design that code review forgets: who may import whom, and when."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import ROOT

PACKAGE = ROOT / "edgekit"
PLUGINS = ROOT / "plugins_trt"

LEVEL_0 = {"errors", "tensors", "_files", "_lazy"}
LEVEL_1 = {"package", "manifest", "recipe", "preprocess", "inputs", "graphs", "rewrite", "targets", "gpu", "trt_api"}
LEVEL_1 |= {"contents", "signature"}
STAGES = {"export", "quantize", "engine", "runtime", "telemetry", "deliver"}
LEVEL_3 = {"verify", "inference", "inspect", "layers", "noise", "bench", "serve", "doctor", "tune", "remote"}
LEVEL_3 |= {"batch", "cluster"}
LEVELS = {**dict.fromkeys(LEVEL_0, 0), **dict.fromkeys(LEVEL_1, 1), **dict.fromkeys(STAGES, 2)}
LEVELS |= {**dict.fromkeys(LEVEL_3, 3), "cli": 4, "__main__": 5, "__init__": 5}

RUNTIME_API = {"edgekit.runtime.session", "edgekit.runtime.ort"}
"""Running a model is a service that every stage may use; nothing else crosses between stages."""

HEAVY = {
    "cryptography",
    "cuda",
    "fsspec",
    "google",
    "grpc",
    "h2",
    "hpack",
    "httptools",
    "matplotlib",
    "mlperf_loadgen",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "opentelemetry",
    "pyarrow",
    "pynvml",
    "ray",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "torch",
    "tritonclient",
    "uvloop",
}

SOURCES = sorted([*PACKAGE.rglob("*.py"), *PLUGINS.rglob("*.py")])


def unit(path: Path) -> str:
    """The part of the design that a file belongs to: its first folder, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, at_import_time: bool) -> Iterator[str]:
    """Modules that the code imports; with `at_import_time` only those that loading the file imports."""

    def visit(node: ast.AST) -> Iterator[str]:
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                yield from visit(child)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(tree)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_inside_functions_only(path: Path) -> None:
    loaded = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), at_import_time=True)}
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = unit(path)
    assert own in LEVELS, f"{path.name} is in no layer: add it to the design and to this test"
    for name in imports(ast.parse(path.read_text()), at_import_time=False):
        head, _, rest = name.partition(".")
        if head != "edgekit" or not rest:
            continue
        other = rest.partition(".")[0]
        if other not in LEVELS or other == own:
            continue
        assert LEVELS[other] <= LEVELS[own], f"{path.name} ({own}) imports upwards: {name}"
        if LEVELS[own] == LEVELS[other] == 2:
            allowed = any(name == api or name.startswith(f"{api}.") for api in RUNTIME_API)
            assert allowed or name == "edgekit.runtime", f"stage {own} imports its sibling {name}"


def test_the_layers_name_real_files() -> None:
    units = {unit(p) for p in PACKAGE.rglob("*.py")}
    assert units <= set(LEVELS)


def test_plugins_and_models_stand_alone() -> None:
    for path in PLUGINS.rglob("*.py"):
        heads = {n.partition(".")[0] for n in imports(ast.parse(path.read_text()), at_import_time=False)}
        assert "edgekit" not in heads
    for path in PACKAGE.rglob("*.py"):
        heads = {n.partition(".")[0] for n in imports(ast.parse(path.read_text()), at_import_time=False)}
        assert "models" not in heads


def test_a_file_that_breaks_a_rule_is_found() -> None:
    source = (
        "import torch\nif TYPE_CHECKING:\n    import onnx\ndef f():\n    import tensorrt\nclass A:\n    import grpc\n"
    )
    assert set(imports(ast.parse(source), at_import_time=True)) == {"torch", "grpc"}
    assert set(imports(ast.parse(source), at_import_time=False)) == {"torch", "tensorrt", "grpc"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys\nprint(' '.join({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_edgekit_is_light() -> None:
    assert not loaded_by("import edgekit") & {*HEAVY, "numpy", "msgspec", "rich", "PIL"}


def test_help_is_light() -> None:
    code = "import edgekit.cli.main as m\ntry:\n    m.main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & {*HEAVY, "numpy", "msgspec", "rich", "PIL"}


def test_the_runtime_needs_neither_torch_nor_onnx() -> None:
    code = "import edgekit.runtime.select, edgekit.verify, edgekit.inference, edgekit.cli.run, edgekit.cli.verify"
    assert not loaded_by(code) & {"torch", "onnx", "onnxscript", "matplotlib", "sklearn"}


def test_public_names_resolve() -> None:
    import edgekit

    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None
    assert set(edgekit.__all__) <= set(dir(edgekit))
