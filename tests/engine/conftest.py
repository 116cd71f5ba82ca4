from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.engine.trt_module import TrtModule, load
from edgekit.errors import MissingDependencyError
from edgekit.package import Package
from edgekit.quantize.fp16 import half_model
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def rtx() -> TrtModule:
    """NVIDIA's TensorRT-RTX, which builds engines without a GPU."""
    try:
        return load("tensorrt-rtx")
    except MissingDependencyError as error:
        pytest.skip(f"needs TensorRT-RTX: {error}")


@pytest.fixture
def net(tmp_path: Path) -> Package:
    """A small convolutional package with the variants fp32 and fp16 and a free batch."""
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(8)})
    return add_variant(package, "fp16", half_model(conv_net()))


def add_variant(package: Package, name: str, model: onnx.ModelProto) -> Package:
    """`package` with one more ONNX variant."""
    with package.edit() as writer:
        writer.path(f"{name}.onnx").write_bytes(model.SerializeToString())
        writer.put(writer.variant_of(f"{name}.onnx", id=name, precision=name, format="onnx", target="any"))
        return writer.commit()


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """`model` in a file."""
    path.write_bytes(model.SerializeToString())
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)
