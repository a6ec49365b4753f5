/*
 * The context: creation, the thread pool behind moe_parallel_for, scratch memory.
 *
 * How the pool works. The caller writes the task, then one word: epoch << 32 | chunks. Whoever lowers that word by
 * compare-and-swap, worker or caller, owns the chunk. So the caller runs whatever nobody claimed and never waits for a thread
 * that did not start; and a worker that wakes late finds a word of another epoch and cannot take part in the wrong job.
 * Why a claim sees its own task: the task is rewritten only after `done` reached the number of chunks, and a chunk that was claimed
 * is not done; so between a claim's first look at the word and its swap nothing was rewritten.
 *
 * Waiting is spinning first (a thread of a virtual machine wakes 45 us after it is called; a kernel is often shorter), bounded by
 * the clock, with a yield now and then because the machine's other threads, Node's among them, need the cores too; then a futex.
 * Waking costs a system call, so it is done only where somebody sleeps.
 *
 * What it is not: a scheduler for several callers. One context has one caller at a time, and a task must not call moe_parallel_for.
 */
#define _GNU_SOURCE
#include "runtime.h"

#if defined(__wasm__)
/* The only import of the WebAssembly module: milliseconds of any monotonic clock. */
__attribute__((import_module("env"), import_name("now"))) double moe_import_now(void);
#else
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#if MOE_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

enum { WORKER_SPIN_NS = 250000, CALLER_SPIN_NS = 15000, PAUSES_PER_YIELD = 64, WORKER_STACK_BYTES = 2 << 20 };

/* ---- time and waiting ---- */

static uint64_t now_ns(void) {
#if defined(__wasm__)
  return (uint64_t)(moe_import_now() * 1e6);
#else
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

static void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#else
  atomic_thread_fence(memory_order_seq_cst);
#endif
}

static void yield_cpu(void) {
#if !defined(__wasm__)
  sched_yield();
#endif
}

/* Sleeps while *word is `expected`; may return early. */
static void wait_on(moe_context *ctx, _Atomic uint32_t *word, uint32_t expected) {
#if defined(__wasm__)
  (void)ctx;
  __builtin_wasm_memory_atomic_wait32((int *)word, (int)expected, -1);
#elif MOE_FUTEX
  (void)ctx;
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
#else
  pthread_mutex_lock(&ctx->mutex);
  if (atomic_load(word) == expected) pthread_cond_wait(&ctx->condition, &ctx->mutex);
  pthread_mutex_unlock(&ctx->mutex);
#endif
}

static void wake(moe_context *ctx, _Atomic uint32_t *word, uint32_t count) {
#if defined(__wasm__)
  (void)ctx;
  __builtin_wasm_memory_atomic_notify((int *)word, count);
#elif MOE_FUTEX
  (void)ctx;
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
#else
  (void)word;
  (void)count;
  pthread_mutex_lock(&ctx->mutex);
  pthread_cond_broadcast(&ctx->condition);
  pthread_mutex_unlock(&ctx->mutex);
#endif
}

/* ---- the pool ---- */

/* Claims and runs chunks until none is left. */
static void run_chunks(moe_context *ctx, int thread) {
  uint32_t finished = 0, chunks = 0;
  uint64_t word = atomic_load_explicit(&ctx->work, memory_order_acquire);
  while ((uint32_t)word != 0) {
    moe_task task = atomic_load_explicit(&ctx->task, memory_order_relaxed);
    void *argument = atomic_load_explicit(&ctx->argument, memory_order_relaxed);
    chunks = atomic_load_explicit(&ctx->chunks, memory_order_relaxed);
    if (!atomic_compare_exchange_weak_explicit(&ctx->work, &word, word - 1, memory_order_acq_rel, memory_order_acquire)) continue;
    task(argument, (ptrdiff_t)(chunks - (uint32_t)word), thread);
    finished++;
    word = atomic_load_explicit(&ctx->work, memory_order_acquire);
  }
  if (finished == 0) return;
  /* Until this addition the job cannot end, so all claims above were of one job and `chunks` is its own. */
  uint32_t before = atomic_fetch_add(&ctx->done, finished);
  if (thread != 0 && before + finished == chunks && atomic_load(&ctx->caller_sleeps)) wake(ctx, &ctx->done, 1);
}

static void sleep_for_work(moe_context *ctx) {
  uint32_t bell = atomic_load(&ctx->bell);
  atomic_fetch_add(&ctx->sleepers, 1);
  if ((uint32_t)atomic_load(&ctx->work) == 0 && !atomic_load(&ctx->stop)) wait_on(ctx, &ctx->bell, bell);
  atomic_fetch_sub(&ctx->sleepers, 1);
}

