"""Builds sysfs trees of machines, made from their documented layout (built, not captured)."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, str]) -> Path:
    """Write each file under `root` and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def rapl(root: Path, zones: dict[str, tuple[str, int]], *, range_uj: int = 262143328850) -> Path:
    """Powercap zones: folder -> (name, energy_uj)."""
    for folder, (name, energy_uj) in zones.items():
        base = f"sys/class/powercap/{folder}"
        write(
            root,
            {
                f"{base}/name": name + "\n",
                f"{base}/energy_uj": f"{energy_uj}\n",
                f"{base}/max_energy_range_uj": f"{range_uj}\n",
            },
        )
    return root


def ina3221(root: Path, hwmon: int, rails: list[tuple[str, int, int]]) -> Path:
    """One INA3221: (label, millivolts, milliamperes) a channel."""
    base = f"sys/class/hwmon/hwmon{hwmon}"
    files = {f"{base}/name": "ina3221\n", f"{base}/update_interval": "80\n"}
    for k, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{base}/in{k}_label"] = label + "\n"
        files[f"{base}/in{k}_input"] = f"{millivolts}\n"
        files[f"{base}/curr{k}_input"] = f"{milliamperes}\n"
        files[f"{base}/in{k + 3}_input"] = "1234\n"
    files[f"{base}/in7_label"] = "sum of shunt voltages\n"
    files[f"{base}/in7_input"] = "99\n"
    return write(root, files)


def jetson(root: Path, *, model: str, soc: str, release: str) -> Path:
    """Identity files of a Jetson."""
    return write(
        root,
        {
            "proc/device-tree/model": model + "\0",
            "proc/device-tree/compatible": f"nvidia,board\0nvidia,{soc}\0",
            "etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64\n",
        },
    )


def orin_nano(root: Path) -> Path:
    jetson(
        root,
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        soc="tegra234",
        release="R36 (release), REVISION: 4.3",
    )
    return ina3221(root, 1, [("VDD_IN", 4984, 1856), ("VDD_CPU_GPU_CV", 4984, 700), ("VDD_SOC", 4984, 500)])


def agx_orin(root: Path) -> Path:
    jetson(
        root,
        model="NVIDIA Jetson AGX Orin Developer Kit",
        soc="tegra234",
        release="R35 (release), REVISION: 4.1",
    )
    ina3221(root, 10, [("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 5000, 1000)])
    return ina3221(root, 2, [("NC", 5000, 1), ("VDDQ_VDD2_1V8AO", 5000, 300), ("NC", 5000, 1)])


def agx_thor(root: Path) -> Path:
    jetson(root, model="NVIDIA Jetson AGX Thor Developer Kit", soc="tegra264", release="R38 (release), REVISION: 2.0")
    ina3221(root, 3, [("VDD_GPU", 20000, -2), ("VDD_CPU_SOC_MSS", 20000, 600), ("VIN_SYS_5V0", 5000, 900)])
    base = "sys/class/hwmon/hwmon4"
    write(root, {f"{base}/name": "ina238\n", f"{base}/in1_label": "VIN\n", f"{base}/power1_input": "41250000\n"})
    source = "sys/class/hwmon/hwmon5"  # the USB-C supply, to be ignored
    return write(root, {f"{source}/name": "ucsi_source_psy_1\n", f"{source}/in1_label": "VIN\n"})
