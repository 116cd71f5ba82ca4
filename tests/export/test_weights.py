from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekit.errors import ModelError
from edgekit.export.weights import load_weights, read_weights
from tests.data import data_path


class Mischief:
    """A pickle of this object creates a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


def test_safetensors_and_checkpoints_load_into_a_module(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    wrapped = {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 7}
    torch.save(wrapped, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.pth", "w.ckpt"):
        other = load_weights(nn.Linear(3, 2), tmp_path / name)
        assert torch.equal(other.weight, net.weight)
        assert not other.training


def test_real_checkpoints_with_other_content_are_unwrapped() -> None:
    tensors = read_weights(data_path("clf_cifar10_resnet_pytorch/resnet20-12fca82f.th"))
    assert "conv1.weight" in tensors
    assert read_weights(data_path("clf_mobilenet_v1_025_pytorch/mobilenetV1X0.25_pretrain.tar"))["fc.bias"].shape == (
        1000,
    )


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path, how: str) -> None:
    mark, file = tmp_path / "was_here", tmp_path / "evil.pth"
    content = {"weight": torch.zeros(2, 3), "bias": Mischief(mark)}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match=r"'evil\.pth' holds more than plain weights .* it was not loaded"):
        load_weights(nn.Linear(3, 2), file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match=rf"'{name}' is not a readable"):
        read_weights(file)
    good = tmp_path / f"good_{name}"
    state = nn.Linear(30, 20).state_dict()
    save_file(state, good) if name.endswith("s") else torch.save(state, good)
    file.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(ModelError, match=rf"'{name}' is not a readable"):
        read_weights(file)


def test_weights_of_another_module_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"do not fit Linear: size mismatch for weight"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="do not exist"):
        load_weights(nn.Linear(3, 2), tmp_path / "none.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no weights by name"):
        read_weights(tmp_path / "list.pth")
