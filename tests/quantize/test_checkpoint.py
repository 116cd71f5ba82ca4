from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.quantize import calibrate
from edgekit.quantize.calibrate import histograms
from edgekit.quantize.checkpoint import Checkpoint, cache_folder
from edgekit.quantize.prepare import prepared
from edgekit.quantize.search import observed
from tests.data import ROOT
from tests.quantize.nets import conv_net, images
from tests.quantize.test_qdq import data_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    return cache_folder()


def test_what_was_measured_is_read_back_for_the_same_model_and_data_only(cache: Path) -> None:
    model, data = prepared(conv_net()), data_of(images(12))
    found = histograms(model, observed(model), data)
    Checkpoint(model, data).save(found)
    again = Checkpoint(model, data).load(list(found))
    assert set(again) == set(found)
    for name, histogram in found.items():
        assert (again[name].low, again[name].high) == (histogram.low, histogram.high)
        np.testing.assert_array_equal(again[name].counts, histogram.counts)
    assert Checkpoint(model, data_of(images(12, seed=5))).load(list(found)) == {}
    assert Checkpoint(prepared(conv_net(weight_scale=0.5)), data).load(list(found)) == {}


def test_a_damaged_file_counts_as_nothing(cache: Path) -> None:
    model, data = prepared(conv_net()), data_of(images(4))
    found = histograms(model, observed(model), data)
    Checkpoint(model, data).save(found)
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert Checkpoint(model, data).load(list(found)) == {}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    model, data = prepared(conv_net()), data_of(images(4))
    Checkpoint(model, data).save(histograms(model, observed(model), data))
    assert (tmp_path / "file").read_text() == "x"


SLOW = """
import sys, time
from edgekit.quantize import calibrate
from edgekit.quantize.prepare import prepared
from edgekit.quantize.search import observed
from tests.quantize.nets import conv_net, images
from tests.quantize.test_qdq import data_of
calibrate.KEEP_S = 0.0
model = prepared(conv_net())
def progress(what, done, total):
    print(what, done, total, flush=True)
    time.sleep(0.05)
found = calibrate.histograms(model, observed(model), data_of(images(12)), progress=progress)
print("tensors", len(found))
"""


def test_an_interrupted_calibration_goes_on_where_it_was(cache: Path) -> None:
    environment = {**os.environ, "EDGEKIT_CACHE": str(cache.parent)}
    command = [sys.executable, "-c", SLOW]
    whole = subprocess.run(
        command, env={**environment, "EDGEKIT_CACHE": str(cache.parent / "other")}, cwd=ROOT, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        while not list(cache.glob("*.npz")) and time.monotonic() < deadline:
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    rest = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=True)
    assert rest.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert len(rest.stdout.splitlines()) < len(whole.stdout.splitlines()), "less was left to do"
    assert calibrate.KEEP_S > 0
