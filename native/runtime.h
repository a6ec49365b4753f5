/*
 * What the files of the runtime (context.c, memory.c, system.c) share and kernels never see: the inside of a context.
 *
 * A context is one caller with its threads, its scratch memory and its heap. Nothing lives outside a context: there is no global
 * that changes, so several contexts (one a rank, one a test) work side by side in one process.
 */
#ifndef MOE_RUNTIME_H
#define MOE_RUNTIME_H
#include <stdatomic.h>

#include "moe.h"

enum { MOE_MAX_THREADS = 256 };

#if defined(__wasm__)
#define MOE_FUTEX 1
#elif defined(__linux__)
#define MOE_FUTEX 1
#include <pthread.h>
#else
#define MOE_FUTEX 0
#include <pthread.h>
#endif

/* ---- memory.c: a heap of 64-byte aligned blocks ---- */

enum { MOE_HEAP_CLASSES = 48, MOE_HEAP_STEPS = 8 };

typedef struct moe_block moe_block;
typedef struct moe_region moe_region;

typedef struct {
  _Atomic uint32_t lock;
  uint64_t classes;                            /* bit c: some steps[c] bit is set */
  uint32_t steps[MOE_HEAP_CLASSES];            /* bit s: free[c][s] is not empty */
  moe_block *free[MOE_HEAP_CLASSES][MOE_HEAP_STEPS];
  moe_region *regions;
  uint64_t live, peak, mapped;
} moe_heap;

void moe_heap_init(moe_heap *heap);
void moe_heap_destroy(moe_heap *heap);
/* NULL when the system has no more. `counted` blocks appear in live and peak; scratch memory does not. */
void *moe_heap_alloc(moe_heap *heap, size_t bytes, int counted);
/* 0, or -1 when `pointer` is not a live block of this heap. */
int moe_heap_free(moe_heap *heap, void *pointer);
void moe_heap_trim(moe_heap *heap);

/* ---- context.c ---- */

typedef struct {
  void *pointer;
  size_t bytes;
} moe_buffer;

typedef struct {
  moe_context *context;
  moe_buffer scratch;
  int index;
#if !defined(__wasm__)
  pthread_t handle;
#endif
} moe_thread;

struct moe_context {
  int num_threads; /* the caller and its workers */
  int caller_spins; /* never block the caller (a browser's main thread may not wait) */
  uint32_t epoch;  /* of the caller alone */

  /* The work word: epoch << 32 | chunks nobody has claimed. Everything a claim needs beside it is written before it. */
  _Alignas(64) _Atomic uint64_t work;
  _Atomic(moe_task) task;
  _Atomic(void *) argument;
  _Atomic uint32_t chunks;

  _Alignas(64) _Atomic uint32_t done; /* chunks finished; the caller may sleep on it */
  _Atomic uint32_t caller_sleeps;

  _Alignas(64) _Atomic uint32_t bell; /* workers sleep on it */
  _Atomic uint32_t sleepers;
  _Atomic uint32_t stop;

  _Alignas(64) moe_heap heap;
  moe_buffer scratch[MOE_SCRATCH_SLOTS];
  moe_thread threads[MOE_MAX_THREADS];
#if !MOE_FUTEX
  pthread_mutex_t mutex;
  pthread_cond_t condition;
#endif
};

#endif
