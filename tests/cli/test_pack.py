"""pack, unpack and sign as users type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli.main import main
from edgekit.package import Package
from edgekit.signature import short
from tests.stages import pair


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_from_a_key_to_an_unpacked_package(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    made = answer(capsys, "sign", "--new-key", "team.key")
    fingerprint = made["fingerprint"]
    assert answer(capsys, "sign", "tiny.edge", "--key", "team.key")["fingerprint"] == fingerprint
    (tiny.path / "notes.txt").write_text("mine")
    assert main(["pack", "tiny.edge"]) == 0
    spoken = capsys.readouterr()
    assert "6 files of tiny.edge" in spoken.out
    assert spoken.err == "left out, for no manifest knows them: notes.txt\n"
    assert main(["unpack", "tiny.edge.tar", "-o", "again.edge", "--verify-key", "team.key.pub"]) == 0
    assert f"signed by {short(str(fingerprint))}" in capsys.readouterr().out
    assert answer(capsys, "verify", "again.edge", "--verify-key", "team.key.pub")["signed_by"] == fingerprint
    assert main(["verify", "tiny.edge", "--verify-key", "team.key.pub"]) == 1
    assert "'notes.txt' in 'tiny.edge' is no part of the package" in capsys.readouterr().err


def test_an_archive_through_a_pipe(tiny: Package) -> None:
    assert main(["pack", str(tiny.path)]) == 0
    os.rename("tiny.edge", "kept.edge")
    with open("tiny.edge.tar", "rb") as archive:
        done = subprocess.run([sys.executable, "-m", "edgekit", "unpack", "-"], stdin=archive, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Package.open("tiny.edge").manifest.digest == tiny.manifest.digest


def test_inspect_says_who_signed_and_whether_it_still_holds(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path / "p")
    key = short(str(answer(capsys, "sign", "--new-key", "team.key")["fingerprint"]))
    for path, text in (("tiny.edge", "tiny.edge"), ("p/pair.edge", "p/pair.edge")):
        assert main(["inspect", path]) == 0
        assert "signature    none" in capsys.readouterr().out
        assert main(["sign", path, "--key", "team.key"]) == 0
        assert main(["inspect", text]) == 0
        assert f"signature    by {key}" in capsys.readouterr().out
    assert main(["quantize", "tiny.edge", "--precision", "fp16"]) == 0
    assert main(["inspect", "tiny.edge"]) == 0
    assert f"signature    void: the package was changed after {key} signed it" in capsys.readouterr().out
    assert answer(capsys, "inspect", "tiny.edge")["signed"]["fits"] is False  # type: ignore[index]
    assert main(["verify", "tiny.edge", "--verify-key", "team.key.pub"]) == 1
    assert "as after adding a variant" in capsys.readouterr().err


def test_misuse_is_told_apart_from_damage(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "none.edge"]) == 2
    assert main(["pack", "tiny.edge", "-o", "x.zip"]) == 2
    assert main(["unpack", "none.tar"]) == 2
    assert main(["sign", "tiny.edge"]) == 2
    assert main(["sign", "tiny.edge", "--new-key", "k"]) == 2
    assert main(["pack", "tiny.edge"]) == 0
    assert main(["unpack", "tiny.edge.tar"]) == 2
    assert main(["unpack", "tiny.edge.tar", "-o", "x.edge", "--limit-gb", "1e-6"]) == 2
    with open("tiny.edge.tar", "r+b") as file:
        file.truncate(3000)
    capsys.readouterr()
    assert main(["unpack", "tiny.edge.tar", "-o", "x.edge"]) == 1
    assert capsys.readouterr().err == (
        "edgekit: 'tiny.edge.tar' is cut off, so nothing was unpacked. Get the archive again.\n"
    )