static void work_until_stopped(moe_context *ctx, int thread) {
  for (;;) {
    uint64_t start = now_ns();
    int pauses = 0;
    while ((uint32_t)atomic_load_explicit(&ctx->work, memory_order_relaxed) == 0) {
      if (atomic_load_explicit(&ctx->stop, memory_order_relaxed)) return;
      pause_cpu();
      if (++pauses % PAUSES_PER_YIELD != 0) continue;
      yield_cpu();
      if (now_ns() - start > WORKER_SPIN_NS) {
        sleep_for_work(ctx);
        start = now_ns();
      }
    }
    run_chunks(ctx, thread);
  }
}

static void wait_for_done(moe_context *ctx, uint32_t chunks) {
  uint64_t start = 0;
  for (int pauses = 1; atomic_load_explicit(&ctx->done, memory_order_acquire) != chunks; pauses++) {
    pause_cpu();
    if (pauses % PAUSES_PER_YIELD != 0) continue;
    yield_cpu();
    uint64_t now = now_ns();
    if (start == 0) start = now;
    if (now - start > CALLER_SPIN_NS && !ctx->caller_spins) break;
  }
  if (atomic_load_explicit(&ctx->done, memory_order_acquire) == chunks) return;
  atomic_store(&ctx->caller_sleeps, 1);
  for (uint32_t done; (done = atomic_load(&ctx->done)) != chunks;) wait_on(ctx, &ctx->done, done);
  atomic_store(&ctx->caller_sleeps, 0);
}

void moe_parallel_for(moe_context *ctx, ptrdiff_t chunks, moe_task task, void *argument) {
  if (chunks <= 1 || ctx->num_threads == 1 || (uint64_t)chunks > UINT32_MAX) {
    for (ptrdiff_t chunk = 0; chunk < chunks; chunk++) task(argument, chunk, 0);
    return;
  }
  atomic_store_explicit(&ctx->task, task, memory_order_relaxed);
  atomic_store_explicit(&ctx->argument, argument, memory_order_relaxed);
  atomic_store_explicit(&ctx->chunks, (uint32_t)chunks, memory_order_relaxed);
  atomic_store_explicit(&ctx->done, 0, memory_order_relaxed);
  ctx->epoch++;
  atomic_store(&ctx->work, (uint64_t)ctx->epoch << 32 | (uint32_t)chunks);
  uint32_t sleepers = atomic_load(&ctx->sleepers);
  if (sleepers != 0) {
    atomic_fetch_add(&ctx->bell, 1);
    wake(ctx, &ctx->bell, sleepers < (uint32_t)chunks ? sleepers : (uint32_t)chunks - 1);
  }
  run_chunks(ctx, 0);
  wait_for_done(ctx, (uint32_t)chunks);
}

int moe_num_threads(const moe_context *ctx) { return ctx->num_threads; }

/* ---- scratch ---- */

/* Growing drops the contents. Running out inside a kernel cannot be reported through it, so it ends the process with a trap. */
static void *grow(moe_context *ctx, moe_buffer *buffer, size_t bytes) {
  if (buffer->pointer && bytes <= buffer->bytes) return buffer->pointer;
  size_t wanted = bytes + bytes / 4;
  if (buffer->pointer) moe_heap_free(&ctx->heap, buffer->pointer);
  buffer->pointer = moe_heap_alloc(&ctx->heap, wanted, 0);
  if (!buffer->pointer) buffer->pointer = moe_heap_alloc(&ctx->heap, wanted = bytes, 0);
  if (!buffer->pointer) __builtin_trap();
  buffer->bytes = wanted;
  return buffer->pointer;
}

void *moe_scratch(moe_context *ctx, int slot, size_t bytes) { return grow(ctx, &ctx->scratch[slot], bytes); }

void *moe_thread_scratch(moe_context *ctx, int thread, size_t bytes) { return grow(ctx, &ctx->threads[thread].scratch, bytes); }

static void release_scratch(moe_context *ctx) {
  for (int i = 0; i < MOE_SCRATCH_SLOTS + MOE_MAX_THREADS; i++) {
    moe_buffer *buffer = i < MOE_SCRATCH_SLOTS ? &ctx->scratch[i] : &ctx->threads[i - MOE_SCRATCH_SLOTS].scratch;
    if (buffer->pointer) moe_heap_free(&ctx->heap, buffer->pointer);
    *buffer = (moe_buffer){0};
  }
}

