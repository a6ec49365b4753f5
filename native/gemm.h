/*
 * The matrix multiplication engine of the linear kernels: plans a job over groups (experts) and runs its chunks.
 *
 * Every job is out = sum over a reduced index of an I side, which lies across vectors, and a J side, which is broadcast:
 *   forward          out[m][n]: I = m (x), J = n (w), reduced k; written transposed. Of many rows: I = n, J = m, written as it is
 *   backward input   dx[m][k]:  I = k (w), J = m (dy), reduced n
 *   backward weight  dw[n][k]:  I = k (x), J = n (dy), reduced m
 * so that weights are transposed only for many rows. A chunk owns a block of I x J and the whole reduction: it walks the reduced index
 * in slices of TILE_DEPTH, packs both sides, and keeps the f32 accumulators in its thread's scratch, which leaves the chain of each
 * element unbroken. Forward groups of at most GEMV_ROWS rows go to gemv.h; the order of their chains is the same. Where there are tile
 * registers, products of two bf16 have their order (tiles.h): by gemm_micro_tiles.h and gemv.h, and FP8 weights by tiles_amx.h.
 * Blocks depend on shapes and on the number of threads; no result depends on the blocks. One group is a plain linear; an empty one is no work.
 */
#ifndef MOE_GEMM_H
#define MOE_GEMM_H
#include "gemm_pack.h"
#include "gemv_fp8.h"
#include "tiles_amx.h"

enum { GEMM_FORWARD, GEMM_INPUT, GEMM_WEIGHT };
enum {
#if defined(__AVX512F__)
  /* Deep in I, because packing the J side costs the most and lasts as long as the block is deep; the sums fill half of a 2 MB L2. */
  BLOCK_I = 1024,
  BLOCK_J = 192,
#else
  BLOCK_I = 256,
  BLOCK_J = 256,
#endif
  STRIP = 48,                       /* columns packed and written at a time; a multiple of every tile width */
  CHUNKS_A_THREAD = 8,              /* so that none waits long for the last; half as many where they divide evenly */
  GEMV_RUNS_A_THREAD = 4,           /* long ones: a thread that reads on finds its prefetched rows in its own cache */
  SHARED_PANEL_BYTES = 64 << 20,    /* beyond this, or where no more blocks would use them (they go through far memory), */
  OWN_PANEL_BLOCKS = 3,             /* chunks pack their own panels */
  SWAP_ROWS = 512,                  /* more may swap the sides of forward */
  GEMV_CHUNK_BYTES = 1 << 20,
  FEW_PACKS = 8,                    /* of tiles: sooner done than told to others */
  ALONE_WORK = 1 << 16,             /* multiply-adds not worth waking threads for */
};

typedef struct {
  void *out;
  const void *x, *y; /* x: the activations of forward; y: dy */
  const void *w;
  const float *bias;
  const float *scales; /* of FP8 weights (forward only), else 0; by expert */
  int scaling;
  const int32_t *offsets; /* groups + 1 rows, or 0 for one group of `rows` */
  ptrdiff_t groups, rows, N, K;
  int kind, xType, wType, yType, outType, accumulate;
} gemm_job;

typedef struct {
  ptrdiff_t expert;
  ptrdiff_t firstChunk, firstPack; /* in the job's numbering */
  ptrdiff_t row, rows;             /* of x, dy */
  ptrdiff_t I, J, R;
  ptrdiff_t blocksI, blocksJ, sizeI, sizeJ;
  float *prepared; /* packed panels, or rows ready for gemv; 0 when chunks do it themselves */
  int gemv;
  int swapped; /* forward with I = n (w) and J = m (x) */
} gemm_group;

typedef struct {
  moe_context *ctx;
  gemm_job job;
  gemm_group *groups; /* groups with work only */
  ptrdiff_t count, chunks, packs;
  int pairs;
  int tiles; /* by tiles_amx.h: `prepared` of a group holds its rows as tiles */
} gemm_plan;

