/*
 * exp, log, sin and cos of our own, so that a result does not depend on the machine's C library.
 *
 *   v_exp     16 lanes f32: range reduction by a two-part ln 2, a degree-6 polynomial fitted for this file. At most 1.1 ulp
 *             (2 ulp in WebAssembly, which has no fused multiply-add) over all floats, NaN kept. Results below 2^-126 are 0: making a
 *             subnormal number costs 150 cycles on Intel, and masked scores would make them all the time.
 *   v_tanh    16 lanes f32: an odd polynomial fitted for this file below 5/8, from v_exp above. At most 2 ulp, NaN kept.
 *   moe_log   f64, of a positive normal number: atanh series, relative error below 1e-11 (so its f32 rounding is within 0.501 ulp).
 *   moe_sincos f64, |x| up to 1e6: three-part pi/2 and Taylor polynomials, absolute error below 1e-15; 0.501 ulp once rounded to f32.
 * Not for: arguments of sin and cos beyond 2^31 (NaN), log of zero or less (callers do not).
 */
#ifndef MOE_MATH_H
#define MOE_MATH_H
#include "vec.h"

/* exp of x <= 88.7 or NaN. */
VFN v16 v_exp_bounded(v16 x) {
  const v16 magic = v_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  const v16 least = v_set(-87.33654f); /* log of the smallest normal number */
  v16 y = v_max(least, x);
  v16 bits = v_fma(y, v_set(1.44269504f), magic), n = v_sub(bits, magic);
  v16 r = v_fma(n, v_set(2.12194440054690583e-4f), v_fma(n, v_set(-0.693359375f), y)); /* 0.693359375 has 9 bits: n times it is exact */
  v16 p = v_set(0x1.6a1a72p-10f);
  p = v_fma(p, r, v_set(0x1.123fc6p-7f));
  p = v_fma(p, r, v_set(0x1.555916p-5f));
  p = v_fma(p, r, v_set(0x1.55548ap-3f));
  p = v_fma(p, r, v_set(0x1.fffffcp-2f));
  p = v_add(v_fma(v_mul(p, r), r, r), v_set(1.0f));
  return v_clear_below(v_scale2(p, n, bits), x, least);
}
VFN v16 v_exp(v16 x) { return v_exp_bounded(v_min(v_set(89.0f), x)); }
VFN float moe_exp(float x) {
  float t[V_LANES];
  v_store(t, v_exp(v_set(x)));
  return t[0];
}

/* 1 / (1 + exp(-x)) */
VFN v16 v_sigmoid(v16 x) { return v_div(v_set(1.0f), v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), x)))); }

VFN v16 v_tanh(v16 x) {
  const v16 zero = v_set(0.0f), one = v_set(1.0f);
  v16 minus = v_sub(zero, x), a = v_max(x, minus), z = v_mul(x, x);
  v16 p = v_set(-0x1.75e1cap-8f);
  p = v_fma(p, z, v_set(0x1.52269ap-6f));
  p = v_fma(p, z, v_set(-0x1.b83c5ap-5f));
  p = v_fma(p, z, v_set(0x1.110726p-3f));
  p = v_fma(p, z, v_set(-0x1.555532p-2f));
  v16 near = v_clear_below(v_fma(v_mul(x, z), p, x), v_set(0x1.3ffffep-1f), a); /* 0 where a >= 5/8 */
  v16 far = v_sub(one, v_div(v_set(2.0f), v_add(v_exp(v_add(a, a)), one)));
  far = v_clear_below(far, a, v_set(0.625f));
  return v_add(near, v_sub(v_clear_below(far, x, zero), v_clear_below(far, minus, zero)));
}

/* x = 2^e * m with sqrt(1/2) <= m < sqrt(2); log m = 2 atanh((m - 1) / (m + 1)). */
VFN double moe_log(double x) {
  uint64_t u;
  __builtin_memcpy(&u, &x, 8);
  if ((u >> 52) == 0x7ff) return x;
  int64_t e = (int64_t)((u - 0x3fe6a09e667f3bcdull) >> 52);
  e = e >= 2048 ? e - 4096 : e;
  u -= (uint64_t)e << 52;
  double m;
  __builtin_memcpy(&m, &u, 8);
  double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  return (double)e * 0x1.62e42fefa39efp-1 + 2.0 * (s + s * z * p);
}

VFN void moe_sincos(double x, double *sine, double *cosine) {
  if (!(x < 2147483648.0 && x > -2147483648.0)) {
    *sine = *cosine = x - x == 0.0 ? 0.0 / 0.0 : x - x;
    return;
  }
  const double magic = 0x1.8p52;
  double n = (x * 0x1.45f306dc9c883p-1 + magic) - magic;
  int quadrant = (int)((int64_t)n & 3);
  double r = ((x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69, z = r * r;
  double s = -1.0 / 1307674368000.0, c = 1.0 / 20922789888000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = r + r * z * s;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 0.5;
  c = 1.0 + z * c;
  double a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
  *sine = quadrant & 2 ? -a : a;
  *cosine = (quadrant + 1) & 2 ? -b : b;
}
#endif
