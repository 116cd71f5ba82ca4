from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.batch.plan import folder_of
from edgekit.package import Package
from tests.tiny import WEIGHT

Run = Callable[..., subprocess.CompletedProcess[str]]
FILES = 3000


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one row each; the row of number i says i."""
    folder = tmp_path_factory.mktemp("vectors")
    for i in range(FILES):
        np.save(folder / f"{i:04}.npy", np.array([[i, 1, 0, 0]], np.float32))
    return folder


def test_killed_and_run_again_every_input_is_there_once(
    tiny: Package, vectors: Path, edgekit: Run, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    output = tmp_path / "out.parquet"
    arguments = ("batch", tiny.path, vectors, "-o", output, "--tensors", "--batch", "2", "--checkpoint", "0.05")
    process = subprocess.Popen([sys.executable, "-m", "edgekit", *map(str, arguments)], stderr=subprocess.DEVNULL)
    kept = folder_of(output)
    while len(list(kept.glob("part-*"))) < 2:
        assert process.poll() is None, "it was killed in the middle of its work"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not output.exists()
    done = edgekit(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert "going on with an interrupted run" in done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["before"] < FILES
    table = parquet.read_table(output)
    assert table["path"].to_pylist() == [f"{i:04}.npy" for i in range(FILES)]
    x = np.array([[i, 1, 0, 0] for i in range(FILES)], np.float32)
    np.testing.assert_allclose(table["scores"].combine_chunks().to_numpy_ndarray(), x @ WEIGHT, rtol=1e-5)
    assert not kept.exists()


def test_bad_files_are_counted_and_the_exit_code_says_so(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "good.npy", np.ones((1, 4), np.float32))
    np.save(folder / "wide.npy", np.ones((1, 5), np.float32))
    (folder / "cut.npy").write_bytes(b"\x93NUMPY")
    done = edgekit("batch", tiny.path, folder, "-o", tmp_path / "out.csv")
    assert done.returncode == 1
    assert "2 of 3 files failed; column 'error'" in done.stderr
    assert "3 files, 3 rows" in done.stdout
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["path", "cut.npy", "good.npy", "wide.npy"]


def test_misuse_is_one_sentence(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    for arguments, sentence in (
        (("empty", "-o", "out.csv"), "'empty' holds no input files"),
        (("nowhere", "-o", "out.csv"), "'nowhere' is not a folder"),
        (("pictures", "-o", "out.csv"), "'tiny.edge' declares no preprocessing"),
        (("empty", "-o", "out.xlsx"), "expected NAME.parquet, NAME.csv or NAME.jsonl"),
        (("empty", "-o", "there.csv"), "'there.csv' exists"),
        (("empty", "-o", "no/out.csv"), "Folder 'no' does not exist"),
        (("empty", "-o", "out.csv", "--batch", "0"), "--batch must be at least 1"),
    ):
        done = edgekit("batch", tiny.path, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) <= 2, "a line on the variant that was loaded, and the sentence"
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert not list(tmp_path.glob(".*partial"))
