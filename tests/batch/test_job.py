from __future__ import annotations

import csv
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.batch.columns import Layout
from edgekit.batch.job import Hears, LocalEngine, Report, run_batch
from edgekit.batch.pipeline import Pipeline, batch_size
from edgekit.batch.plan import folder_of
from edgekit.errors import BackendError, UsageError
from edgekit.package import Package
from edgekit.runtime.fake import FakeSession
from edgekit.runtime.select import open_session
from edgekit.tensors import Tensors
from tests.batch.packages import brightness, positives, rectifier
from tests.tiny import WEIGHT, tiny_package


def save(folder: Path, **arrays: object) -> Path:
    """Each array as folder/NAME.npy."""
    folder.mkdir(exist_ok=True)
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(value, np.float32))
    return folder


@contextmanager
def engine_of(
    package: Package, *, batch: int | None = None, top: int = 3, tensors: bool = False, keep_s: float = 5.0
) -> Generator[LocalEngine, None, None]:
    layout = Layout(package, top=top, tensors=tensors)
    with open_session(package, threads=1) as session:
        size = batch_size(package, session, wanted=batch)
        yield LocalEngine(Pipeline(package, session, layout, batch=size), session.variant, keep_s=keep_s)


def run(package: Package, folder: Path, output: Path, **options: Any) -> Report:
    kept = {k: options[k] for k in ("top", "tensors") if k in options}
    with engine_of(package, **options) as engine:
        return run_batch(package, folder, output, engine=engine, **kept)


