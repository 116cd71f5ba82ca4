from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.errors import UsageError
from edgekit.targets import Target, architectures, generic, jetpacks, target_of, target_of_gpu, targets

NAMED = sorted(targets())


def test_every_machine_that_users_ask_for_is_there() -> None:
    wanted = {
        *("agx-xavier", "xavier-nx", "orin-nano", "orin-nx", "agx-orin", "orin-nano-super", "orin-nx-super"),
        *("thor-t5000", "rtx-3060", "rtx-4090", "rtx-5090", "rtx-pro-6000", "rtx-6000-ada", "rtx-a6000"),
        *("a2", "t4", "l4", "l40s", "a100", "h100", "h200", "b200"),
    }
    assert wanted <= set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_rates_follow_from_the_chip(name: str) -> None:
    """A slip of a digit shows here: each rate is multiprocessors x clock x what one does in a cycle."""
    t = targets()[name]
    a = t.architecture
    assert t.multiprocessors is not None
    assert t.clock_mhz is not None
    cycles = t.multiprocessors * t.clock_mhz * 1e6
    half = 2 if t.halved else 1
    assert t.fp16_tops == pytest.approx(cycles * a.fp16_ops / half / 1e12, rel=0.03)
    assert t.int8_tops == pytest.approx(cycles * a.int8_ops / 1e12, rel=0.03)
    if a.fp8_ops:
        assert t.fp8_tops == pytest.approx(cycles * a.fp8_ops / half / 1e12, rel=0.03)
    else:
        assert t.fp8_tops is None


@pytest.mark.parametrize("name", NAMED)
def test_figures_are_sane_and_sourced(name: str) -> None:
    t = targets()[name]
    assert t.memory_gb is not None
    assert t.bandwidth_gb_s is not None
    assert t.power_w is not None
    assert 4 <= t.memory_gb <= 200
    assert 30 <= t.bandwidth_gb_s <= 10_000
    assert 0 < t.power_w[0] <= t.power_w[1] <= 1000
    assert t.source
    assert t.sm in architectures()


@pytest.mark.parametrize("name", NAMED)
def test_every_jetson_has_a_jetpack_whose_tensorrt_knows_its_chip(name: str) -> None:
    t = targets()[name]
    assert bool(t.jetpacks) == (t.family == "jetson")
    for version in t.jetpacks:
        have = tuple(map(int, jetpacks()[version].tensorrt.split(".")))
        assert have >= tuple(map(int, t.architecture.tensorrt.split(".")))
        if t.architecture.last:
            assert have <= tuple(map(int, t.architecture.last.split(".")))


def test_every_jetpack_runs_on_some_board() -> None:
    used = {v for t in targets().values() for v in t.jetpacks}
    assert used == set(jetpacks())


def test_super_modes_are_faster_than_the_plain_board() -> None:
    for name, t in targets().items():
        if name.endswith("-super"):
            plain = targets()[name.removesuffix("-super")]
            assert (t.fp16_tops or 0) > (plain.fp16_tops or 0)
            assert t.sm == plain.sm
            assert t.memory_gb == plain.memory_gb


@pytest.mark.parametrize(
    ("asked", "name", "sm"),
    [
        ("Orin-NX", "orin-nx", 87),
        ("rtx_4090", "rtx-4090", 89),
        ("RTX 4090", "rtx-4090", 89),
        ("sm_87", "sm_87", 87),
        ("sm87", "sm_87", 87),
        ("8.7", "sm_87", 87),
        ("sm_120", "sm_120", 120),
        ("orin", "sm_87", 87),
        ("thor", "sm_110", 110),
        ("rtx-ada", "sm_89", 89),
        ("l4", "l4", 89),
    ],
)
def test_names_are_read_as_users_write_them(asked: str, name: str, sm: int) -> None:
    found = target_of(asked)
    assert (found.name, found.sm) == (name, sm)


@pytest.mark.parametrize(
    ("asked", "offer"),
    [
        ("orin-xn", "orin-nx"),
        ("orinnx16", "orin-nx"),
        ("agxorin", "agx-orin"),
        ("rtx-409", "rtx-4090"),
        ("thsi", "this"),
    ],
)
def test_a_name_that_is_almost_right_is_offered(asked: str, offer: str) -> None:
    with pytest.raises(UsageError, match=rf"Did you mean '{offer}'\?"):
        target_of(asked)


def test_a_name_that_is_far_off_and_an_unknown_capability() -> None:
    with pytest.raises(UsageError, match="edgekit compile --targets"):
        target_of("toaster")
    with pytest.raises(UsageError, match="sm_75, sm_80"):
        target_of("sm_42")


@pytest.mark.parametrize(
    ("gpu", "sm", "name"),
    [
        ("NVIDIA H200", 90, "h200"),
        ("Tesla T4", 75, "t4"),
        ("NVIDIA GeForce RTX 4090", 89, "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 89, "sm_89"),
        ("NVIDIA A100-SXM4-80GB", 80, "sm_80"),
        ("NVIDIA L4", 90, "sm_90"),  # a name that contradicts the chip is not believed
    ],
)
def test_a_gpu_is_found_by_its_drivers_name(gpu: str, sm: int, name: str) -> None:
    assert target_of_gpu(gpu, sm).name == name


def test_a_jetson_is_its_chip() -> None:
    assert target_of_gpu("Orin", 87, board="NVIDIA Jetson Orin Nano").name == "sm_87"


def test_a_generic_target_claims_no_figures() -> None:
    t = generic(86)
    assert (t.memory_gb, t.fp16_tops, t.power_w) == (None, None, None)
    assert t.rtx
    assert not generic(87).rtx
    assert isinstance(t, Target)


def test_the_list_is_read_only_when_asked_for() -> None:
    code = "import sys, edgekit.targets; sys.exit('tomllib' in sys.modules or 'tomli' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
