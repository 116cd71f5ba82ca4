"""Stands for the driver's library: one GPU (or more) as a real shared library that the real nvidia-ml-py loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = r"""
#include <string.h>
static unsigned long long energy_mj = 1000;
#define OK 0
#define NOT_SUPPORTED 3
#ifndef GPUS
#define GPUS 1
#endif
#ifndef ENERGY
#define ENERGY OK
#endif
#ifndef BARE
#define BARE 0 /* 1: nothing but the name, as Orin's library */
#endif
#ifndef FIELDS
#define FIELDS OK
#endif
#ifndef MIG
#define MIG 0
#endif
#ifndef MASK
#define MASK 0x1
#endif
#ifndef CLOCK
#define CLOCK 1980
#endif
#ifndef LOST_AFTER
#define LOST_AFTER 1000000
#endif
#define NEED if (BARE) return NOT_SUPPORTED
typedef struct { unsigned id, scope; long long time, latency; int type, status; union { double d; unsigned u;
  unsigned long l; unsigned long long ll; } value; } field;
int nvmlInitWithFlags(unsigned f) { return OK; }
int nvmlInit_v2(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(unsigned long)(i + 1); return OK; }
int nvmlDeviceGetUUID(void *h, char *out, unsigned n) {
  unsigned long i = (unsigned long)h;
  if (i >= 100) strcpy(out, "MIG-77000000-0"), out[13] = '0' + i % 10;
  else strcpy(out, "GPU-1234"), out[7] = '3' + i;
  return OK;
}
int nvmlDeviceGetName(void *h, char *out, unsigned n) { strcpy(out, "Test GPU"); return OK; }
#ifdef TIMED /* TIMED watts, shown every 100 ms */
#include <time.h>
static unsigned long long timed_mj(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return ((unsigned long long)t.tv_sec * 10 + t.tv_nsec / 100000000) * 100 * TIMED;
}
#endif
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
  NEED;
#ifdef TIMED
  *mj = timed_mj(); return OK;
#endif
  if (ENERGY != OK) return ENERGY;
  *mj = energy_mj; energy_mj += 5000; return OK;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { NEED; *mw = 70500; return OK; }
int nvmlDeviceGetTemperature(void *h, int kind, unsigned *c) {
  static int asked;
  NEED;
  if (asked++ >= LOST_AFTER) return 15;
  *c = 41; return OK;
}
int nvmlDeviceGetTemperatureThreshold(void *h, int kind, unsigned *c) { NEED; *c = kind ? 87 : 92; return OK; }
int nvmlDeviceGetFieldValues(void *h, int n, field *v) {
  if (FIELDS != OK) return FIELDS;
  for (int i = 0; i < n; i++) {
    v[i].status = OK; v[i].type = 1;
    if (v[i].id == 186 && v[i].scope == 0) v[i].value.u = 81250;
    else if (v[i].id == 185) v[i].value.u = 70250;
    else if (v[i].id == 82) v[i].value.u = 55;
    else if (v[i].id == 74) v[i].type = 3, v[i].value.ll = 2500000000ull;
    else v[i].status = NOT_SUPPORTED;
  }
  return OK;
}
int nvmlDeviceGetMaxClockInfo(void *h, int kind, unsigned *mhz) { NEED; *mhz = 1980; return OK; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *mhz) { NEED; *mhz = kind == 2 ? 3201 : CLOCK; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *mw) { NEED; *mw = 700000; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *h, unsigned *mw) { NEED; *mw = 700000; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *a, unsigned *b) {
  NEED; *a = 200000; *b = 700000; return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *m) { NEED; *m = MASK; return OK; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { NEED; u[0] = 63; u[1] = 20; return OK; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { NEED; m[0] = 80; m[1] = 60; m[2] = 20; return OK; }
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *next) { *now = *next = MIG > 0; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *n) { *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned i, void **out) {
  if (i >= MIG) return 6; /* not found */
  *out = (void *)(unsigned long)(100 * (unsigned long)h + i); return OK;
}
const char *nvmlErrorString(int code) { return "Not Supported"; }
"""


def run_with_stub(folder: Path, code: str, **defines: int) -> str:
    """Run `code` with the real nvidia-ml-py on the stub; keywords set its macros (GPUS, ENERGY, MIG, …)."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install nvidia-ml-py")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "stub.c").write_text(SOURCE)
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, folder / "stub.c", "-o", library], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
