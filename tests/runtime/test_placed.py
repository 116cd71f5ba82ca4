from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import IntegrityError, UsageError
from edgekit.gpu import this_gpu
from edgekit.package import Package
from edgekit.runtime.parallel import ParallelSession
from edgekit.runtime.placed import open_placed
from edgekit.runtime.select import open_session
from edgekit.runtime.staged import StagedSession
from tests.stages import pair, two_layers
from tests.tiny import WEIGHT

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def stages(tmp_path: Path) -> Package:
    return pair(tmp_path)


def test_one_device_is_one_session_with_its_reason(tiny: Package) -> None:
    opened = open_placed(tiny, devices=("cpu",), threads=1)
    with opened.session as session:
        assert session.run({"x": np.ones((1, 4), np.float32)})["scores"].shape == (1, 3)
        summary = opened.summary
    assert summary.startswith(
        f"variant {session.variant} (best of 2 variants for ONNX Runtime on the CPU), ONNX Runtime"
    )
    assert "\n" not in summary


def test_several_devices_share_the_runs(tiny: Package) -> None:
    x = np.ones((2, 4), np.float32)
    opened = open_placed(tiny, variant="fp32", devices=("cpu", "cpu"), threads=1)
    with opened.session as session:
        assert isinstance(session, ParallelSession)
        assert session.lanes == 2
        for _ in range(3):
            np.testing.assert_allclose(session.run({"x": x})["scores"], x @ WEIGHT, rtol=1e-5)
    assert opened.summary.count("variant fp32 (asked for)") == 1


def test_stages_run_on_one_device_or_spread(stages: Package) -> None:
    for devices, split in ((("cpu",), False), (("cpu", "cpu"), True), ((), False)):
        opened = open_placed(stages, threads=1, devices=devices, split=split)
        with opened.session as session:
            assert isinstance(session, StagedSession)
            np.testing.assert_allclose(session.run({"x": X})["y"], two_layers(X), rtol=1e-4, atol=1e-5)
            assert [name for name, _ in opened.choices] == ["encoder", "decoder"]
            assert session.lanes == (2 if split else 1)
    assert opened.summary.startswith("encoder: variant fp32 (the only variant); decoder: variant fp32 (")


def test_stages_on_several_devices_without_split_are_copies_of_the_whole(stages: Package) -> None:
    with open_placed(stages, threads=1, devices=("cpu", "cpu")).session as session:
        assert isinstance(session, ParallelSession)
        np.testing.assert_allclose(session.run({"x": X})["y"], two_layers(X), rtol=1e-4, atol=1e-5)


def test_a_package_of_stages_opens_as_any_other(stages: Package) -> None:
    with open_session(stages, device="cpu", threads=1) as session:
        assert session.run({"x": X})["y"].shape == (3, 4)


def test_what_cannot_be_split_says_what_can(tiny: Package, stages: Package) -> None:
    with pytest.raises(UsageError, match=r"one graph, which cannot be split.*edgekit export FIRST.onnx SECOND.onnx"):
        open_placed(tiny, devices=("cpu", "cpu"), split=True)
    with pytest.raises(UsageError, match="takes 2 devices, and --device names 1 device"):
        open_placed(stages, devices=("cpu",), split=True)
    with pytest.raises(UsageError, match="takes 2 devices, and --device names 3 devices"):
        open_placed(stages, devices=("cpu",) * 3, split=True)
    if this_gpu() is None:
        with pytest.raises(UsageError, match="this machine has no GPU"):
            open_placed(stages, split=True)
        with pytest.raises(UsageError, match="cuda:1 does not exist"):
            open_placed(stages, devices=("cpu", "cuda:1"), split=True)


def test_a_stage_that_was_changed_is_refused(stages: Package) -> None:
    file = stages.path / "decoder.edge" / "fp32.onnx"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="SHA-256 does not match"):
        open_placed(Package.open(stages.path))
