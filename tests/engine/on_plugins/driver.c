/* The CUDA driver of a machine with one GPU, as far as a build asks for it: SM_MAJOR, SM_MINOR and CUDA are macros. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = CUDA; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return i == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int d) { strncpy(name, "NVIDIA Stand-in", size); return 0; }
int cuDeviceGetAttribute(int *v, int kind, int d) { *v = kind == 75 ? SM_MAJOR : kind == 76 ? SM_MINOR : 0; return 0; }
int cuGetExportTable(const void **table, const void *id) { return 500; }

/* cuda-bindings asks for every call by its name, without the version that the headers add. */
int cuGetProcAddress_v2(const char *name, void **p, int version, unsigned long long flags, int *status) {
  void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *p = self ? dlsym(self, name) : 0;
  if (status) *status = *p ? 0 : 1;
  return 0;
}
