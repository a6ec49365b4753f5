/*
 * The roof: what this machine can do at most, measured by loops that do nothing else.
 *
 *   bandwidth  reads 1 GiB that was touched before (larger than the caches), GB/s
 *   fma        fused multiply-adds of f32 in registers, 24 independent accumulators (12 where there are only 16 registers), GFLOP/s
 *   dot        vdpbf16ps in registers, 24 accumulators, GFLOP/s; 0 where the machine has no such instruction
 *
 * Speaks lines: reads "<what> <threads> [milliseconds]", answers with one number, so that whoever measures can take the roof between
 * two samples of something else. Compiled with -O3 -march=native by roof.ts; vectors are GCC's, so one source serves AVX2, AVX-512 and NEON.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64
#define NUM_ACCUMULATORS 24
#define REGISTER "v"
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define NUM_ACCUMULATORS 12
#define REGISTER "x"
#else
#define VECTOR_BYTES 16
#define NUM_ACCUMULATORS 24
#if defined(__aarch64__)
#define REGISTER "w"
#else
#define REGISTER "x"
#endif
#endif

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
enum { LANES = VECTOR_BYTES / 4, MAX_THREADS = 64 };
static const size_t READ_BYTES = (size_t)1 << 30;

#define EACH_12(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define EACH_24(f) EACH_12(f) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23)
#if defined(__AVX2__) && !defined(__AVX512F__)
#define EACH EACH_12
#else
#define EACH EACH_24
#endif

struct job {
  pthread_t thread;
  pthread_barrier_t *start;
  char what;            /* b, f or d */
  double milliseconds;  /* of f and d */
  const char *memory;   /* of b: this thread's part */
  size_t bytes;
  double begin, end, work; /* seconds; FLOP or bytes */
};

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* 10,000 rounds of one fused multiply-add into every accumulator. The empty asm keeps the compiler from seeing through it. */
__attribute__((noinline)) static void fma_rounds(void) {
  vector x = {0}, y = {0};
  __asm__ volatile("" : "+" REGISTER(x), "+" REGISTER(y));
#define DECLARE(i) vector a##i = {0};
  EACH(DECLARE)
  for (int round = 0; round < 10000; round++) {
#define STEP(i)        \
  a##i = x * y + a##i; \
  __asm__ volatile("" : "+" REGISTER(a##i));
    EACH(STEP)
  }
}

#if defined(__AVX512BF16__)
__attribute__((noinline)) static void dot_rounds(void) {
  __m512bh x, y;
  __m512i zero = _mm512_setzero_si512();
  memcpy(&x, &zero, sizeof x);
  memcpy(&y, &zero, sizeof y);
#define DECLARE_DOT(i) __m512 a##i = _mm512_setzero_ps();
  EACH(DECLARE_DOT)
  for (int round = 0; round < 10000; round++) {
#define STEP_DOT(i)                      \
  a##i = _mm512_dpbf16_ps(a##i, x, y);   \
  __asm__ volatile("" : "+v"(a##i));
    EACH(STEP_DOT)
  }
}
#endif

static void read_all(const char *memory, size_t bytes) {
  const vector *p = (const vector *)memory;
  size_t n = bytes / sizeof(vector);
  vector s0 = {0}, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (size_t i = 0; i + 8 <= n; i += 8) {
    s0 += p[i], s1 += p[i + 1], s2 += p[i + 2], s3 += p[i + 3];
    s4 += p[i + 4], s5 += p[i + 5], s6 += p[i + 6], s7 += p[i + 7];
  }
  s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7;
  __asm__ volatile("" : : REGISTER(s0));
}

static void *run(void *argument) {
  struct job *job = argument;
  pthread_barrier_wait(job->start);
  job->begin = seconds();
  if (job->what == 'b') {
    read_all(job->memory, job->bytes);
    job->work = (double)job->bytes;
    job->end = seconds();
    return NULL;
  }
  job->work = 0;
  do {
#if defined(__AVX512BF16__)
    if (job->what == 'd') {
      dot_rounds();
      job->work += 1e4 * NUM_ACCUMULATORS * LANES * 4;
    } else
#endif
    {
      fma_rounds();
      job->work += 1e4 * NUM_ACCUMULATORS * LANES * 2;
    }
    job->end = seconds();
  } while (job->end - job->begin < job->milliseconds * 1e-3);
  return NULL;
}

/* Billions a second over `threads` threads that start together. */
static double measure(char what, int threads, double milliseconds, const char *memory) {
  struct job jobs[MAX_THREADS];
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, (unsigned)threads);
  size_t part = READ_BYTES / (size_t)threads / 4096 * 4096;
  for (int t = 0; t < threads; t++) {
    jobs[t] = (struct job){.start = &start, .what = what, .milliseconds = milliseconds, .memory = memory + part * (size_t)t, .bytes = part};
    if (t > 0 && pthread_create(&jobs[t].thread, NULL, run, &jobs[t]) != 0) exit(1);
  }
  run(&jobs[0]);
  double begin = jobs[0].begin, end = jobs[0].end, work = jobs[0].work;
  for (int t = 1; t < threads; t++) {
    pthread_join(jobs[t].thread, NULL);
    work += jobs[t].work;
    begin = jobs[t].begin < begin ? jobs[t].begin : begin;
    end = jobs[t].end > end ? jobs[t].end : end;
  }
  pthread_barrier_destroy(&start);
  return work / (end - begin) / 1e9;
}

int main(void) {
  char line[128], what[16];
  char *memory = NULL;
  setvbuf(stdout, NULL, _IOLBF, 0);
  while (fgets(line, sizeof line, stdin) != NULL) {
    int threads = 1;
    double milliseconds = 20;
    if (sscanf(line, "%15s %d %lf", what, &threads, &milliseconds) < 2 || threads < 1 || threads > MAX_THREADS) return 2;
    if (what[0] == 'b' && memory == NULL) {
      memory = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) return 1;
#if defined(MADV_HUGEPAGE)
      madvise(memory, READ_BYTES, MADV_HUGEPAGE);
#endif
      memset(memory, 0, READ_BYTES);
    }
#if !defined(__AVX512BF16__)
    if (what[0] == 'd') {
      puts("0");
      continue;
    }
#endif
    printf("%.6g\n", measure(what[0], threads, milliseconds, memory));
  }
  return 0;
}
