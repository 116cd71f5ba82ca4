"""Weights into a PyTorch module, without ever running code that a file brings along."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

from edgekit._lazy import require
from edgekit.errors import ModelError

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts store the weights beside other things."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """The tensors in a `.safetensors` file or a PyTorch checkpoint, by name.

    A checkpoint that keeps the weights under "state_dict" (or a similar key) is unwrapped, and the "module." that
    DataParallel puts in front of names is removed.

    Raises:
        ModelError: missing, damaged, without tensors, or a pickle that holds more than plain weights: such a file
            can run code when it is loaded, so it is not loaded.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"Weights '{file}' do not exist. Check the path.")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_checkpoint(file)
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    torch = require("torch", why="load weights")
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(f"'{file.name}' holds no weights by name; expected a state_dict.")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def load_weights(module: Any, path: str | Path, *, strict: bool = True) -> Any:
    """Load the weights of `path` (see `read_weights`) into `module` and return it in eval mode.

    With `strict`, names and shapes must be exactly the module's.

    Raises:
        ModelError: the file cannot be read safely, or does not fit the module.
    """
    tensors = read_weights(path)
    try:
        module.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[1] if len(lines) > 1 else lines[0]
        raise ModelError(f"Weights '{Path(path).name}' do not fit {type(module).__name__}: {detail[:300]}") from error
    return module.eval()


def _read_safetensors(file: Path) -> Any:
    loader = require("safetensors.torch", why="read .safetensors weights")
    try:
        return loader.load_file(str(file))
    except Exception as error:  # SafetensorError shares no base with OSError
        raise ModelError(f"'{file.name}' is not a readable safetensors file ({error}). Download it again.") from error


def _read_checkpoint(file: Path) -> Any:
    torch = require("torch", why="load weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what matters is whether it loads
            return torch.load(str(file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with file.open("rb") as opened:
            bare_pickle = opened.read(1) == b"\x80"
        if "GLOBAL" not in str(error) and not bare_pickle:
            raise _unreadable(file) from error
        raise ModelError(
            f"'{file.name}' holds more than plain weights and could run code when loaded, so it was not loaded. "
            "Save only model.state_dict(), as .safetensors or with torch.save."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise _unreadable(file) from error


def _unreadable(file: Path) -> ModelError:
    return ModelError(f"'{file.name}' is not a readable PyTorch checkpoint (damaged or truncated). Download it again.")
