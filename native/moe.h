/*
 * What every kernel file shares: the context, the thread pool, storage types, and how a kernel is declared.
 *
 * One source, several compilations: each kernel file is compiled once per instruction set with
 *   -DMOE_ISA=<name> plus that set's -m flags
 * and exports its functions as moe_<kernel>_<isa>; the loader binds the set it chose at run time. WebAssembly is one more set.
 * Rules for a kernel:
 *   - Outputs, inputs, sizes, flags. No global that changes: scratch memory and threads come from the context.
 *   - Work is cut by shape, never by the number of threads, and reductions have a fixed order.
 *   - No libm: exp, log, sin, cos are in moe_math.h. Compiled with -ffp-contract=off; fused multiply-add is written out.
 *   - Never reads or writes outside its operands (tails use masks or scalar code).
 */
#ifndef MOE_H
#define MOE_H
#include <stddef.h>
#include <stdint.h>

#define MOE_CAT_(a, b, c) a##b##_##c
#define MOE_CAT(a, b, c) MOE_CAT_(a, b, c)
#if defined(__wasm__)
#define MOE_EXPORT __attribute__((visibility("default"), used))
#else
#define MOE_EXPORT __attribute__((visibility("default")))
#endif
/* void MOE_KERNEL(add)(moe_context *ctx, ...) defines moe_add_<isa>. MOE_LOCAL names what is shared between files of one set. */
#define MOE_KERNEL(name) MOE_EXPORT MOE_CAT(moe_, name, MOE_ISA)
#define MOE_LOCAL(name) MOE_CAT(moe_local_, name, MOE_ISA)

enum { MOE_F32 = 0, MOE_BF16 = 1, MOE_I32 = 2, MOE_F16 = 3, MOE_FP8 = 4 };
/* The two 8-bit floats; MOE_FP8 tensors hold E4M3. And what the scales of an FP8 matrix belong to. */
enum { MOE_E4M3 = 0, MOE_E5M2 = 1 };
enum { MOE_SCALE_TENSOR = 0, MOE_SCALE_CHANNEL = 1, MOE_SCALE_BLOCK128 = 2 };
typedef uint16_t moe_bf16;

typedef struct moe_context moe_context;

/* A chunk of work: chunk indices first..first+count-1 of a parallel_for, run by `thread` (0 is the caller). */
typedef void (*moe_task)(void *argument, ptrdiff_t chunk, int thread);

/* Runs task(argument, i, thread) for i = 0..chunks-1, in any order, on the context's threads; returns when all are done.
   Which thread runs a chunk is not fixed, so a chunk's result must not depend on it. */
void moe_parallel_for(moe_context *ctx, ptrdiff_t chunks, moe_task task, void *argument);

/* Scratch of at least `bytes`, 64-byte aligned, contents undefined, kept and grown by the context. Slot 0 is shared by all
   threads (ask before parallel_for), slots 1..MOE_SCRATCH_SLOTS-1 likewise; moe_thread_scratch is one thread's own. */
enum { MOE_SCRATCH_SLOTS = 4 };
void *moe_scratch(moe_context *ctx, int slot, size_t bytes);
void *moe_thread_scratch(moe_context *ctx, int thread, size_t bytes);
int moe_num_threads(const moe_context *ctx);

#endif
