from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit.cli.main import COMMANDS
from edgekit.doctor import NEEDS, Diagnosis, Finding, examine
from edgekit.telemetry import machine
from tests.telemetry import trees

INTEL = "".join(
    f"processor\t: {i}\nmodel name\t: Intel(R) Core(TM) Ultra 7 155H\nflags\t\t: fpu sse4_2 avx2 avx_vnni\n\n"
    for i in range(4)
)
ARM = "".join(
    f"processor\t: {i}\nFeatures\t: fp asimd aes asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
    for i in range(6)
)
MEMORY = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


def find(diagnosis: Diagnosis, name: str) -> Finding:
    """The one finding of that name."""
    (found,) = [f for f in diagnosis.findings if f.name == name]
    return found


def laptop(root: Path) -> Path:
    """An x86 laptop with an NVIDIA GPU."""
    trees.rapl(root, {"intel-rapl:0": ("package-0", 1), "intel-rapl:1": ("psys", 2)})
    return trees.write(
        root,
        {
            "proc/cpuinfo": INTEL,
            "proc/meminfo": MEMORY,
            "proc/sys/kernel/osrelease": "6.8.0-generic\n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n',
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX 4070 Laptop GPU\nIRQ: 1\n",
            "usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
        },
    )


def test_a_laptop_is_described(tmp_path: Path) -> None:
    got = examine(laptop(tmp_path))
    assert find(got, "system").fact == "Ubuntu 24.04.2 LTS, kernel 6.8.0-generic"
    assert find(got, "processor").fact == "Intel(R) Core(TM) Ultra 7 155H, x86_64, 4 CPUs"
    assert find(got, "INT8 speed").status == "ok"
    assert "avx_vnni" in find(got, "INT8 speed").fact
    assert find(got, "memory").fact == "16.4 GB in the machine, 8.2 GB free"
    assert find(got, "driver").fact == "580.65.06; NVIDIA RTX 4070 Laptop GPU"
    assert find(got, "libcuda").fact == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert find(got, "rapl-cpu").status == "ok"
    assert not [f for f in got.findings if f.area == "jetson"]


def test_an_orin_is_described_with_its_rail_and_jetpack(tmp_path: Path) -> None:
    root = trees.orin_nano(tmp_path)
    trees.write(root, {"proc/cpuinfo": ARM, "proc/meminfo": MEMORY, ".dockerenv": ""})
    got = examine(root)
    assert find(got, "board").fact.endswith("Super (Orin, tegra234)")
    assert find(got, "JetPack").fact == "JetPack 6, L4T 36.4.3"
    assert find(got, "processor").fact == "Cortex-A78AE, aarch64, 6 CPUs"
    assert "dotprod" in find(got, "INT8 speed").fact
    assert find(got, "jetson-rails").fact == "module rail VDD_IN, by rail"
    assert find(got, "container").fact.startswith("Docker")
    assert "--runtime nvidia" in find(got, "libcuda").fix
    tensorrt = find(got, "tensorrt")
    assert tensorrt.status == "ok" or "nvidia-jetpack" in tensorrt.fix


def test_a_thor_is_told_from_an_orin(tmp_path: Path) -> None:
    got = examine(trees.agx_thor(tmp_path))
    assert find(got, "board").fact == "NVIDIA Jetson AGX Thor Developer Kit (Thor, tegra264)"
    assert find(got, "JetPack").fact == "JetPack 7.0 or 7.1, L4T 38.2.0"
    assert find(got, "jetson-rails").fact == "module rail VIN, by rail"


def test_a_jetson_whose_release_is_hidden_says_how_to_show_it(tmp_path: Path) -> None:
    root = trees.orin_nano(tmp_path)
    (root / "etc/nv_tegra_release").unlink()
    got = find(examine(root), "JetPack")
    assert got.status == "warn"
    assert "/etc/nv_tegra_release" in got.fix


def test_an_empty_tree_is_findings_and_no_crash(tmp_path: Path) -> None:
    got = examine(tmp_path)
    assert find(got, "memory").status == "warn"
    assert find(got, "driver").status == "missing"
    assert find(got, "RAPL").status == "missing"


@pytest.mark.parametrize("content", ["", "\0\0", "rubbish", "MemTotal: many kB", "processor :\nflags\n"])
def test_rubbish_in_every_file_is_no_crash(tmp_path: Path, content: str) -> None:
    for path in [p for p in laptop(trees.orin_nano(tmp_path)).rglob("*") if p.is_file()]:
        path.write_text(content)
    assert examine(tmp_path).findings


def test_a_driver_that_is_not_passed_in_is_told_with_the_way_out(tmp_path: Path) -> None:
    root = laptop(tmp_path)
    (root / "usr/lib/x86_64-linux-gnu/libcuda.so.1").unlink()
    trees.write(root, {"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"})
    got = examine(root)
    assert find(got, "container").fact.startswith("Kubernetes")
    assert find(got, "libcuda").status == "missing"
    assert "--gpus all" in find(got, "libcuda").fix


def test_little_memory_and_limits_are_warned_of(tmp_path: Path) -> None:
    trees.write(
        tmp_path,
        {
            "proc/cpuinfo": INTEL,
            "proc/meminfo": MEMORY,
            "sys/fs/cgroup/memory.max": "1073741824\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
        },
    )
    got = examine(tmp_path)
    assert find(got, "memory").status == "warn"
    assert "limited to 1.1 GB" in find(got, "memory").fact
    assert find(got, "processor").fact.endswith("1.5 of 4 CPUs usable")


def test_older_control_groups_and_no_limit(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    trees.write(tmp_path, {"proc/cpuinfo": INTEL, f"{base}/cpu/cpu.cfs_quota_us": "200000\n"})
    trees.write(tmp_path, {f"{base}/cpu/cpu.cfs_period_us": "100000\n", "proc/meminfo": MEMORY})
    trees.write(tmp_path, {f"{base}/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine.cpu(tmp_path).usable == 2
    memory = machine.memory(tmp_path)
    assert memory is not None
    assert memory.limit is None
    trees.write(tmp_path, {f"{base}/cpu.max": "max 100000\n"})
    assert machine.cpu(tmp_path).usable == 4


def test_packages_are_known_without_loading_them(tmp_path: Path) -> None:
    loaded = "torch" in sys.modules
    got = examine(tmp_path)
    assert ("torch" in sys.modules) == loaded
    assert find(got, "onnx").fact.startswith(__import__("onnx").__version__)
    assert find(got, "ONNX Runtime").fact.endswith("CPU")
    assert got.can_run


def test_what_is_missing_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "tensorrt", "tensorrt_rtx_bindings", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    got = examine(tmp_path)
    assert not got.can_run
    assert find(got, "torch").fix == "pip install 'edgekit[export]'"
    commands = {c.name: c for c in got.commands}
    assert commands["inspect"].works
    assert not commands["run"].works
    assert commands["run"].lacks == ("onnxruntime or tensorrt or tensorrt_rtx_bindings",)
    assert commands["run"].fix == "pip install 'edgekit[cpu]'"
    assert commands["export"].fix == "pip install 'edgekit[cpu,export]'"


def test_every_command_is_judged() -> None:
    assert set(NEEDS) == set(COMMANDS)


def test_a_folder_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    assert find(examine(tmp_path, folder=tmp_path / "absent"), "disk").status == "warn"
