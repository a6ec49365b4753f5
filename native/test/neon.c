/*
 * The NEON kernels as a program, for machines that build but have no ARM processor: qemu-aarch64 runs it.
 *
 *   neon --self-test        the pool, the heap and a kernel of each kind of argument, against loops written here; prints what failed
 *   neon <in> <out>         serves a backend over two named pipes: test/parity runs every case of the kernel suite through it
 *
 * Request: five int64 (operation, integers, floats, payload bytes, 0), the integers as int64, the floats as f32, the payload.
 * Answer: two int64 (result, payload bytes) and the payload.
 *
 * A kernel is called through one prototype with room for every kernel's arguments. That is not C, it is the calling convention of
 * 64-bit ARM Linux: integers in x0-x7 and then in 8-byte slots of the stack, floats apart in v0-v7; a callee ignores what it does not expect.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe.h"

moe_context *moe_context_create(int num_threads);
void moe_context_destroy(moe_context *ctx);
int moe_context_threads(const moe_context *ctx);
void *moe_alloc(moe_context *ctx, size_t bytes);
int moe_free(moe_context *ctx, void *pointer);
double moe_live_bytes(const moe_context *ctx);
double moe_peak_bytes(const moe_context *ctx);
void moe_trim(moe_context *ctx);

typedef void (*kernel)(void);
typedef struct {
  const char *name;
  kernel call;
} entry;
/* Every moe_*_neon of the objects, written by the build. */
#include "neon_kernels.inc"
enum { NUM_KERNELS = sizeof kernels / sizeof kernels[0], MAX_INTEGERS = 24, MAX_FLOATS = 8 };

static int find_kernel(const char *name) {
  for (int i = 0; i < NUM_KERNELS; i++) {
    if (strcmp(kernels[i].name, name) == 0) return i;
  }
  return -1;
}

typedef void (*widest)(moe_context *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       float, float, float, float, float, float, float, float);

static void call_kernel(moe_context *ctx, int index, const int64_t *n, const float *f) {
  widest call = (widest)kernels[index].call;
  call(ctx, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17], n[18], n[19],
       n[20], n[21], n[22], n[23], f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]);
}

/* ---- the self-test ---- */

static int failures;
static void check(int good, const char *what) {
  if (good) return;
  failures++;
  printf("neon: failed: %s\n", what);
}

typedef struct {
  moe_context *ctx;
  int32_t hits[1000];
} tally;
static void hit(void *argument, ptrdiff_t chunk, int thread) {
  tally *t = argument;
  int32_t *scratch = moe_thread_scratch(t->ctx, thread, 64);
  scratch[0] = (int32_t)chunk;
  __atomic_fetch_add(&t->hits[scratch[0]], 1, __ATOMIC_RELAXED);
}

static void check_pool(moe_context *ctx) {
  tally *t = calloc(1, sizeof *t);
  t->ctx = ctx;
  int good = 1;
  for (int round = 1; round <= 50; round++) {
    moe_parallel_for(ctx, 1000, hit, t);
    for (int i = 0; i < 1000; i++) good &= t->hits[i] == round;
  }
  check(good, "parallel_for runs every chunk once, on scratch of its own thread");
  free(t);
}

static void check_heap(moe_context *ctx) {
  double before = moe_live_bytes(ctx);
  void *a = moe_alloc(ctx, 1000), *b = moe_alloc(ctx, 0), *c = moe_alloc(ctx, 100 << 20);
  check(a && b && c && (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & 63) == 0, "blocks are aligned to 64 bytes");
  check(moe_live_bytes(ctx) == before + 1000 + (100 << 20), "live bytes are what was asked for");
  check(moe_free(ctx, a) == 0 && moe_free(ctx, b) == 0 && moe_free(ctx, c) == 0 && moe_free(ctx, c) == -1, "a block is freed once");
  moe_trim(ctx);
  check(moe_live_bytes(ctx) == before, "live bytes return");
}

