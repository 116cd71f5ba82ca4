from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit._lazy import available
from edgekit.batch.cluster import TRIES, Options, Share, Tries, Worker, cut, share_of
from edgekit.batch.job import Stretch
from edgekit.batch.plan import folder_of
from edgekit.errors import UsageError
from edgekit.package import Package

FILES, ROWS = 600, 60


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 8.0}], None, Share(1, 8, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}], None, Share(2, 4, 0)),
        ([{"CPU": 8.0}], 4, Share(4, 2, 0)),
        ([{"CPU": 2.0}], 8, Share(8, 1, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], None, Share(3, 1, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, Share(1, 1, 1)),
    ],
)
def test_a_worker_has_a_gpu_or_a_nodes_cpus(
    nodes: list[dict[str, float]], workers: int | None, expected: Share
) -> None:
    assert share_of(nodes, workers) == expected


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(UsageError, match="no node with a CPU"):
        share_of([{"memory": 1.0}], None)


def called(worker: Worker, stretch: Stretch) -> list[dict[str, Any]]:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    text = msgspec.msgpack.encode([stretch.start, stretch.stop, [(i, os.fsencode(n)) for i, n in stretch.names]])
    return list(worker(pyarrow.table({"stretch": [text]})).to_pylist())


def test_what_ends_its_worker_again_and_again_ends_the_run(tiny: Package, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    run = uuid.uuid4().hex
    options = Options("out.csv", top=1, tensors=False, variant=None, batch=1, threads=1, readers=1, run=run)
    worker = Worker(str(tiny.path), tiny.manifest.digest, [], str(tmp_path), options, 1)
    stretch = Stretch(0, 1, [(0, "x.npy")])
    for died in range(TRIES):
        assert Tries(run).begin(0) == died + 1, "a worker began, and died before it ended"
    (told,) = called(worker, stretch)
    assert re.search(r"1 files from 'x.npy' on were under way each of 4 times that their worker died", told["fault"])
    other = Worker(str(tiny.path), tiny.manifest.digest, [], str(tmp_path), options, 1)
    (part,) = called(other, stretch)
    assert (part["fault"], part["rows"], part["failed"]) == ("", 1, 0), "what ended begins to count anew"


def test_a_node_without_the_inputs_is_named(tiny: Package, tmp_path: Path) -> None:
    options = Options("out.csv", top=1, tensors=False, variant=None, batch=1, threads=1, readers=1)
    worker = Worker(str(tiny.path), tiny.manifest.digest, [], str(tmp_path / "absent"), options, 1)
    (told,) = called(worker, Stretch(0, 1, [(0, "x.npy")]))
    assert re.search(r"On node .*absent' is not there", told["fault"])


def workers_below(pid: int) -> list[int]:
    """The processes of Ray's actors that `pid` started."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
        if title.startswith("ray::MapWorker"):
            found.append(int(folder.name))

    def below(one: int) -> bool:
        while one in parents and one != pid:
            one = parents[one]
        return one == pid

    return [one for one in found if below(one)]


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_input_and_doubles_none(tiny: Package, tmp_path: Path) -> None:
    """On a real Ray cluster, on this machine: its only worker is killed in the middle of its work."""
    if not available("ray"):
        pytest.skip("needs Ray: pip install 'edgekit[ray]'")
    inputs, output = tmp_path / "in", tmp_path / "out.jsonl"
    inputs.mkdir()
    for i in range(FILES):
        np.save(inputs / f"{i:04}.npy", np.full((ROWS, 4), i, np.float32))
    arguments = ["batch", tiny.path, inputs, "-o", output, "--batch", "1", "--ray", "local", "--workers", "1", "--json"]
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    kept = folder_of(output)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        while len(list(kept.glob("part-*"))) < 1 or not (busy := workers_below(process.pid)):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        for pid in busy:
            os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    report = json.loads(out)
    assert (report["files"], report["rows"], report["failed"]) == (FILES, ROWS * FILES, 0)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    expected = [(f"{i:04}.npy", row) for i in range(FILES) for row in range(ROWS)]
    assert "retries remaining" in (tmp_path / "log").read_text(), "the worker was killed in the middle of a call"
    assert sorted((r["path"], r["row"]) for r in rows) == expected


def test_pieces_cover_every_place_once_and_leave_out_what_is_gone() -> None:
    names = [(place, f"{place}.npy") for place in range(5, 1000) if place not in (5, 300, 999)]
    pieces = list(cut([Stretch(5, 1000, names), Stretch(2000, 2001, [])], workers=2))
    assert [p.start for p in pieces] == [5, *(p.stop for p in pieces[:-2]), 2000]
    assert pieces[-2].stop == 1000
    assert [name for p in pieces for name in p.names] == names
    assert all(p.start <= place < p.stop for p in pieces for place, _ in p.names)
    assert max(len(p.names) for p in pieces) <= 62, "eight pieces a worker"