MOE_INLINE ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }
MOE_INLINE ptrdiff_t round_up(ptrdiff_t a, ptrdiff_t b) { return ceil_div(a, b) * b; }
MOE_INLINE ptrdiff_t min_size(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Reduced elements as the inner loop counts them. */
MOE_INLINE ptrdiff_t words_of(ptrdiff_t depth, int pairs) { return pairs ? (depth + 1) / 2 : depth; }

/* Scales of one matrix. */
MOE_INLINE ptrdiff_t scales_of(const gemm_job *job) {
  if (job->scaling == MOE_SCALE_TENSOR) return 1;
  return job->scaling == MOE_SCALE_CHANNEL ? job->N : ceil_div(job->N, FP8_BLOCK) * ceil_div(job->K, FP8_BLOCK);
}

/* n finished sums of outputs from `column` on, times their scales (those of blocks are in the weights already). */
MOE_INLINE vf scaled_sum(const gemm_job *job, ptrdiff_t expert, ptrdiff_t column, vf sum, int n) {
  if (!job->scales || job->scaling == MOE_SCALE_BLOCK128) return sum;
  if (job->scaling == MOE_SCALE_TENSOR) return v_mul(sum, v_set1(job->scales[expert] * FP8_UNIT));
  return v_mul(sum, v_mul(v_load_n(job->scales + expert * job->N + column, n), v_set1(FP8_UNIT)));
}

/* Cuts n into equal blocks of at most `largest`, multiples of `unit`. */
static ptrdiff_t block_size(ptrdiff_t n, ptrdiff_t largest, ptrdiff_t unit) { return round_up(ceil_div(n, ceil_div(n, largest)), unit); }

/* Whether forward computes with w across the vectors and rows of x broadcast: w is transposed then instead of x and of the output,
   which pays where there are rows enough to use it. */
static int swap_pays(const gemm_job *job, ptrdiff_t rows) {
  const size_t panels = (size_t)job->groups * (size_t)job->N * (size_t)job->K * sizeof(float);
  return job->kind == GEMM_FORWARD && rows > SWAP_ROWS && 4 * rows >= 3 * job->N && panels <= SHARED_PANEL_BYTES;
}

/* Groups that have outputs, with their sizes and rows. */
static void plan_groups(gemm_plan *plan) {
  const gemm_job *job = &plan->job;
  plan->groups = moe_scratch(plan->ctx, 0, (size_t)(job->groups > 0 ? job->groups : 1) * sizeof(gemm_group));
  plan->count = 0;
  for (ptrdiff_t e = 0; e < job->groups; e++) {
    gemm_group g = {.expert = e};
    g.row = job->offsets ? job->offsets[e] : 0;
    g.rows = job->offsets ? job->offsets[e + 1] - g.row : job->rows;
    g.I = job->kind == GEMM_FORWARD ? g.rows : job->K;
    g.J = job->kind == GEMM_INPUT ? g.rows : job->N;
    g.R = job->kind == GEMM_FORWARD ? job->K : job->kind == GEMM_INPUT ? job->N : g.rows;
    g.gemv = job->kind == GEMM_FORWARD && g.rows <= GEMV_ROWS && !plan->tiles;
    g.swapped = !plan->tiles && swap_pays(job, g.rows);
    if (g.swapped) g.I = job->N, g.J = g.rows;
    if (g.I > 0 && g.J > 0) plan->groups[plan->count++] = g;
  }
}

/* Groups of VL columns that one chunk of gemv or of tiles takes: by the bytes of w. */
static ptrdiff_t vectors_of_chunk(const gemm_plan *plan, ptrdiff_t vectors) {
  const ptrdiff_t bytes = VL * (plan->job.K + 1) * (ptrdiff_t)dtype_size(plan->job.wType), most = GEMV_CHUNK_BYTES / bytes;
  const ptrdiff_t runs = (ptrdiff_t)moe_num_threads(plan->ctx) * GEMV_RUNS_A_THREAD;
  /* Tiles of several experts are runs enough with fewer of each. */
  ptrdiff_t each = ceil_div(vectors, plan->tiles && plan->count > 1 ? ceil_div(runs, plan->count) : runs);
  if (each > most) each = most > 0 ? most : 1;
  return plan->tiles ? round_up(each, 2) : each;
}

/* Chunks of all groups, with blocks of at most sizeI x sizeJ; gemv groups and tiles are cut by the bytes of w. */
static ptrdiff_t plan_chunks(gemm_plan *plan, ptrdiff_t sizeI, ptrdiff_t sizeJ) {
  ptrdiff_t chunks = 0;
  for (ptrdiff_t i = 0; i < plan->count; i++) {
    gemm_group *g = plan->groups + i;
    g->firstChunk = chunks;
    if (g->gemv || plan->tiles) {
      g->sizeI = plan->tiles ? min_size(g->rows, TILE_BLOCK_ROWS) : g->rows;
      g->sizeJ = vectors_of_chunk(plan, ceil_div(g->J, VL)) * VL;
    } else {
      g->sizeI = block_size(g->I, sizeI, PANEL_ROWS);
      /* What packs its own panels does so once a block of J, so shallow ones are wide. */
      const int wide = sizeJ == BLOCK_J && g->J <= OWN_PANEL_BLOCKS * BLOCK_J && 16 * g->I <= 9 * BLOCK_I;
      g->sizeJ = block_size(g->J, wide ? 2 * sizeJ : sizeJ, 12); /* a multiple of most tile widths */
    }
    g->blocksI = ceil_div(g->I, g->sizeI);
    g->blocksJ = ceil_div(g->J, g->sizeJ);
    chunks += g->blocksI * g->blocksJ;
  }
  return chunks;
}

/* Whether a group's panels are packed once for all chunks: not where too few would share them (they go through far memory). */
static int shares_panels(const gemm_group *g) { return !g->gemv && (g->swapped || g->blocksJ > OWN_PANEL_BLOCKS); }

/* Rows of a group's tiles, and the 32-bit words that all of them take. */
MOE_INLINE int tile_width(ptrdiff_t rows) { return rows < TILE_SIDE ? (int)rows : TILE_SIDE; }
MOE_INLINE ptrdiff_t tile_words(ptrdiff_t rows, ptrdiff_t K) { return ceil_div(rows, TILE_SIDE) * tile_width(rows) * TILE_SIDE * ceil_div(K, TILE_K); }

/* Rows that are made ready once for all chunks of a group: panels, and what gemv reads. */
static void plan_packs(gemm_plan *plan) {
  const gemm_job *job = &plan->job;
  size_t shared = 0, gemv = 0;
  for (ptrdiff_t i = 0; i < plan->count; i++) {
    const gemm_group *g = plan->groups + i;
    if (plan->tiles) gemv += (size_t)tile_words(g->rows, job->K);
    else if (shares_panels(g)) shared += (size_t)(round_up(g->I, VL) * words_of(g->R, plan->pairs));
    if (g->gemv && job->xType != MOE_F32) gemv += (size_t)(g->rows * round_up(job->K, VL));
  }
  if (shared * sizeof(float) > SHARED_PANEL_BYTES) shared = 0;
  plan->packs = 0;
  if (shared + gemv == 0) return;
  float *next = moe_scratch(plan->ctx, 1, (shared + gemv) * sizeof(float));
  for (ptrdiff_t i = 0; i < plan->count; i++) {
    gemm_group *g = plan->groups + i;
    g->firstPack = plan->packs;
    if (plan->tiles) {
      g->prepared = next;
      next += tile_words(g->rows, job->K);
      plan->packs += ceil_div(g->rows, TILE_SIDE);
      continue;
    }
    if (g->gemv ? job->xType == MOE_F32 : !shared || !shares_panels(g)) continue;
    g->prepared = next;
    next += g->gemv ? g->rows * round_up(job->K, VL) : round_up(g->I, VL) * words_of(g->R, plan->pairs);
    plan->packs += ceil_div(g->I, PANEL_ROWS);
  }
}

static int enough_chunks(ptrdiff_t chunks, int threads) {
  if (threads == 1 || chunks >= (ptrdiff_t)CHUNKS_A_THREAD * threads) return 1;
  return chunks % threads == 0 && chunks >= CHUNKS_A_THREAD / 2 * threads;
}

static void plan_job(gemm_plan *plan) {
  const gemm_job *job = &plan->job;
  ptrdiff_t sizeI = BLOCK_I, sizeJ = BLOCK_J;
  plan->tiles = MOE_TILES && job->kind == GEMM_FORWARD && job->wType == MOE_FP8 && job->xType == MOE_BF16 && job->K > 0 && job->scaling != MOE_SCALE_BLOCK128;
  plan->pairs = MOE_PAIRS && (job->kind == GEMM_INPUT || job->xType == MOE_BF16) && (job->kind == GEMM_WEIGHT || job->wType == MOE_BF16) &&
                (job->kind == GEMM_FORWARD || job->yType == MOE_BF16);
  plan_groups(plan);
  while (plan->chunks = plan_chunks(plan, sizeI, sizeJ), !plan->tiles && !enough_chunks(plan->chunks, moe_num_threads(plan->ctx))) {
    if (sizeJ > 96) sizeJ /= 2;
    else if (sizeI > 256) sizeI /= 2;
    else if (sizeJ > 48) sizeJ /= 2;
    else if (sizeI > 64) sizeI /= 2;
    else break;
  }
  plan_packs(plan);
}

/* The group of a chunk (or of a packing task): the last one that starts at or before it. */
static const gemm_group *group_of(const gemm_plan *plan, ptrdiff_t number, int packing) {
  ptrdiff_t low = 0, high = plan->count - 1;
  while (low < high) {
    const ptrdiff_t middle = (low + high + 1) / 2;
    const gemm_group *g = plan->groups + middle;
    if ((packing ? g->firstPack : g->firstChunk) <= number) low = middle;
    else high = middle - 1;
  }
  return plan->groups + low;
}
#endif
