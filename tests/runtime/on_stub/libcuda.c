/* Stands for the CUDA driver: memory is the host's, work on a stream is done at once unless it is being recorded, each
   call is written to a log that tests read (stub_log), and any call can be made to fail (stub_fail). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef void (*host_fn)(void *);

static char log_text[1 << 20];
static int log_used;
static char fail_name[64];
static int fail_after, fail_code;
static int devices = 1, integrated, live;
static void *context_of_thread;

const char *stub_log(void) { return log_text; }
void stub_clear(void) { log_used = 0; log_text[0] = 0; }
void stub_fail(const char *name, int after, int code) { strncpy(fail_name, name, 63); fail_after = after; fail_code = code; }
void stub_machine(int gpus, int shares_memory) { devices = gpus; integrated = shares_memory; }
int stub_live(void) { return live; }

static int note(const char *name, const char *format, u64 a, u64 b) {
  if (log_used < (int)sizeof log_text - 200) {
    log_used += sprintf(log_text + log_used, "%s", name);
    if (format) { log_text[log_used++] = ' '; log_used += sprintf(log_text + log_used, format, a, b); }
    log_text[log_used++] = '\n';
    log_text[log_used] = 0;
  }
  if (strcmp(name, fail_name) == 0 && fail_after-- == 0) { fail_name[0] = 0; return fail_code; }
  return 0;
}
#define CALL(name, format, a, b) do { int e = note(name, format, (u64)(a), (u64)(b)); if (e) return e; } while (0)

/* Work, and what a stream records of it. */
struct work { int kind; void *to; const void *from; size_t bytes; host_fn fn; void *data; };
struct graph { int count; struct work nodes[256]; };
struct stream { int number; int recording; struct graph *graph; };
static int streams;

static void perform(struct work *w) { if (w->fn) w->fn(w->data); else memcpy(w->to, w->from, w->bytes); }
static int put(struct stream *s, struct work w) {
  if (s->recording) { s->graph->nodes[s->graph->count++] = w; return 0; }
  perform(&w);
  return 0;
}

