/* Stands for the CUDA driver where there is no GPU: memory is the host's, and a launch runs the host's build of the kernel
   (tests/cuda_on_host), with the arguments that it was given. Each test names that build by stub_kernel. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
struct region { size_t begin; u64 bytes; int writable, initialised; const char *name; };

static struct region memory[256];
static int count, live;
static void *library;
static char entry_name[256];
static struct region shared[64];
static int shared_count;

int stub_live(void) { return live; }
void stub_kernel(const char *path, const char *entry) {
  library = dlopen(path, RTLD_NOW);
  snprintf(entry_name, sizeof entry_name, "%s", entry);
  shared_count = 0;
}
void stub_shared(size_t offset, u64 bytes) { shared[shared_count++] = (struct region){offset, bytes, 1, 0, "shared"}; }

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 99000; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return i == 0 ? 0 : 101; }
int cuDeviceGetAttribute(int *v, int kind, int d) { *v = kind == 75 ? 8 : kind == 76 ? 7 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x100ul; live++; return 0; }
int cuDevicePrimaryCtxRelease(int d) { live--; return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuStreamCreate(void **s, unsigned flags) { *s = malloc(8); live++; return 0; }
int cuStreamDestroy(void *s) { free(s); live--; return 0; }
int cuStreamSynchronize(void *s) { return 0; }

int cuMemAlloc(u64 *p, size_t n) {
  void *made = 0;
  if (posix_memalign(&made, 256, n)) return 2;
  memset(made, 0xcd, n);
  *p = (u64)made;
  memory[count++] = (struct region){(size_t)made, n, 1, 1, "buffer"};
  live++;
  return 0;
}
int cuMemFree(u64 p) {
  for (int i = 0; i < count; i++)
    if (memory[i].begin == p) { memory[i] = memory[--count]; free((void *)p); live--; return 0; }
  return 1;
}
static struct region *region_of(u64 p) {
  for (int i = 0; i < count; i++) if (memory[i].begin == p) return &memory[i];
  return 0;
}
/* What is copied to the GPU is an input, which no kernel writes; what is only filled is an output. */
int cuMemcpyHtoD(u64 to, const void *from, size_t n) {
  memcpy((void *)to, from, n);
  region_of(to)->writable = 0;
  return 0;
}
int cuMemsetD8(u64 to, unsigned char value, size_t n) {
  memset((void *)to, value, n);
  region_of(to)->initialised = 0;
  return 0;
}
int cuMemcpyDtoH(void *to, u64 from, size_t n) { memcpy(to, (void *)from, n); return 0; }

int cuModuleLoadData(void **m, const void *image) {
  if (memcmp(image, "\177ELF", 4)) return 200;
  *m = malloc(8);
  live++;
  return 0;
}
int cuModuleUnload(void *m) { free(m); live--; return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
  if (strcmp(name, entry_name)) return 500;
  *f = dlsym(library, "cuda_on_host_entry");
  return *f ? 0 : 500;
}
int cuFuncSetAttribute(void *f, int kind, int value) { return 0; }

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned bytes,
                   void *stream, void **arguments, void **extra) {
  int (*launch)(void *, void **, const unsigned *, size_t, u64, const struct region *, int, const struct region *, int,
                char *, size_t) = dlsym(library, "cuda_on_host_launch");
  unsigned size[6] = {gx, gy, gz, bx, by, bz};
  char text[1024];
  struct region readable[256];
  memcpy(readable, memory, sizeof memory);
  if (launch(f, arguments, size, bytes, 1, readable, count, shared, shared_count, text, sizeof text)) {
    fprintf(stderr, "%s\n", text);
    return 719;
  }
  return 0;
}

/* NVRTC looks for the driver as well, and goes on without it. */
int cuGetExportTable(const void **table, const void *id) { return 500; }

/* cuda-bindings asks for every call by its name, without the version that the headers add. */
int cuGetProcAddress_v2(const char *name, void **p, int version, u64 flags, int *status) {
  *p = dlsym(RTLD_DEFAULT, name);
  if (!*p) { void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD); if (self) *p = dlsym(self, name); }
  if (status) *status = *p ? 0 : 1;
  return 0;
}
int cuGetProcAddress(const char *name, void **p, int version, u64 flags) { return cuGetProcAddress_v2(name, p, version, flags, 0); }
