"""`torch.export` archives (`.pt2`), read without letting the file run code.

`torch.export.load` is not safe on a file from elsewhere: it unpickles tensors and objects, evaluates the text of
symbolic sizes, and calls whatever function of torch a node names. So the archive is first copied entry by entry into a
new one that holds only plain tensors, sizes made of numbers and symbols, and operators of ATen.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit._lazy import require
from edgekit.errors import ModelError
from edgekit.export.torch_runner import quiet
from edgekit.tensors import TensorSpec

_ENTRIES = re.compile(
    r"(\.data/(version|serialization_id)|archive_format|archive_version|byteorder|version"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json|models/model\.json)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.((?!__|from_file\b|save\b|load\b)\w+|__i?(and|or|xor|lshift|rshift)__)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast|scan|while_loop|map_impl)"
    r"|torch\.sym_[a-z]+|torch\._sym_sqrt|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|lt|le|gt|ge|eq|ne|and_|or_|not_|getitem)",
    re.ASCII,
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)", re.ASCII)
_EXPRESSION = re.compile(r"[A-Za-z0-9_ ()+\-*/,.<>=]{0,500}")
_CALLS = re.compile(r"([A-Za-z_]\w*)\s*\(")
_FUNCTIONS = re.compile(
    r"FloorDiv|ModularIndexing|Where|(Python)?Mod|CleanDiv|(Ceil|Floor|Trunc|Round)ToInt|CeilDiv|[LR]Shift"
    r"|PowByNatural|FloatPow|(Float|Int)TrueDiv|TruncToFloat|RoundDecimal|ToFloat|Identity|Max|Min|Eq|Ne|Lt|Le|Gt|Ge"
    r"|And|Or|Not|Add|Mul|Pow|Integer|Rational|Float|Equality|Unequality|(Less|Greater)Than|Strict(Less|Greater)Than"
)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_METADATA = ("nn_module_stack", "torch_fn")


def program_from_pt2(path: Path) -> Any:
    """The `torch.export.ExportedProgram` in `path`.

    Raises:
        ModelError: damaged, not such an archive, or it holds pickled objects, compiled code or foreign operators.
    """
    torch = require("torch", why="read .pt2 programs")
    clean = _clean_archive(path, torch)
    try:
        with quiet():
            return torch.export.load(clean)
    except Exception as error:  # RuntimeError, KeyError, SerializeError, …: whatever a damaged archive causes
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"'{path.name}' cannot be loaded by this PyTorch ({lines[0][:200] if lines else type(error).__name__}). "
            "Export it again with torch.export.save."
        ) from error


def _clean_archive(path: Path, torch: Any) -> io.BytesIO:
    """`path` copied into a new archive of checked entries; what PyTorch reads is what was checked."""
    target = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
            names = [i.filename for i in old.infolist() if not i.is_dir()]
            if len(set(names)) != len(names):
                raise _refused(path, "it lists a file twice")
            inner = {n: n.partition("/")[2] for n in names}
            if "models/model.json" not in inner.values():
                raise ModelError(
                    f"'{path.name}' is not a torch.export program (PyTorch 2.8 or newer). "
                    "Make one with torch.export.save."
                )
            for name in names:
                if not _ENTRIES.fullmatch(inner[name]):
                    raise _refused(path, f"it holds '{inner[name]}', which is neither weights nor a graph")
                new.writestr(name, _checked(path, inner[name], old.read(name), torch))
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        NotImplementedError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ModelError(
            f"'{path.name}' is not a readable .pt2 archive (damaged or truncated). Export it again."
        ) from error
    target.seek(0)
    return target


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"'{path.name}' was not loaded: {why}, so loading it could run code. Export the model with a recipe instead."
    )


def _checked(path: Path, name: str, data: bytes, torch: Any) -> bytes:
    """The bytes of one entry, or a ModelError if they could do more than describe a model."""
    if name == "data/sample_inputs/model.pt":
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception as error:  # UnpicklingError and its many neighbours
            raise _refused(path, "its sample inputs are more than plain tensors") from error
        return data
    if not name.endswith(".json"):
        return data
    document = json.loads(data)
    if name != "models/model.json":
        for entry in document.get("config", {}).values():
            if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise _refused(path, "it holds pickled tensors")
        return data
    for key, value in _values(document):
        if key == "target" and isinstance(value, str) and not _OPERATORS.fullmatch(value):
            raise _refused(path, f"it calls '{value[:80]}', which is not a plain operator of PyTorch")
        if key == "expr_str" and not _plain_expression(str(value)):
            raise _refused(path, f"it holds the expression '{str(value)[:80]}'")
        if key in ("in_spec", "out_spec") and not _plain_containers(json.loads(value)):
            raise _refused(path, "its inputs or outputs are containers other than tuple, list and dict")
        if key == "metadata" and isinstance(value, dict):  # notes of the tracer, some of them resolved by name
            for unused in set(value) - set(_METADATA):
                del value[unused]
    document["guards_code"] = []  # Python text that would be compiled; edgekit checks shapes itself
    return json.dumps(document).encode()


def _plain_expression(text: str) -> bool:
    text = _SYMBOL.sub("s", text)
    plain = bool(_EXPRESSION.fullmatch(text)) and "__" not in text and not re.search(r"[A-Za-z_)]\s*\.", text)
    return plain and all(_FUNCTIONS.fullmatch(c) for c in _CALLS.findall(text))


def _plain_containers(spec: Any) -> bool:
    if isinstance(spec, list) and len(spec) == 2:  # [protocol, specification]
        spec = spec[1]
    if not isinstance(spec, dict) or spec.get("type") not in _CONTAINERS or "__enum__" in str(spec.get("context")):
        return False
    return all(_plain_containers(child) for child in spec.get("children_spec", ()))


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON document with the key it stands under, outer ones first."""
    yield key, value
    if isinstance(value, dict):
        for k, v in list(value.items()):
            yield from _values(v, k)
    elif isinstance(value, list):
        for v in value:
            yield from _values(v, key)


def inputs_of_program(program: Any) -> tuple[TensorSpec, ...]:
    """The inputs of a program; its free dimensions get the names "batch" (first) and "<input>_<axis>".

    Raises:
        ModelError: an input is not a tensor.
    """
    specs = []
    symbols: dict[str, str] = {}
    nodes = {n.name: n for n in program.graph.nodes}
    for name in program.graph_signature.user_inputs:
        value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
        if value is None or not hasattr(value, "shape"):
            raise ModelError(f"Input '{name}' of the program is not a tensor; edgekit carries tensors only.")
        shape: list[int | str] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                shape.append(size)
                continue
            default = "batch" if axis == 0 and "batch" not in symbols.values() else f"{name}_{axis}"
            shape.append(symbols.setdefault(str(size), default))
        specs.append(TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(shape)))
    return tuple(specs)


def keywords_of_program(program: Any) -> tuple[str, ...]:
    """The inputs that a program takes by name."""
    _positional, by_name = program.call_spec.in_spec.children()
    return tuple(by_name.context or ()) if by_name.num_children else ()
