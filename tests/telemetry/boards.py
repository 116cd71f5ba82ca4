"""Whole trees of five Jetson boards and two other machines.

Built from the layout that the kernel and NVIDIA document, not captured from real boards: values are plausible, file
names are what matters. Each tree says so itself, in `edgekit/origin`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.telemetry import trees
from tests.telemetry.trees import write

ORIGIN = "built, not captured: made from the documented layout\n"
NANO_ZONES = {"AO-therm": 38000, "CPU-therm": 31500, "GPU-therm": 30500, "PLL-therm": 29500, "PMIC-Die": 100000}
ORIN_ZONES = {
    "cpu-thermal": 48968,
    "gpu-thermal": 47562,
    "cv0-thermal": None,  # powered down
    "cv1-thermal": -256000,
    "soc0-thermal": 46843,
    "tj-thermal": 49062,
}


def zones(root: Path, temps: dict[str, int | None], *, trips: dict[str, int] | None = None) -> Path:
    """Thermal zones, type -> millidegrees. None stands for EAGAIN: the file cannot be read."""
    for number, (kind, temp) in enumerate(temps.items()):
        base = f"sys/class/thermal/thermal_zone{number}"
        write(root, {f"{base}/type": kind + "\n"})
        if temp is None:
            (root / base / "temp").symlink_to("temp")  # a loop: opening fails
        else:
            write(root, {f"{base}/temp": f"{temp}\n"})
        for k, (trip, millidegrees) in enumerate((trips or {"passive": 99000, "critical": 104500}).items()):
            write(
                root, {f"{base}/trip_point_{k}_type": trip + "\n", f"{base}/trip_point_{k}_temp": f"{millidegrees}\n"}
            )
    return root


def cooling(root: Path, devices: dict[str, int]) -> Path:
    """Cooling devices, type -> cur_state."""
    for number, (kind, state) in enumerate(devices.items()):
        base = f"sys/class/thermal/cooling_device{number}"
        write(root, {f"{base}/type": kind + "\n", f"{base}/cur_state": f"{state}\n", f"{base}/max_state": "3\n"})
    return root


def over_current(root: Path, hwmon: int, counts: tuple[int, int, int]) -> Path:
    base = f"sys/class/hwmon/hwmon{hwmon}"
    write(root, {f"{base}/name": "soctherm_oc\n"})
    for k, count in enumerate(counts, 1):
        write(root, {f"{base}/oc{k}_event_cnt": f"{count}\n", f"{base}/oc{k}_throt_en": "1\n"})
    return root


def gpu(root: Path, node: str, *, mhz: int, lowest: int, highest: int, load: int | None = 0) -> Path:
    base = f"sys/class/devfreq/{node}"
    hertz = {"cur_freq": mhz, "min_freq": lowest, "max_freq": highest}
    write(root, {f"{base}/{name}": f"{value * 1_000_000}\n" for name, value in hertz.items()})
    write(root, {f"{base}/governor": "nvhost_podgov\n"})
    return write(root, {f"{base}/device/load": f"{load}\n"}) if load is not None else root


def cpus(root: Path, policies: dict[int, tuple[str, int]], *, lowest: int = 115200, highest: int = 1984000) -> Path:
    """cpufreq policies: number -> (CPUs, kilohertz now); and the files that tell load and memory."""
    for number, (members, kilohertz) in policies.items():
        base = f"sys/devices/system/cpu/cpufreq/policy{number}"
        write(
            root,
            {
                f"{base}/affected_cpus": members + "\n",
                f"{base}/scaling_cur_freq": f"{kilohertz}\n",
                f"{base}/scaling_min_freq": f"{lowest}\n",
                f"{base}/scaling_max_freq": f"{highest}\n",
                f"{base}/scaling_governor": "schedutil\n",
            },
        )
    write(root, {"proc/stat": "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 100 0 50 800 50 0 0 0 0 0\n"})
    return write(root, {"proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 1000000 kB\nMemAvailable: 6000000 kB\n"})


def fan(root: Path, pwm_hwmon: int, rpm_hwmon: int, *, pwm: int, rpm: int) -> Path:
    base, tach = f"sys/class/hwmon/hwmon{pwm_hwmon}", f"sys/class/hwmon/hwmon{rpm_hwmon}"
    return write(
        root,
        {
            f"{base}/name": "pwmfan\n",
            f"{base}/pwm1": f"{pwm}\n",
            f"{tach}/name": "pwm_tach\n",
            f"{tach}/rpm": f"{rpm}\n",
        },
    )


def modes(root: Path, names: dict[int, str], *, default: int, now: int, warnings: int = 0) -> Path:
    """/etc/nvpmodel.conf and what `nvpmodel -q` answers."""
    blocks = [f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for number, name in names.items()]
    warn = "NVPM WARN: fan mode is not set!\n" * warnings
    return write(
        root,
        {
            "etc/nvpmodel.conf": "# power modes\n" + "\n".join(blocks) + f"\n< PM_CONFIG DEFAULT={default} >\n",
            "edgekit/nvpmodel-query": f"{warn}NV Power Mode: {names[now]}\n{now}\n",
        },
    )


def iio(root: Path, address: str, rails: list[tuple[str, int, int, int]]) -> Path:
    """An INA3221 of JetPack 4: (name, mV, mA, mW) a channel, from 0."""
    base = f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device0"
    for k, (name, millivolts, milliamperes, milliwatts) in enumerate(rails):
        write(
            root,
            {
                f"{base}/rail_name_{k}": name + "\n",
                f"{base}/in_voltage{k}_input": f"{millivolts}\n",
                f"{base}/in_current{k}_input": f"{milliamperes}\n",
                f"{base}/in_power{k}_input": f"{milliwatts}\n",
                f"{base}/crit_current_limit_{k}": "5000 ma\n",
            },
        )
    return root


def nano(root: Path) -> Path:
    """Jetson Nano, JetPack 4.6."""
    trees.jetson(root, model="NVIDIA Jetson Nano Developer Kit", soc="tegra210", release="R32 (release), REVISION: 7.1")
    iio(root, "6-0040", [("POM_5V_IN", 5060, 640, 3238), ("POM_5V_GPU", 5060, 32, 161), ("POM_5V_CPU", 5060, 144, 728)])
    zones(root, {**NANO_ZONES, "thermal-fan-est": 31000}, trips={"active": 51000, "passive": 97000, "critical": 102500})
    cooling(root, {"pwm-fan": 2, "gpu-throttle-alert": 0, "cpu-throttle-alert": 0})
    cpus(root, {0: ("0 1 2 3", 1479000)}, lowest=102000, highest=1479000)
    gpu(root, "57000000.gpu", mhz=76, lowest=76, highest=921, load=120)
    modes(root, {0: "MAXN", 1: "5W"}, default=0, now=0)
    return write(root, {"sys/devices/pwm-fan/cur_pwm": "80\n", "edgekit/origin": ORIGIN})


def xavier(root: Path) -> Path:
    """AGX Xavier, JetPack 5.1."""
    trees.jetson(root, model="Jetson-AGX", soc="tegra194", release="R35 (release), REVISION: 4.1")
    trees.ina3221(root, 4, [("GPU", 12072, 33), ("CPU", 12072, 66), ("SOC", 12072, 132)])
    trees.ina3221(root, 5, [("CV", 12072, 0), ("VDDRQ", 12072, 33), ("SYS5V", 5000, 400)])
    zones(root, {"CPU-therm": 36500, "GPU-therm": 35500, "AUX-therm": 35000, "AO-therm": 35500, "PMIC-Die": 100000})
    cooling(root, {"pwm-fan": 1, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "hot-surface-alert": 0})
    cpus(root, {n: (f"{n} {n + 1}", 1190400) for n in (0, 2, 4, 6)}, highest=2265600)
    gpu(root, "17000000.gv11b", mhz=318, lowest=114, highest=1377, load=37)
    fan(root, 1, 2, pwm=77, rpm=1200)
    modes(root, {0: "MAXN", 1: "MODE_10W", 2: "MODE_15W", 3: "MODE_30W_ALL"}, default=2, now=2, warnings=1)
    return write(root, {"edgekit/origin": ORIGIN})


def orin_nano(root: Path) -> Path:
    """Orin Nano Super, JetPack 6.2."""
    trees.orin_nano(root)
    write(root, {"sys/class/hwmon/hwmon1/curr1_max": "4000\n", "sys/class/hwmon/hwmon1/curr1_max_alarm": "0\n"})
    zones(root, ORIN_ZONES)
    cooling(root, {"pwm-fan": 1, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "hot-surface-alert": 0})
    over_current(root, 3, (0, 4, 0))
    cpus(root, {0: ("0 1 2 3", 1344000), 4: ("4 5", 729600)}, highest=1728000)
    gpu(root, "17000000.gpu", mhz=306, lowest=306, highest=1020, load=452)
    fan(root, 0, 2, pwm=120, rpm=2213)
    modes(root, {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}, default=1, now=2)
    return write(root, {"edgekit/origin": ORIGIN})


def agx_orin(root: Path) -> Path:
    """AGX Orin, JetPack 5.1."""
    trees.agx_orin(root)
    zones(root, ORIN_ZONES)
    cooling(root, {"pwm-fan": 2, "cpu-throttle-alert": 0, "gpu-throttle-alert": 1, "soc0-throttle-alert": 0})
    over_current(root, 3, (0, 0, 0))
    cpus(root, {n: (f"{n} {n + 1} {n + 2} {n + 3}", 2201600) for n in (0, 4, 8)}, lowest=2201600, highest=2201600)
    gpu(root, "17000000.ga10b", mhz=1300, lowest=1300, highest=1300, load=987)
    fan(root, 0, 1, pwm=255, rpm=3100)
    modes(root, {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}, default=2, now=0)
    return write(root, {"edgekit/origin": ORIGIN})


def thor(root: Path) -> Path:
    """AGX Thor, JetPack 7."""
    trees.agx_thor(root)
    temps = {"cpu-thermal": 43000, "gpu-thermal": 41000, "soc012-thermal": 42000, "soc345-thermal": 42500}
    zones(root, {**temps, "tj-thermal": 43500})
    cooling(root, {"pwm-fan": 1, "cpu-throttle-alert": 0})
    cpus(root, {n: (f"{n} {n + 1}", 2601000) for n in range(0, 14, 2)}, highest=2601000)
    gpu(root, "gpu-gpc-0", mhz=315, lowest=315, highest=1575, load=None)
    gpu(root, "gpu-nvd-0", mhz=315, lowest=315, highest=1575, load=None)
    fan(root, 0, 1, pwm=51, rpm=900)
    modes(root, {0: "MAXN", 1: "120W", 2: "90W", 3: "70W"}, default=1, now=1)
    return write(root, {"edgekit/origin": ORIGIN})


def laptop(root: Path) -> Path:
    """An x86 laptop: RAPL, two thermal zones of the same kind, a hwmon chip that is no zone, one fan."""
    trees.rapl(root, {"intel-rapl:0": ("package-0", 1_000_000)})
    zones(root, {"acpitz": 45000, "x86_pkg_temp": 52000}, trips={"critical": 110000})
    write(root, {"sys/class/thermal/thermal_zone2/type": "acpitz\n", "sys/class/thermal/thermal_zone2/temp": "44000\n"})
    cooling(root, {"Processor": 3, "intel_powerclamp": -1})
    chip = "sys/class/hwmon/hwmon4"
    write(
        root, {f"{chip}/name": "coretemp\n", f"{chip}/temp1_input": "52000\n", f"{chip}/temp1_label": "Package id 0\n"}
    )
    write(root, {f"{chip}/temp1_max": "100000\n", f"{chip}/temp1_crit": "105000\n"})
    write(root, {"sys/class/hwmon/hwmon5/name": "acpitz\n", "sys/class/hwmon/hwmon5/temp1_input": "45000\n"})
    write(root, {"sys/class/hwmon/hwmon6/name": "thinkpad\n", "sys/class/hwmon/hwmon6/fan1_input": "2500\n"})
    for cpu, count in ((0, 3), (1, 4)):
        base = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        write(root, {f"{base}/core_throttle_count": f"{count}\n", f"{base}/package_throttle_count": "9\n"})
    cpus(root, {0: ("0", 3400000), 1: ("1", 800000)}, lowest=400000, highest=4700000)
    write(root, {"sys/class/dmi/id/product_name": "Laptop 14\n", "sys/class/dmi/id/product_serial": "SERIAL-1\n"})
    return write(root, {"edgekit/origin": ORIGIN})


JETSONS: dict[str, Callable[[Path], Path]] = {
    "nano": nano,
    "xavier": xavier,
    "orin_nano": orin_nano,
    "agx_orin": agx_orin,
    "thor": thor,
}
BOARDS = {**JETSONS, "laptop": laptop}
