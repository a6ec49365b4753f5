/* Tails of the 4-lane sets of simd.h, which have no masked loads and stores: through a small array. */
MOE_INLINE vf v_load_n(const float *p, int n) {
  float t[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return v_load(t);
}
MOE_INLINE void v_store_n(float *p, vf v, int n) {
  float t[4];
  v_store(t, v);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
MOE_INLINE vf v_load_bf16_n(const moe_bf16 *p, int n) {
  moe_bf16 t[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return v_load_bf16(t);
}
MOE_INLINE void v_store_bf16_n(moe_bf16 *p, vf v, int n) {
  moe_bf16 t[4];
  v_store_bf16(t, v);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
