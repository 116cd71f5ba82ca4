from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.telemetry.sysfs import Attribute, by_number, read_int, read_text
from tests.telemetry import boards, trees

EAGAIN = r"""
/* Files named temp answer EAGAIN, as zones do that are powered down. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int down(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return n > 18 && !strcmp(path + n - 18, "thermal_zone1/temp");
}
ssize_t read(int fd, void *b, size_t n) {
  if (down(fd)) { errno = EAGAIN; return -1; }
  return ((ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read"))(fd, b, n);
}
ssize_t pread(int fd, void *b, size_t n, off_t o) {
  if (down(fd)) { errno = EAGAIN; return -1; }
  return ((ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread"))(fd, b, n, o);
}
ssize_t pread64(int fd, void *b, size_t n, off_t o) { return pread(fd, b, n, o); }
"""


def test_unreadable_files_are_none_and_numbers_sort_as_numbers(tmp_path: Path) -> None:
    trees.write(tmp_path, {"hwmon10/x": "1", "hwmon2/x": " 42\n", "hwmon2/y": "soon", "hwmon2/z": "9" * 5000})
    assert [p.name for p in by_number(tmp_path, "hwmon*")] == ["hwmon2", "hwmon10"]
    assert read_int(tmp_path / "hwmon2/x") == 42
    assert read_int(tmp_path / "hwmon2/y") is None
    assert read_int(tmp_path / "hwmon2/z") is None
    assert read_text(tmp_path / "hwmon2") is None
    assert read_text(tmp_path / "absent") is None


def test_an_open_attribute_follows_its_file(tmp_path: Path) -> None:
    file = tmp_path / "temp"
    attribute = Attribute(file)
    assert attribute.integer() is None, "it may appear later"
    file.write_text("41000\n")
    assert attribute.integer() == 41000
    file.write_text("42\n")
    assert attribute.integer() == 42
    other = tmp_path / "other"
    other.write_text("43\n")
    other.replace(file)
    assert attribute.integer() == 43, "replaced by another file"
    file.unlink()
    assert attribute.integer() is None
    file.write_text("44\n")
    assert attribute.integer() == 44


def test_attributes_leave_no_files_open(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        assert Attribute(tmp_path / "x").integer() == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_zone_that_answers_eagain_is_absent_and_the_others_are_read(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "eagain.c").write_text(EAGAIN)
    library = tmp_path / "eagain.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "eagain.c", "-ldl"], check=True)
    boards.zones(tmp_path / "tree", {"cpu-thermal": 41000, "cv0-thermal": 40000, "gpu-thermal": 42000})
    code = f"""
from pathlib import Path
from edgekit.telemetry.thermal import find_zones
from edgekit.telemetry.sysfs import read_text
zones = find_zones(Path({str(tmp_path / "tree")!r}))
print([[z.read().temp_c for z in zones] for _ in range(2)])
print(read_text(zones[1].millidegrees.path))
"""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[[41.0, None, 42.0], [41.0, None, 42.0]]", "None"]
