/*
 * Token embedding: rows of a table, and the gradient added back into it. Legend: M tokens, V rows of H in the table.
 */
#include "vec.h"

enum { COLUMNS = 128 };

typedef struct {
  void *out;
  float *d_table;
  const void *table, *d_out;
  const int32_t *ids;
  ptrdiff_t M, H, V, rows;
  int dtype;
} embedding_args;

static void embedding_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const embedding_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows), bytes = a->H * moe_element_bytes(a->dtype);
  for (ptrdiff_t m = chunk * a->rows; m < end; m++) {
    char *out = (char *)a->out + m * bytes;
    if (a->ids[m] >= 0 && a->ids[m] < a->V) __builtin_memcpy(out, (const char *)a->table + a->ids[m] * bytes, (size_t)bytes);
    else __builtin_memset(out, 0, (size_t)bytes);
  }
}

/* out[M,H] = table[ids[M],H], both dtype; an id outside 0..V-1 gives zeros. */
void MOE_KERNEL(embedding_forward)(moe_context *ctx, void *out, const void *table, const int32_t *ids, ptrdiff_t M, ptrdiff_t H, ptrdiff_t V, int dtype) {
  embedding_args a = {.out = out, .table = table, .ids = ids, .M = M, .H = H, .V = V, .dtype = dtype};
  if (M <= 0 || H <= 0) return;
  a.rows = moe_max(1, 32768 / H);
  moe_parallel_for(ctx, moe_chunks(M, a.rows), embedding_forward_chunk, &a);
}

/* One chunk owns COLUMNS columns of the whole table, so repeated ids are added in the order of the rows. */
VFN void embedding_backward_columns(const embedding_args *a, ptrdiff_t first, ptrdiff_t end, int dtype) {
  for (ptrdiff_t m = 0; m < a->M; m++) {
    if (a->ids[m] < 0 || a->ids[m] >= a->V) continue;
    float *d = a->d_table + a->ids[m] * a->H;
    const void *g = at(a->d_out, m * a->H, dtype);
    for (ptrdiff_t i = first; i < end; i += 16) {
      ptrdiff_t n = v_step(end - i);
      put(d, i, n, v_add(get(d, i, n, MOE_F32), get(g, i, n, dtype)), MOE_F32);
    }
  }
}

static void embedding_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const embedding_args *a = argument;
  (void)thread;
  ptrdiff_t first = chunk * COLUMNS, end = moe_min(a->H, first + COLUMNS);
  if (a->dtype == MOE_BF16) embedding_backward_columns(a, first, end, MOE_BF16);
  else embedding_backward_columns(a, first, end, MOE_F32);
}

/* dTable[V,H] (f32) += dOut[M,H] (dtype) at rows ids[M], rows ascending; ids outside 0..V-1 are skipped. */
void MOE_KERNEL(embedding_backward)(moe_context *ctx, float *d_table, const void *d_out, const int32_t *ids, ptrdiff_t M, ptrdiff_t H, ptrdiff_t V, int dtype) {
  embedding_args a = {.d_table = d_table, .d_out = d_out, .ids = ids, .M = M, .H = H, .V = V, .dtype = dtype};
  if (M <= 0 || H <= 0) return;
  moe_parallel_for(ctx, moe_chunks(H, COLUMNS), embedding_backward_chunk, &a);
}
