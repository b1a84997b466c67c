// Matrix products over bfloat16 panels: activations rounded to bfloat16, float32 sums.
//
// For a token t, a row r and the blocks of 32 inputs in order:
//   even    = chain of fused multiply-adds from 0 over the block's even inputs, in order
//   odd     = the same over its odd inputs
//   result  = result + (even + odd)
// This is the order of the tile product TDPBF16PS (matmul_bf16_tiles.h), so tiles give the same bits. Tiles also flush
// subnormal numbers, which FMAs do not; none occur, because weights and activations below 2^-56 count as zero: a
// product of two others is a multiple of 2^-126, and so is every sum.
#pragma once

#include "formats/block.h"
#include "matmul_float.h"

namespace herder::HD_ISA_NAMESPACE {

#if defined(HD_AMX)
using Rounded = uint16_t;  // tiles take the bfloat16 words themselves
#else
using Rounded = float;
#endif

#if defined(HD_AMX)
// Zero for what rounds to a number below 2^-56.
HD_INLINE F keep_rounded(F x) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
  const __m512i smallest = _mm512_set1_epi32(((127 - 56) << 23) - 0x8000);  // half a step below: rounds up to it
  return {_mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(magnitude, smallest), x.v)};
}
#endif

// x[n] of one token, rounded to nearest even, among those of `tokens` tokens (layout.h); the last unit zero-filled.
inline void round_bf16(const float* x, int64_t n, uint8_t* rounded, int64_t tokens) {
  auto* out = reinterpret_cast<Rounded*>(rounded);
  int64_t padded = pad_to(n, kUnit);
#if defined(HD_AMX)
  for (; n >= kRoundedBlock; n -= kRoundedBlock, padded -= kRoundedBlock) {
    const F low = keep_rounded(f_load(x)), high = keep_rounded(f_load(x + kLanes));
    _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
    x += kRoundedBlock;
    out += tokens * kRoundedBlock;
  }
#endif
  for (int64_t k = 0; k < padded; k += kRoundedBlock, out += tokens * kRoundedBlock) {
    for (int64_t i = 0; i < kRoundedBlock; ++i) {
      const uint16_t word = k + i < n ? keep_bf16(f32_to_bf16(x[k + i])) : uint16_t{0};
      if constexpr (sizeof(Rounded) == 2) {
        out[i] = word;
      } else {
        out[i] = bf16_to_f32(word);
      }
    }
  }
}

#if !defined(HD_AMX)
struct Bf16Kernel {
  // The chain of one parity over a block.
  template <int T, int P, bool Odd>
  static HD_INLINE void chain(const uint8_t* const (&stream)[P], const float* x, F (&sum)[P][T]) {
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t) sum[p][t] = f_zero();
    for (int i = 0; i < kRoundedBlock; i += 2) {
      F weights[P];
      for (int p = 0; p < P; ++p) {
        const auto* pairs = reinterpret_cast<const uint16_t*>(stream[p]) + i * kLanes;
        weights[p] = Odd ? f_odd_bf16(pairs) : f_even_bf16(pairs);
      }
      for (int t = 0; t < T; ++t) {
        const F input = f_set1(x[t * kRoundedBlock + i + Odd]);
        for (int p = 0; p < P; ++p) sum[p][t] = f_fma(weights[p], input, sum[p][t]);
      }
    }
  }

  template <int T, int P, bool Stream>
  static HD_INLINE void sum(const Matrix& w, const Activations& a, int64_t token, int64_t panel, int64_t step,
                            F (&total)[P][T]) {
    constexpr size_t kBlockBytes = kRoundedBlock * kLanes * 2;
    const uint8_t* stream[P];
    for (int p = 0; p < P; ++p) stream[p] = w.data + static_cast<size_t>(panel + p * step) * w.panel_bytes;
    const float* x = reinterpret_cast<const float*>(a.rounded) + token * kRoundedBlock;
    for (int64_t k = 0; k < w.padded_cols; k += kRoundedBlock, x += a.tokens * kRoundedBlock) {
      F even[P][T], odd[P][T];
      chain<T, P, false>(stream, x, even);
      chain<T, P, true>(stream, x, odd);
      for (int p = 0; p < P; ++p) {
        for (int t = 0; t < T; ++t) total[p][t] = f_add(total[p][t], f_add(even[p][t], odd[p][t]));
        if constexpr (Stream)
          for (size_t line = 0; line < kBlockBytes; line += 64) prefetch(stream[p] + kFloatPrefetch + line);
        stream[p] += kBlockBytes;
      }
    }
  }
};
#endif

}  // namespace herder::HD_ISA_NAMESPACE
