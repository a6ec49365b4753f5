/*
 * The heap of a context: 64-byte aligned blocks cut from large regions, for tensors natively and for everything in WebAssembly.
 *
 * Why not malloc: a training step frees and takes the same gigabytes again and again, and malloc gives large blocks back to the system
 * each time, so that every step pays for page faults. Here freed memory stays until trim, neighbours merge (so the memory of
 * one phase of a step serves another phase of other shapes), and regions ask for huge pages.
 *
 * The method is two-level segregated fit (Masmano et al., "TLSF", 2004): free blocks hang in lists by size, eight steps a power of two, found
 * by bit scans. Its known weakness is that a request just above a step's bound skips blocks of its own list that would
 * fit; sizes repeat here, so the own list is searched first for the best fit, a bounded number of blocks.
 *
 * Counting: live and peak are the bytes that were asked for, not what rounding and headers add; scratch memory is not counted.
 * Under AddressSanitizer every block is its own malloc, ending exactly where it was asked to end, filled with NaN.
 */
#define _GNU_SOURCE
#include "runtime.h"

#if !defined(__wasm__)
#include <stdlib.h>
#include <sys/mman.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define MOE_GUARDED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOE_GUARDED 1
#endif
#endif

enum { FREE = 0x66726565, COUNTED = 0x6c697665, UNCOUNTED = 0x73637261, END = 0x656e6421 };
enum { UNIT = 64, SEARCHED_IN_OWN_LIST = 64 };

/* In front of every payload. `size` is whole units, header included; END closes a region. */
struct moe_block {
  _Alignas(UNIT) size_t size;
  size_t requested;
  moe_block *before; /* the neighbour at lower addresses, NULL for the first */
  moe_block *next, *previous; /* in the list of free blocks */
  uint32_t state;
};
struct moe_region {
  _Alignas(UNIT) moe_region *next;
  size_t bytes;
};
_Static_assert(sizeof(moe_block) == UNIT && sizeof(moe_region) == UNIT, "payloads are aligned because headers are a unit");

static void lock(moe_heap *heap) {
  while (atomic_exchange_explicit(&heap->lock, 1, memory_order_acquire)) {
  }
}
static void unlock(moe_heap *heap) { atomic_store_explicit(&heap->lock, 0, memory_order_release); }

static void count(moe_heap *heap, size_t bytes) {
  heap->live += bytes;
  if (heap->live > heap->peak) heap->peak = heap->live;
}

void moe_heap_init(moe_heap *heap) { __builtin_memset(heap, 0, sizeof *heap); }

#if defined(MOE_GUARDED)

void *moe_heap_alloc(moe_heap *heap, size_t bytes, int counted) {
  void *memory = NULL;
  if (bytes > SIZE_MAX / 2 || bytes > (size_t)1 << 46 || posix_memalign(&memory, UNIT, UNIT + bytes) != 0) return NULL;
  moe_block *block = memory;
  block->requested = bytes;
  block->state = counted ? COUNTED : UNCOUNTED;
  __builtin_memset(block + 1, 0xff, bytes);
  lock(heap);
  if (counted) count(heap, bytes);
  unlock(heap);
  return block + 1;
}

int moe_heap_free(moe_heap *heap, void *pointer) {
  moe_block *block = (moe_block *)pointer - 1;
  if (block->state != COUNTED && block->state != UNCOUNTED) return -1;
  lock(heap);
  if (block->state == COUNTED) heap->live -= block->requested;
  unlock(heap);
  block->state = FREE;
  free(block);
  return 0;
}

void moe_heap_destroy(moe_heap *heap) { (void)heap; }
void moe_heap_trim(moe_heap *heap) { (void)heap; }

#else

/* ---- lists of free blocks ---- */

static int log2_of(size_t x) { return 63 - __builtin_clzll((uint64_t)x); }

/* Units 0..7 are the steps of class 0, units 8..15 the steps of class 1, 16..31 (by twos) of class 2, and so on. */
static void locate(size_t size, int *class, int *step) {
  size_t units = size / UNIT;
  if (units < MOE_HEAP_STEPS) {
    *class = 0;
    *step = (int)units;
    return;
  }
  int top = log2_of(units);
  *class = top - 2;
  *step = (int)(units >> (top - 3)) & (MOE_HEAP_STEPS - 1);
}

