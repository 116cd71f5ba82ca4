from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import ModelError
from edgekit.export.build import export
from edgekit.export.pt2 import program_from_pt2
from tests.export.common import left_behind


class Mischief:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, *, scale):
        return {"y": torch.relu(self.fc(x)) * scale, "n": x.shape[0] * x}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = torch.export.Dim("batch")
    shapes = {"x": {0: batch}, "scale": {0: batch}}
    given = {"scale": torch.ones(2, 1)}
    made = torch.export.export(Net().eval(), (torch.randn(2, 4),), given, dynamic_shapes=shapes)
    torch.export.save(made, path)
    return path


def changed(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None
) -> Path:
    """A copy of an archive with `change(inner name, bytes)` applied to every file."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, data in (extra or {}).items():
            new.writestr(f"net/{name}", data)
    return target


def in_model(change: Callable[[str], str]) -> Callable[[str, bytes], bytes]:
    return lambda name, data: change(data.decode()).encode() if name == "models/model.json" else data


def test_a_program_becomes_a_package_with_its_free_batch(program: Path, tmp_path: Path) -> None:
    package = export(program, output=tmp_path / "net.edge")
    manifest = package.manifest
    assert [str(s) for s in manifest.input_specs] == ["x: float32[batch, 4]", "scale: float32[batch, 1]"]
    assert [s.name for s in manifest.output_specs] == ["y", "n"]
    assert [p.batch for p in manifest.provenance.parity] == [1, 3, 8]
    assert manifest.provenance.framework.startswith("torch ")
    assert manifest.provenance.source == "net.pt2"


def test_sample_inputs_that_run_code_are_refused_before_they_run(program: Path, tmp_path: Path) -> None:
    mark, buffer = tmp_path / "was_here", io.BytesIO()
    torch.save(((torch.zeros(2, 4), Mischief(mark)), {}), buffer)
    evil = changed(
        program, tmp_path / "evil.pt2", lambda n, d: buffer.getvalue() if n == "data/sample_inputs/model.pt" else d
    )
    with pytest.raises(ModelError, match=r"'evil\.pt2' was not loaded: its sample inputs are more than plain tensors"):
        export(evil, output=tmp_path / "m.edge")
    assert not mark.exists()
    assert left_behind(tmp_path) == []


def test_pickled_weights_objects_and_compiled_code_are_refused(program: Path, tmp_path: Path) -> None:
    pickled = changed(
        program,
        tmp_path / "pickled.pt2",
        lambda n, d: (
            d.replace(b'"use_pickle": false', b'"use_pickle": true') if n.endswith("weights_config.json") else d
        ),
    )
    with pytest.raises(ModelError, match="holds pickled tensors"):
        program_from_pt2(pickled)
    for name in (
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/x.so",
        "data/weights/model.pt",
    ):
        extra = changed(program, tmp_path / "extra.pt2", lambda n, d: d, {name: b"\x80\x04."})
        with pytest.raises(ModelError, match=f"it holds '{name}'"):
            program_from_pt2(extra)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.from_file.default",
        "_operator.methodcaller",
        "os.system",
    ],
)
def test_calls_of_anything_but_plain_operators_are_refused(program: Path, tmp_path: Path, target: str) -> None:
    evil = changed(program, tmp_path / "evil.pt2", in_model(lambda t: t.replace("torch.ops.aten.relu.default", target)))
    with pytest.raises(ModelError, match=f"it calls '{target}'"):
        program_from_pt2(evil)


def test_text_that_would_be_evaluated_is_refused_or_dropped(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was_here"

    def size(text: str) -> str:
        document = json.loads(text)
        values = json.dumps(document)
        found = next(w for w in values.split('"expr_str": "')[1:])
        return values.replace(found[: found.index('"')], f"__import__('os').mkdir('{mark}')", 1)

    with pytest.raises(ModelError, match="it holds the expression '__import__"):
        program_from_pt2(changed(program, tmp_path / "size.pt2", in_model(size)))

    def guard(text: str) -> str:
        return json.dumps({**json.loads(text), "guards_code": [f"__import__('os').mkdir('{mark}')"]})

    loaded = program_from_pt2(changed(program, tmp_path / "guard.pt2", in_model(guard)))
    loaded.module()(torch.zeros(2, 4), scale=torch.ones(2, 1))
    assert not mark.exists()


def test_files_that_are_no_programs_are_one_sentence(program: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    for data, says in (
        (b"", "is not a readable .pt2 archive"),
        (b"nothing of the kind", "is not a readable .pt2 archive"),
        (program.read_bytes()[:-500], "is not a torch.export program"),  # what is left ends with an inner archive
        (program.read_bytes()[:500], "is not a readable .pt2 archive"),
    ):
        bad.write_bytes(data)
        with pytest.raises(ModelError, match=says):
            program_from_pt2(bad)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("net/hello.txt", "hi")
    with pytest.raises(ModelError, match=r"is not a torch\.export program"):
        program_from_pt2(bad)
    np.savez(bad.with_suffix(".npz"), x=np.zeros(3))
    bad.write_bytes(bad.with_suffix(".npz").read_bytes())
    with pytest.raises(ModelError, match=r"is not a torch\.export program"):
        program_from_pt2(bad)
    broken = changed(program, bad, in_model(lambda t: t.replace('"nodes"', '"knots"')))
    with pytest.raises(ModelError, match="cannot be loaded by this PyTorch"):
        program_from_pt2(broken)