static void check_kernels(moe_context *ctx) {
  enum { M = 3, N = 5, K = 37 };
  float x[M * K], w[N * K], bias[N], out[M * N], sum[M * K];
  for (int i = 0; i < M * K; i++) x[i] = (float)(i % 13) - 6;
  for (int i = 0; i < N * K; i++) w[i] = (float)(i % 7) - 3;
  for (int i = 0; i < N; i++) bias[i] = (float)i;
  int linear = find_kernel("moe_linear_forward_neon"), scale = find_kernel("moe_scale_neon"), finite = find_kernel("moe_all_finite_neon");
  check(linear >= 0 && scale >= 0 && finite >= 0, "linear_forward, scale and all_finite are there");
  if (failures) return;
  int64_t n[MAX_INTEGERS] = {(intptr_t)out, (intptr_t)x, (intptr_t)w, (intptr_t)bias, M, N, K, MOE_F32, MOE_F32, MOE_F32};
  float f[MAX_FLOATS] = {0};
  call_kernel(ctx, linear, n, f);
  int good = 1;
  for (int m = 0; m < M; m++) {
    for (int o = 0; o < N; o++) {
      float exact = bias[o]; /* small integers: no rounding anywhere */
      for (int k = 0; k < K; k++) exact += x[m * K + k] * w[o * K + k];
      good &= out[m * N + o] == exact;
    }
  }
  check(good, "linear_forward of small integers is exact (ten integer arguments, some on the stack)");
  int64_t s[MAX_INTEGERS] = {(intptr_t)sum, (intptr_t)x, M * K, MOE_F32};
  f[0] = 0.5f;
  call_kernel(ctx, scale, s, f);
  good = 1;
  for (int i = 0; i < M * K; i++) good &= sum[i] == x[i] * 0.5f;
  check(good, "scale halves (a float argument)");
  int32_t answer = -1;
  sum[M * K - 1] = NAN;
  int64_t a[MAX_INTEGERS] = {(intptr_t)&answer, (intptr_t)sum, M * K};
  call_kernel(ctx, finite, a, f);
  check(answer == 0, "all_finite sees a NaN in the last element");
}

static int self_test(void) {
  for (int threads = 1; threads <= 3; threads++) {
    moe_context *ctx = moe_context_create(threads);
    check(moe_context_threads(ctx) == threads, "as many threads as asked for");
    check_pool(ctx);
    check_heap(ctx);
    check_kernels(ctx);
    moe_context_destroy(ctx);
  }
  printf("neon: %d kernels, %s\n", NUM_KERNELS, failures ? "self-test failed" : "self-test passed");
  return failures != 0;
}

/* ---- the server ---- */

enum { OPEN = 0, LOOKUP = 1, CALL = 2, ALLOC = 3, FREE = 4, WRITE = 5, READ = 6, LIVE = 7, PEAK = 8 };

static int get(FILE *in, void *target, size_t bytes) { return bytes == 0 || fread(target, bytes, 1, in) == 1; }

static int serve(const char *in_path, const char *out_path) {
  FILE *in = fopen(in_path, "rb"), *out = fopen(out_path, "wb");
  if (!in || !out) return 1;
  moe_context *ctx = NULL;
  int64_t head[5];
  while (get(in, head, sizeof head)) {
    int64_t n[MAX_INTEGERS + 1] = {0}, answer[2] = {0, 0};
    float f[MAX_FLOATS] = {0};
    if (head[1] > MAX_INTEGERS + 1 || head[2] > MAX_FLOATS) return 2;
    if (!get(in, n, (size_t)head[1] * 8) || !get(in, f, (size_t)head[2] * 4)) return 2;
    char name[64] = {0};
    if (head[0] == LOOKUP) {
      if (head[3] >= (int64_t)sizeof name || !get(in, name, (size_t)head[3])) return 2;
      answer[0] = find_kernel(name);
    } else if (head[0] == WRITE && !get(in, (void *)(intptr_t)n[0], (size_t)head[3])) {
      return 2;
    }
    if (head[0] == OPEN) ctx = moe_context_create((int)n[0]);
    if (head[0] == CALL) call_kernel(ctx, (int)n[0], n + 1, f);
    if (head[0] == ALLOC) answer[0] = (intptr_t)moe_alloc(ctx, (size_t)n[0]);
    if (head[0] == FREE) answer[0] = moe_free(ctx, (void *)(intptr_t)n[0]);
    if (head[0] == LIVE) answer[0] = (int64_t)moe_live_bytes(ctx);
    if (head[0] == PEAK) answer[0] = (int64_t)moe_peak_bytes(ctx);
    if (head[0] == READ) answer[1] = n[1];
    fwrite(answer, sizeof answer, 1, out);
    if (answer[1] > 0) fwrite((void *)(intptr_t)n[0], (size_t)answer[1], 1, out);
    if (fflush(out) != 0) return 3;
  }
  moe_context_destroy(ctx);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--self-test") == 0) return self_test();
  if (argc == 3) return serve(argv[1], argv[2]);
  fprintf(stderr, "usage: neon --self-test | neon <in> <out>\n");
  return 2;
}
