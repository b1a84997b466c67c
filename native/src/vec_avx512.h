// AVX-512 lanes: one zmm register each. HD_DOT_VNNI selects vpdpbusd; without it the dot product goes through 16-bit
// pairs.
#pragma once

// GCC 12 takes the undefined pass-through operand of its own unmasked intrinsics for a mistake of ours (GCC bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace herder::HD_ISA_NAMESPACE {

constexpr int kTileRegisters =
    12;  // tokens x panels of a micro-kernel: 12 int32 and 12 float32 accumulators of the 32 registers
constexpr int kBlockTokens = 8, kBlockPanels = 2;  // of an integer micro-kernel
constexpr int kFewTokens = 12;                     // up to so many pass every panel together
constexpr int64_t kGroupedTokens = INT64_MAX;      // storing a panel taken apart never pays: 3 to 25 % slower

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct B {
  __m512i v;
};

HD_INLINE F f_load(const float* p) { return {_mm512_loadu_ps(p)}; }
HD_INLINE void f_store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
HD_INLINE F f_set1(float x) { return {_mm512_set1_ps(x)}; }
HD_INLINE F f_zero() { return {_mm512_setzero_ps()}; }
HD_INLINE F f_add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
HD_INLINE F f_sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
HD_INLINE F f_mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
HD_INLINE F f_div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
HD_INLINE F f_fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HD_INLINE F f_max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
HD_INLINE F f_min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
HD_INLINE F f_abs(F a) { return {_mm512_abs_ps(a.v)}; }
HD_INLINE bool f_any_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
HD_INLINE F f_load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
HD_INLINE void f_store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// The even (odd) ones of 32 bfloat16.
HD_INLINE F f_even_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
HD_INLINE F f_odd_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
}
// Stores floats that are bfloat16 as such: 16, or 32 of which a are the even ones.
HD_INLINE void f_store_bf16(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a.v), 16)));
}
HD_INLINE void f_store_bf16_pairs(uint16_t* p, F a, F b) {
  const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(a.v), 16);
  _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_castps_si512(b.v)));
}
HD_INLINE F f_from_i(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
HD_INLINE I i_round(F a) { return {_mm512_cvtps_epi32(a.v)}; }
HD_INLINE F f_scale2(F a, I n) {
  const __m512i e = _mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(e))};
}
// The number with an exponent field of a's lower 8 bits, and nothing else.
HD_INLINE F f_exponent(F a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))}; }
// Keeps lane i of a where first + i < limit, else takes `other`.
HD_INLINE F f_keep_below(F a, int32_t first, int32_t limit, F other) {
  const int32_t n = limit - first;
  const __mmask16 m = n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
  return {_mm512_mask_blend_ps(m, other.v, a.v)};
}

// Sum and maximum of the lanes in one fixed tree: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
HD_INLINE float lanes_sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
HD_INLINE float lanes_max(F a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

HD_INLINE I i_set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
// factor times the int32 whose bits lie at p, in every lane. Both fit 16 bits.
HD_INLINE I i_scaled(const float* p, int32_t factor) {
  const __m512i x = _mm512_castps_si512(_mm512_set1_ps(*p));
  return {_mm512_madd_epi16(x, _mm512_set1_epi32(factor & 0xffff))};
}
HD_INLINE I i_load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
HD_INLINE void i_store_s8(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
HD_INLINE I i_add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
// In halves: GCC 12's _mm512_reduce_add_epi32 adds signed integers, which may not overflow; lanes may.
HD_INLINE int32_t i_sum(I a) {
  const __m256i s = _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1));
  return _mm_cvtsi128_si32(q);
}

HD_INLINE B b_load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
HD_INLINE void b_store(uint8_t* p, B a) { _mm512_storeu_si512(p, a.v); }
HD_INLINE B b_low4(B a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
HD_INLINE B b_high4(B a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
HD_INLINE B b_table(const int8_t* table16) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table16)))};
}
HD_INLINE B b_lookup(B table, B index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }
HD_INLINE B b_sub(B a, uint8_t x) { return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(static_cast<char>(x)))}; }

HD_INLINE __m512i broadcast4(const int8_t* a) {
  int32_t x;
  std::memcpy(&x, a, 4);
  return _mm512_set1_epi32(x);
}

#if defined(HD_DOT_VNNI)
// dot4 adds the 4 products of each lane's unsigned bytes with the 4 signed bytes at a. 8-bit codes stay unsigned.
constexpr int kByteBias = 0;
HD_INLINE B b_code8(B raw) { return raw; }
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) { return {_mm512_dpbusd_epi32(acc.v, w.v, broadcast4(a))}; }
#else
constexpr int kByteBias = 128;  // 8-bit codes are used as code - 128
HD_INLINE B b_code8(B raw) { return {_mm512_xor_si512(raw.v, _mm512_set1_epi8(static_cast<char>(0x80)))}; }
// A pair of 4-bit codes times int8 is at most 2 * 15 * 127: 8 of them, a group of 32, add up in 16 bits.
#define HD_NIBBLE_SUM 1
struct NibbleSum {
  __m512i pairs;
  HD_INLINE void begin(I) { pairs = _mm512_setzero_si512(); }
  HD_INLINE void add(B w, const int8_t* a) {
    pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w.v, broadcast4(a)));
  }
  HD_INLINE I value(I start) const {
    return {_mm512_add_epi32(start.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
};
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) {
  // |w| * (a with the sign of w): |w| <= 128 and |a| <= 127, so a pair stays below 2^15.
  const __m512i x = broadcast4(a);
  const __m512i signed_a = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w.v), _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.v), signed_a);
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif

HD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace herder::HD_ISA_NAMESPACE