static void insert(moe_heap *heap, moe_block *block) {
  int class, step;
  locate(block->size, &class, &step);
  block->state = FREE;
  block->previous = NULL;
  block->next = heap->free[class][step];
  if (block->next) block->next->previous = block;
  heap->free[class][step] = block;
  heap->steps[class] |= 1u << step;
  heap->classes |= (uint64_t)1 << class;
}

static void take(moe_heap *heap, moe_block *block) {
  int class, step;
  locate(block->size, &class, &step);
  if (block->next) block->next->previous = block->previous;
  if (block->previous) {
    block->previous->next = block->next;
    return;
  }
  heap->free[class][step] = block->next;
  if (block->next) return;
  heap->steps[class] &= ~(1u << step);
  if (heap->steps[class] == 0) heap->classes &= ~((uint64_t)1 << class);
}

static moe_block *find(moe_heap *heap, size_t size) {
  int class, step, searched = 0;
  locate(size, &class, &step);
  moe_block *best = NULL;
  for (moe_block *b = heap->free[class][step]; b && searched++ < SEARCHED_IN_OWN_LIST; b = b->next) {
    if (b->size >= size && (!best || b->size < best->size)) best = b;
    if (best && best->size == size) break;
  }
  if (best) return best;
  uint32_t steps = heap->steps[class] & ~((2u << step) - 1);
  if (steps == 0) {
    uint64_t classes = heap->classes & ~(((uint64_t)2 << class) - 1);
    if (classes == 0) return NULL;
    class = __builtin_ctzll(classes);
    steps = heap->steps[class];
  }
  return heap->free[class][__builtin_ctz(steps)];
}

static moe_block *after(moe_block *block) { return (moe_block *)((char *)block + block->size); }

/* Makes the bytes from `block` on, `size` of them, free, merged with free neighbours. */
static void release(moe_heap *heap, moe_block *block) {
  block->state = FREE; /* also where it vanishes into its neighbour: freeing it twice must be seen */
  moe_block *next = after(block);
  if (next->state == FREE) {
    take(heap, next);
    block->size += next->size;
  }
  if (block->before && block->before->state == FREE) {
    take(heap, block->before);
    block->before->size += block->size;
    block = block->before;
  }
  after(block)->before = block;
  insert(heap, block);
}

/* ---- regions ---- */

static void close_region(moe_block *first, moe_block *end) {
  first->size = (size_t)((char *)end - (char *)first);
  end->size = 0;
  end->state = END;
  end->before = first;
}

static void add_region(moe_heap *heap, void *memory, size_t bytes) {
  moe_region *region = memory;
  region->next = heap->regions;
  region->bytes = bytes;
  heap->regions = region;
  heap->mapped += bytes;
  moe_block *first = (moe_block *)(region + 1);
  first->before = NULL;
  close_region(first, (moe_block *)((char *)memory + bytes) - 1);
  insert(heap, first);
}

#if defined(__wasm__)

enum { PAGE = 65536, REGION_BYTES = 16 << 20 };

/* Memory grows in one piece: what comes behind the last region makes it longer. */
static int grow_heap(moe_heap *heap, size_t size) {
  size_t needed = (size + 2 * UNIT + PAGE - 1) / PAGE, wanted = needed < REGION_BYTES / PAGE ? REGION_BYTES / PAGE : needed;
  size_t pages = wanted, old = __builtin_wasm_memory_grow(0, pages);
  if (old == SIZE_MAX && wanted != needed) old = __builtin_wasm_memory_grow(0, pages = needed);
  if (old == SIZE_MAX) return 0;
  char *memory = (char *)(old * PAGE);
  /* The very last unit stays unused, so that no end address wraps to 0 in a memory of 4 GiB. */
  size_t bytes = pages * PAGE - (old + pages == 65536 ? UNIT : 0);
  moe_region *last = heap->regions;
  if (!last || (char *)last + last->bytes != memory) {
    add_region(heap, memory, bytes);
    return 1;
  }
  moe_block *block = (moe_block *)memory - 1, *before = block->before;
  last->bytes += bytes;
  heap->mapped += bytes;
  close_region(block, (moe_block *)(memory + bytes) - 1);
  block->before = before;
  release(heap, block);
  return 1;
}

void moe_heap_destroy(moe_heap *heap) { (void)heap; }
void moe_heap_trim(moe_heap *heap) { (void)heap; } /* a WebAssembly memory never shrinks */

#else

enum { HUGE_PAGE = 2 << 20, REGION_BYTES = 64 << 20 };