def table(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    return list(parquet.read_table(path).to_pylist())


def test_pictures_become_labels_and_a_bad_one_a_row_with_its_error(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for i in range(50):
        Image.new("L", (2, 2), 255 if i % 3 == 0 else 10).save(folder / "deep" / f"{i:02}.png")
    (folder / "deep" / "07.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an input")
    report = run(brightness(tmp_path / "b.edge"), folder, tmp_path / "out.parquet", top=5)
    assert (report.files, report.rows, report.failed, report.before) == (50, 50, 1, 0)
    rows = table(tmp_path / "out.parquet")
    assert [r["path"] for r in rows] == [f"deep/{i:02}.png" for i in range(50)]
    bad = rows.pop(7)
    assert "'07.png' cannot be decoded" in bad["error"]
    assert bad["label_1"] is None
    assert [r["label_1"] for r in rows] == ["bright" if i % 3 == 0 else "dark" for i in range(50) if i != 7]
    assert rows[0]["score_1"] == pytest.approx(1 / (1 + np.exp(-4)))
    assert set(rows[0]) == {"path", "row", "label_1", "score_1", "label_2", "score_2", "error"}, "two classes, not five"
    assert not folder_of(tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_of_one_file_are_rows_with_its_path(tmp_path: Path, batch: int) -> None:
    package = tiny_package(tmp_path / "t.edge")
    x = np.random.default_rng(1).standard_normal((11, 4)).astype(np.float32)
    folder = save(tmp_path / "in", a=x[:1], b=x[1:10], c=x[10:])
    run(package, folder, tmp_path / "out.jsonl", batch=batch, tensors=True)
    rows = table(tmp_path / "out.jsonl")
    assert [(r["path"], r["row"]) for r in rows] == [("a.npy", 0), *(("b.npy", i) for i in range(9)), ("c.npy", 0)]
    np.testing.assert_allclose([r["scores"] for r in rows], x @ WEIGHT, rtol=1e-5)
    names = ("red", "green", "blue")
    assert [r["label_1"] for r in rows] == [names[i] for i in np.argmax(x @ WEIGHT, axis=1)]


def test_tensors_keep_their_shapes_in_parquet(tmp_path: Path) -> None:
    a, b = np.arange(-3, 3).reshape(1, 3, 2), np.ones((2, 1, 2))
    folder = save(tmp_path / "in", a=a, b=b)
    (folder / "c.npy").write_bytes(b"damaged")
    run(rectifier(tmp_path / "r.edge"), folder, tmp_path / "out.parquet")
    first, second, third, bad = table(tmp_path / "out.parquet")
    assert (first["y_shape"], first["y"]) == ([3, 2], [0, 0, 0, 0, 1, 2])
    assert (second["y_shape"], second["y"], second["row"]) == ([1, 2], [1, 1], 0)
    assert third["row"] == 1
    assert bad["y"] is None
    assert "c.npy" in bad["error"]


def test_fixed_shapes_come_back_as_arrays(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    x = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    folder = save(tmp_path / "in", **{f"f{i}": x[i : i + 1] for i in range(6)})
    run(tiny_package(tmp_path / "t.edge"), folder, tmp_path / "out.parquet", tensors=True, top=1)
    found = parquet.read_table(tmp_path / "out.parquet")
    scores = found["scores"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_allclose(scores, x @ WEIGHT, rtol=1e-5)
    about = json.loads(found.schema.metadata[b"edgekit"])
    assert about["package"] == "tiny"


def test_outputs_without_a_row_each_are_told_apart_by_calls(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", a=[[1, -1, -1, -1]], b=[[-1, -1, -1, -1], [1, 1, 1, 1]], c=[[-1, 1, -1, 1]])
    run(positives(tmp_path / "p.edge"), folder, tmp_path / "out.jsonl")
    found = [[place[1] for place in row["found"]] for row in table(tmp_path / "out.jsonl")]
    assert found == [[0], [], [0, 1, 2, 3], [1, 3]]


def test_csv_quotes_what_must_be(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", **{'a,"b"': [[1, 0, 0, 0]], "c": [[1, 0, 0, 0, 0]]})
    run(tiny_package(tmp_path / "t.edge"), folder, tmp_path / "out.csv", top=1)
    with (tmp_path / "out.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["path"], good["label_1"], good["error"]) == ('a,"b".npy', "red", "")
    assert bad["label_1"] == ""
    assert "(1,5)" in bad["error"]


def interrupted(package: Package, folder: Path, output: Path, after: int) -> None:
    """A run that Ctrl-C ends after about `after` files."""
    count = 0

    def ctrl_c(files: int) -> None:
        nonlocal count
        count += files
        if count >= after:
            raise KeyboardInterrupt

    with engine_of(package, batch=4, keep_s=0) as engine, pytest.raises(KeyboardInterrupt):
        run_batch(package, folder, output, engine=engine, hears=Hears(done=ctrl_c))


def test_an_interrupted_run_goes_on_and_names_what_changed(tmp_path: Path) -> None:
    package, output = tiny_package(tmp_path / "t.edge"), tmp_path / "out.jsonl"
    folder = save(tmp_path / "in", **{f"{i:02}": [[i, 0, 0, 0]] for i in range(40)})
    interrupted(package, folder, output, after=20)
    assert not output.exists()
    save(folder, **{"03": [[0, 0, 9, 0]], "a new one": [[0, 9, 0, 0]]})
    (folder / "30.npy").unlink()
    (folder / "10.npy").unlink()
    report = run(package, folder, output, batch=4)
    assert 0 < report.before < 20
    assert (report.changed, report.removed, report.added) == (["03.npy"], ["10.npy", "30.npy"], ["a new one.npy"])
    rows = {r["path"]: r for r in table(output)}
    assert len(table(output)) == len(rows) == report.files == 39
    assert set(rows) == {p.name for p in folder.iterdir()}
    assert (rows["03.npy"]["label_1"], rows["a new one.npy"]["label_1"]) == ("blue", "green")


def test_an_input_that_goes_and_comes_back_is_there_once(tmp_path: Path) -> None:
    package, output = tiny_package(tmp_path / "t.edge"), tmp_path / "out.jsonl"
    folder = save(tmp_path / "in", **{f"{i:02}": [[i, 0, 0, 0]] for i in range(40)})
    interrupted(package, folder, output, after=12)
    (folder / "02.npy").unlink()
    interrupted(package, folder, output, after=12)
    save(folder, **{"02": [[0, 0, 1, 0]]})
    report = run(package, folder, output, batch=4)
    assert report.added == ["02.npy"]
    assert sorted(r["path"] for r in table(output)) == sorted(p.name for p in folder.iterdir())


def test_another_setting_is_refused_until_a_restart(tmp_path: Path) -> None:
    package, output = tiny_package(tmp_path / "t.edge"), tmp_path / "out.jsonl"
    folder = save(tmp_path / "in", **{f"{i:02}": [[i, 0, 0, 0]] for i in range(20)})
    interrupted(package, folder, output, after=8)
    with engine_of(package, top=1) as engine:
        with pytest.raises(UsageError, match=r"another top \(3 then, 1 now\).*--restart"):
            run_batch(package, folder, output, engine=engine, top=1)
        report = run_batch(package, folder, output, engine=engine, top=1, restart=True)
    assert (report.before, report.rows) == (0, 20)


def test_inputs_that_change_while_it_runs_are_named(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "t.edge")
    folder = save(tmp_path / "in", a=[[1, 0, 0, 0]], b=[[0, 1, 0, 0]])
    with engine_of(package) as engine:
        change = Hears(done=lambda _files: save(folder, b=[[0, 1, 0, 0], [1, 1, 1, 1]]) and None)
        report = run_batch(package, folder, tmp_path / "out.jsonl", engine=engine, hears=change)
    assert report.changed_since_read == ["b.npy"]


def test_two_runs_for_one_table_do_not_meet(tmp_path: Path) -> None:
    package, output = tiny_package(tmp_path / "t.edge"), tmp_path / "out.jsonl"
    folder = save(tmp_path / "in", a=[[1, 0, 0, 0]])

    def second(_done: int, _total: int) -> None:
        with engine_of(package) as engine, pytest.raises(UsageError, match="Another edgekit batch"):
            run_batch(package, folder, output, engine=engine)

    with engine_of(package) as engine:
        run_batch(package, folder, output, engine=engine, hears=Hears(begun=second))
    assert len(table(output)) == 1


def test_a_runtime_that_is_down_ends_the_run_and_fails_no_input(tmp_path: Path) -> None:
    package, output = tiny_package(tmp_path / "t.edge"), tmp_path / "out.jsonl"
    folder = save(tmp_path / "in", **{f"{i:03}": [[i, 0, 0, 0]] for i in range(100)})
    calls = 0

    def lost(feed: Tensors) -> Tensors:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise BackendError("the device is lost")
        return {"scores": feed["x"] @ WEIGHT}

    session = FakeSession(package.manifest.input_specs, package.manifest.output_specs, lost, variant="int8")
    engine = LocalEngine(Pipeline(package, session, Layout(package, top=3), batch=1), "int8", keep_s=0)
    with pytest.raises(BackendError, match=r"failed on 20 inputs in a row.*device is lost"):
        run_batch(package, folder, output, engine=engine)
    assert not output.exists()
    report = run(package, folder, output)
    assert 20 < report.before <= 30
    assert (report.files, report.failed, len(table(output))) == (100, 0, 100)
