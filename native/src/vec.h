// Sixteen lanes, spelled once per instruction set.
//
// Every kernel of the core is written over three types: F (16 float32 lanes), I (16 int32 lanes) and B (64 bytes: 4 per
// lane). A lane is an output row, so the order of additions inside a lane is the order of the loop, and the same source
// gives the same bits on every instruction set and every machine. All multiply-adds are explicit FMAs.
//
// This header is included by isa/*.cpp only, after HD_ISA_NAMESPACE and one HD_VEC_* macro are defined.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define HD_INLINE inline __attribute__((always_inline))

#if defined(HD_VEC_AVX512)
#include "vec_avx512.h"
#elif defined(HD_VEC_AVX2)
#include "vec_avx2.h"
#elif defined(HD_VEC_NEON)
#include "vec_neon.h"
#else
#include "vec_portable.h"
#endif

namespace herder::HD_ISA_NAMESPACE {

// f(0), f(1), ... f(N - 1) with the index as a constant: what keeps an array of vectors in registers (GCC 12 leaves it
// in memory when the loop over it has more than a few turns).
template <int N, class Body>
HD_INLINE void unrolled(Body body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

// A dot product in the making: begin, add for each four bytes of a lane, then its value. start: what it starts from,
// the same both times.
struct ByteSum {
  I sum;
  HD_INLINE void begin(I start) { sum = start; }
  HD_INLINE void add(B w, const int8_t* a) { sum = dot4_byte(sum, w, a); }
  HD_INLINE I value(I) const { return sum; }
};
#if !defined(HD_NIBBLE_SUM)
using NibbleSum = ByteSum;
#endif

// exp(x), x clamped to [-87.3, 88]: Cody-Waite reduction by ln 2 and a degree-6 polynomial (coefficients after Cephes
// expf, S. Moshier); relative error below 2e-7. The same sequence of FMAs on every instruction set.
HD_INLINE F f_exp(F x) {
  x = f_min(f_set1(88.0f), f_max(f_set1(-87.3f), x));  // in this operand order NaN stays NaN
  const I n = i_round(f_mul(x, f_set1(1.44269504088896341f)));
  const F nf = f_from_i(n);
  F r = f_fma(nf, f_set1(-0.693359375f), x);
  r = f_fma(nf, f_set1(2.12194440e-4f), r);
  F p = f_set1(1.9875691500e-4f);
  p = f_fma(p, r, f_set1(1.3981999507e-3f));
  p = f_fma(p, r, f_set1(8.3334519073e-3f));
  p = f_fma(p, r, f_set1(4.1665795894e-2f));
  p = f_fma(p, r, f_set1(1.6666665459e-1f));
  p = f_fma(p, r, f_set1(5.0000001201e-1f));
  p = f_fma(f_mul(r, r), p, f_add(r, f_set1(1.0f)));
  return f_scale2(p, n);
}

// exp(x) as a bfloat16, x <= 0: 0 below about 2^-39, NaN of NaN. With n the nearest integer to t = x / ln 2 - 0.49995,
// exp(x) = 2^n * p, p in [1, 2]. The last step of p's polynomial (degree 3, minimax, relative error below 2^-13.7) adds
// into a number whose last place is 2^-7, and so rounds p to 8 bits, ties to even. Everything is 2^87 times as large,
// so that the exponent field of 2^n is n + 40: a sum that rounds to n leaves it in its lower bits, and n = -40 makes 0.
HD_INLINE F f_exp_bf16(F x) {
  constexpr float kLarge = 0x1p87f, kUnits = 0x1.8p23f, k128ths = 0x1.8p16f;  // what has a last place of 1, of 2^-7
  const F t = f_max(f_set1(-40.0f), f_fma(x, f_set1(1.44269504088896341f), f_set1(-0.49994966f)));
  const F n = f_add(t, f_set1(kUnits + 40));
  const F r = f_sub(t, f_sub(n, f_set1(kUnits + 40)));
  F p = f_set1(7.8021802e-2f * kLarge);
  p = f_fma(p, r, f_set1(3.4309196e-1f * kLarge));
  p = f_fma(p, r, f_set1(9.8038489e-1f * kLarge));
  p = f_fma(p, r, f_set1((k128ths + 1.4140625f) * kLarge));
  return f_mul(f_sub(p, f_set1(k128ths * kLarge)), f_exponent(n));
}

}  // namespace herder::HD_ISA_NAMESPACE