static int grow_heap(moe_heap *heap, size_t size) {
  if (size > SIZE_MAX / 2) return 0;
  size_t bytes = (size + 2 * UNIT + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
  if (bytes < REGION_BYTES) bytes = REGION_BYTES;
  char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  size_t skip = -(uintptr_t)memory & (HUGE_PAGE - 1);
  if (skip) munmap(memory, skip);
  if (HUGE_PAGE - skip) munmap(memory + skip + bytes, HUGE_PAGE - skip);
#if defined(MADV_HUGEPAGE)
  madvise(memory + skip, bytes, MADV_HUGEPAGE);
#endif
  add_region(heap, memory + skip, bytes);
  return 1;
}

void moe_heap_destroy(moe_heap *heap) {
  for (moe_region *region = heap->regions, *next; region; region = next) {
    next = region->next;
    munmap(region, region->bytes);
  }
  moe_heap_init(heap);
}

/* Regions without a live block go back whole; of the others the pages inside free blocks. */
void moe_heap_trim(moe_heap *heap) {
  lock(heap);
  for (moe_region **link = &heap->regions, *region; (region = *link);) {
    moe_block *first = (moe_block *)(region + 1);
    if (first->state == FREE && after(first)->state == END) {
      take(heap, first);
      *link = region->next;
      heap->mapped -= region->bytes;
      munmap(region, region->bytes);
      continue;
    }
#if defined(__linux__)
    enum { PAGE = 65536 }; /* the largest page of the systems this runs on */
    for (moe_block *block = first; block->state != END; block = after(block)) {
      uintptr_t from = ((uintptr_t)(block + 1) + PAGE - 1) & ~(uintptr_t)(PAGE - 1), to = (uintptr_t)after(block) & ~(uintptr_t)(PAGE - 1);
      if (block->state == FREE && to > from) madvise((void *)from, to - from, MADV_DONTNEED);
    }
#endif
    link = &region->next;
  }
  unlock(heap);
}

#endif

/* ---- blocks ---- */

void *moe_heap_alloc(moe_heap *heap, size_t bytes, int counted) {
  if (bytes > SIZE_MAX - 4 * UNIT) return NULL;
  size_t size = UNIT + ((bytes + UNIT - 1) & ~(size_t)(UNIT - 1));
  if (bytes == 0) size += UNIT;
  lock(heap);
  moe_block *block = find(heap, size);
  if (!block && grow_heap(heap, size)) block = find(heap, size);
  if (block) {
    take(heap, block);
    if (block->size - size >= 2 * UNIT) {
      moe_block *rest = (moe_block *)((char *)block + size);
      rest->size = block->size - size;
      rest->before = block;
      after(rest)->before = rest;
      block->size = size;
      insert(heap, rest);
    }
    block->requested = bytes;
    block->state = counted ? COUNTED : UNCOUNTED;
    if (counted) count(heap, bytes);
  }
  unlock(heap);
  return block ? block + 1 : NULL;
}

int moe_heap_free(moe_heap *heap, void *pointer) {
  if (!pointer || (uintptr_t)pointer % UNIT != 0) return -1;
  moe_block *block = (moe_block *)pointer - 1;
  lock(heap);
  int live = block->state == COUNTED || block->state == UNCOUNTED;
  if (live) {
    if (block->state == COUNTED) heap->live -= block->requested;
    release(heap, block);
  }
  unlock(heap);
  return live ? 0 : -1;
}

#endif

/* ---- exported ---- */

MOE_EXPORT void *moe_alloc(moe_context *ctx, size_t bytes) { return moe_heap_alloc(&ctx->heap, bytes, 1); }
/* For the host's own needs (stacks of WebAssembly threads): a block that no statistic shows. */
MOE_EXPORT void *moe_alloc_uncounted(moe_context *ctx, size_t bytes) { return moe_heap_alloc(&ctx->heap, bytes, 0); }
MOE_EXPORT int moe_free(moe_context *ctx, void *pointer) { return moe_heap_free(&ctx->heap, pointer); }
/* As doubles, so that WebAssembly and JavaScript see one number: exact to 2^53. */
MOE_EXPORT double moe_live_bytes(const moe_context *ctx) { return (double)ctx->heap.live; }
MOE_EXPORT double moe_peak_bytes(const moe_context *ctx) { return (double)ctx->heap.peak; }
MOE_EXPORT double moe_mapped_bytes(const moe_context *ctx) { return (double)ctx->heap.mapped; }
MOE_EXPORT void moe_reset_peak(moe_context *ctx) { ctx->heap.peak = ctx->heap.live; }
