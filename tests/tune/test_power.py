from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.telemetry.nvml_stub import SOURCE

SETTING = r"""
#include <stdio.h>
/* The cap is a file, so that every process sees it. */
static void path(char *out) { sprintf(out, "%s/cap", getenv("STUB_FOLDER")); }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **h) { *h = (void *)1;
  return strcmp(uuid, "GPU-1234") ? 6 : OK; }
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *mw) {
  char name[500]; path(name); FILE *f = fopen(name, "r"); *mw = 600000;
  if (f) fscanf(f, "%u", mw), fclose(f);
  return OK;
}
int nvmlDeviceSetPowerManagementLimit(void *h, unsigned mw) {
  if (getenv("STUB_REFUSES")) return 4; /* no permission */
  char name[500]; path(name); FILE *f = fopen(name, "w"); fprintf(f, "%u", mw); fclose(f); return OK;
}
"""

CODE = """
from edgekit.tune.power import find_control
control, reason = find_control(gpu=True)
if control is None:
    print(reason)
else:
    print([c.label for c in control.choices], control.current.label, control.choices[0].command)
    with control.guard():
        control.apply(control.choices[0])
        print(open(FOLDER + "/cap").read())
    print(open(FOLDER + "/cap").read())
"""


def run(folder: Path, code: str, *flags: str, **environment: str) -> list[str]:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install nvidia-ml-py")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "stub.c").write_text("#include <stdlib.h>\n" + SOURCE + SETTING)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, folder / "stub.c", "-o", library], check=True)
    full = {**os.environ, "LD_LIBRARY_PATH": str(folder), "STUB_FOLDER": str(folder), **environment}
    code = f"FOLDER = {str(folder)!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_cap_of_a_gpu_is_set_and_set_back(tmp_path: Path) -> None:
    assert run(tmp_path, CODE) == [
        "['200 W', '367 W', '533 W', '700 W'] 600 W sudo nvidia-smi -i GPU-1234 -pl 200",
        "200000",
        "600000",
    ]


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ((), {"STUB_REFUSES": "1"}, "a power cap of 600 W (Insufficient Permissions). Run with sudo"),
        (("-DGPUS=2",), {}, "this machine has 2 GPUs"),
        (("-DMIG=2",), {}, "would slow every MIG instance"),
        (("-DBARE=1",), {}, "This GPU has no power cap"),
    ],
)
def test_where_it_cannot_be_set_a_sentence_says_why(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    (line,) = run(tmp_path, CODE, *flags, **environment)
    assert words in line
    assert not (tmp_path / "cap").exists()