/* ---- exported: life of a context ---- */

static void init_context(moe_context *ctx, int num_threads) {
  __builtin_memset(ctx, 0, sizeof *ctx);
  ctx->num_threads = num_threads < 1 ? 1 : num_threads > MOE_MAX_THREADS ? MOE_MAX_THREADS : num_threads;
  moe_heap_init(&ctx->heap);
  for (int i = 0; i < MOE_MAX_THREADS; i++) {
    ctx->threads[i].context = ctx;
    ctx->threads[i].index = i;
  }
}

/* Gives cached memory back to the system: scratch too, which kernels ask for again. Not during a kernel. */
MOE_EXPORT void moe_trim(moe_context *ctx) {
  release_scratch(ctx);
  moe_heap_trim(&ctx->heap);
}

static void stop_workers(moe_context *ctx) {
  atomic_store(&ctx->stop, 1);
  atomic_fetch_add(&ctx->bell, 1);
  wake(ctx, &ctx->bell, MOE_MAX_THREADS);
}

/* An empty parallel_for of `chunks` chunks, `times` times: what the pool itself costs. */
static void nothing(void *argument, ptrdiff_t chunk, int thread) {
  (void)argument;
  (void)chunk;
  (void)thread;
}
MOE_EXPORT void moe_empty_parallel_for(moe_context *ctx, ptrdiff_t chunks, ptrdiff_t times) {
  while (times-- > 0) moe_parallel_for(ctx, chunks, nothing, 0);
}

#if defined(__wasm__)

extern unsigned char __heap_base;

/* One memory holds one context: it lies where the heap would begin. The heap takes what memory.grow gives. */
MOE_EXPORT moe_context *moe_context_create(int num_threads) {
  moe_context *ctx = (moe_context *)(((uintptr_t)&__heap_base + 63) & ~(uintptr_t)63);
  size_t end = (size_t)ctx + sizeof *ctx, have = __builtin_wasm_memory_size(0) * 65536;
  if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) / 65536) == SIZE_MAX) return 0;
  init_context(ctx, num_threads);
  return ctx;
}

/* The life of a worker: its thread calls this with its number (from 1) and gets it back when the context stops. */
MOE_EXPORT void moe_context_work(moe_context *ctx, int thread) { work_until_stopped(ctx, thread); }

MOE_EXPORT void moe_context_set_caller_spins(moe_context *ctx, int spins) { ctx->caller_spins = spins; }

/* How many threads the host really started, the caller among them. */
MOE_EXPORT void moe_context_set_threads(moe_context *ctx, int num_threads) { ctx->num_threads = num_threads; }

MOE_EXPORT void moe_context_destroy(moe_context *ctx) { stop_workers(ctx); }

#else

static void *worker_main(void *argument) {
  moe_thread *thread = argument;
  work_until_stopped(thread->context, thread->index);
  return NULL;
}

/* NULL without memory. Starts num_threads - 1 workers; fewer when the system refuses, see moe_context_threads. */
MOE_EXPORT moe_context *moe_context_create(int num_threads) {
  moe_context *ctx = NULL;
  if (posix_memalign((void **)&ctx, 64, sizeof *ctx) != 0) return NULL;
  init_context(ctx, num_threads);
#if !MOE_FUTEX
  pthread_mutex_init(&ctx->mutex, NULL);
  pthread_cond_init(&ctx->condition, NULL);
#endif
  /* Signals belong to the threads of the host: workers block them all. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, WORKER_STACK_BYTES);
  int started = 1;
  while (started < ctx->num_threads && pthread_create(&ctx->threads[started].handle, &attributes, worker_main, &ctx->threads[started]) == 0) started++;
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  /* Workers do not read num_threads. */
  ctx->num_threads = started;
  return ctx;
}

MOE_EXPORT void moe_context_destroy(moe_context *ctx) {
  stop_workers(ctx);
  for (int i = 1; i < ctx->num_threads; i++) pthread_join(ctx->threads[i].handle, NULL);
  release_scratch(ctx);
  moe_heap_destroy(&ctx->heap);
#if !MOE_FUTEX
  pthread_cond_destroy(&ctx->condition);
  pthread_mutex_destroy(&ctx->mutex);
#endif
  free(ctx);
}

#endif

MOE_EXPORT int moe_context_threads(const moe_context *ctx) { return ctx->num_threads; }