int cuInit(unsigned flags) { CALL("cuInit", 0, 0, 0); return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { CALL("cuDeviceGetCount", 0, 0, 0); *n = devices; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return i < devices ? 0 : 101; }
int cuDeviceGetName(char *out, int n, int d) { snprintf(out, n, "Stub GPU %d", d); return 0; }
int cuDeviceGetAttribute(int *v, int kind, int d) {
  *v = kind == 75 ? 8 : kind == 76 ? 7 : kind == 18 ? integrated : kind == 19 ? 1 : 0;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **c, int d) { CALL("cuDevicePrimaryCtxRetain", "%llu", d, 0); *c = (void *)(0x100ul + d); return 0; }
int cuDevicePrimaryCtxRelease(int d) { CALL("cuDevicePrimaryCtxRelease", "%llu", d, 0); return 0; }
int cuCtxSetCurrent(void *c) { context_of_thread = c; return 0; }
int cuMemGetInfo(size_t *f, size_t *t) { CALL("cuMemGetInfo", 0, 0, 0); *f = 1000; *t = 2000; return 0; }

int cuMemAlloc(u64 *p, size_t n) { CALL("cuMemAlloc", "%llu", n, 0); *p = (u64)calloc(1, n); live++; return 0; }
int cuMemFree(u64 p) { CALL("cuMemFree", 0, 0, 0); free((void *)p); live--; return 0; }
/* A handle of an allocation is its address; the driver itself would not open one in the process that made it. */
typedef struct { char bytes[64]; } ipc_handle;
int cuIpcGetMemHandle(ipc_handle *h, u64 p) { memset(h, 7, 64); memcpy(h, &p, 8); return 0; }
int cuIpcOpenMemHandle(u64 *p, ipc_handle h, unsigned f) { CALL("cuIpcOpenMemHandle", "flags %llu", f, 0); memcpy(p, &h, 8); live++; return 0; }
int cuIpcCloseMemHandle(u64 p) { CALL("cuIpcCloseMemHandle", 0, 0, 0); live--; return 0; }
int cuMemGetAddressRange(u64 *base, size_t *n, u64 p) { *base = p; *n = malloc_usable_size((void *)p) & ~15ul; return 0; }

int cuMemHostAlloc(void **p, size_t n, unsigned f) { CALL("cuMemHostAlloc", "%llu flags %llu", n, f); *p = calloc(1, n); live++; return 0; }
int cuMemFreeHost(void *p) { CALL("cuMemFreeHost", 0, 0, 0); free(p); live--; return 0; }
int cuMemHostGetDevicePointer(u64 *d, void *p, unsigned f) { CALL("cuMemHostGetDevicePointer", 0, 0, 0); *d = (u64)p; return 0; }

int cuStreamCreate(struct stream **s, unsigned f) {
  CALL("cuStreamCreate", "flags %llu", f, 0);
  *s = calloc(1, sizeof **s); (*s)->number = ++streams; live++;
  return 0;
}
int cuStreamDestroy(struct stream *s) { CALL("cuStreamDestroy", "s%llu", s->number, 0); free(s); live--; return 0; }
int cuStreamSynchronize(struct stream *s) { CALL("cuStreamSynchronize", "s%llu", s->number, 0); return s->recording ? 900 : 0; }
int cuMemcpyHtoDAsync(u64 to, const void *from, size_t n, struct stream *s) {
  CALL("cuMemcpyHtoDAsync", "s%llu %llu", s->number, n);
  return put(s, (struct work){0, (void *)to, from, n, 0, 0});
}
int cuMemcpyDtoHAsync(void *to, u64 from, size_t n, struct stream *s) {
  CALL("cuMemcpyDtoHAsync", "s%llu %llu", s->number, n);
  return put(s, (struct work){0, to, (void *)from, n, 0, 0});
}
int cuLaunchHostFunc(struct stream *s, host_fn fn, void *data) {
  CALL("cuLaunchHostFunc", "s%llu", s->number, 0);
  return put(s, (struct work){1, 0, 0, 0, fn, data});
}

int cuEventCreate(void **e, unsigned f) { CALL("cuEventCreate", "flags %llu", f, 0); *e = malloc(8); live++; return 0; }
int cuEventDestroy(void *e) { CALL("cuEventDestroy", 0, 0, 0); free(e); live--; return 0; }
int cuEventRecord(void *e, struct stream *s) { CALL("cuEventRecord", "s%llu", s->number, 0); return 0; }
int cuEventSynchronize(void *e) { CALL("cuEventSynchronize", 0, 0, 0); return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { *ms = 1.5f; return 0; }
int cuStreamWaitEvent(struct stream *s, void *e, unsigned f) { CALL("cuStreamWaitEvent", "s%llu", s->number, 0); return 0; }

int cuStreamBeginCapture(struct stream *s, int mode) {
  CALL("cuStreamBeginCapture", "s%llu mode %llu", s->number, mode);
  s->recording = 1; s->graph = calloc(1, sizeof *s->graph); live++;
  return 0;
}
int cuStreamEndCapture(struct stream *s, struct graph **g) {
  struct graph *made = s->graph;
  s->recording = 0; s->graph = 0; *g = 0;
  int e = note("cuStreamEndCapture", "s%llu", s->number, 0);
  if (e) { free(made); live--; return e; }  /* like the driver: a recording that broke gives no graph */
  *g = made;
  return 0;
}
int cuGraphInstantiateWithFlags(struct graph **exec, struct graph *g, u64 flags) {
  CALL("cuGraphInstantiate", "nodes %llu", g->count, 0);
  *exec = malloc(sizeof **exec); **exec = *g; live++;
  return 0;
}
int cuGraphDestroy(struct graph *g) { CALL("cuGraphDestroy", 0, 0, 0); free(g); live--; return 0; }
int cuGraphExecDestroy(struct graph *g) { CALL("cuGraphExecDestroy", 0, 0, 0); free(g); live--; return 0; }
int cuGraphLaunch(struct graph *g, struct stream *s) {
  CALL("cuGraphLaunch", "s%llu", s->number, 0);
  for (int i = 0; i < g->count; i++) perform(&g->nodes[i]);
  return 0;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, u64 flags, int *status) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found) {
    static void *own;
    if (!own) own = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *found = own ? dlsym(own, strcmp(name, "cuGetProcAddress") ? name : "cuGetProcAddress_v2") : 0;
  }
  if (status) *status = *found ? 0 : 1;
  return 0;
}
