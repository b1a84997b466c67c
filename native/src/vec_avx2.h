// AVX2 lanes: two ymm registers each. HD_DOT_VNNI selects the 256-bit vpdpbusd (AVX-VNNI).
#pragma once

#include <immintrin.h>

namespace herder::HD_ISA_NAMESPACE {

constexpr int kTileRegisters = 4;  // tokens x panels of a micro-kernel: a vector is two of the 16 registers
constexpr int kBlockTokens = 4, kBlockPanels = 1;  // of an integer micro-kernel
constexpr int kFewTokens = 4;                      // up to so many pass every panel together
constexpr int64_t kGroupedTokens = 20;             // up to so many, storing a panel taken apart does not pay

struct F {
  __m256 v[2];
};
struct I {
  __m256i v[2];
};
struct B {
  __m256i v[2];
};

#define HD_BOTH(T, e0, e1) \
  T r;                     \
  r.v[0] = e0;             \
  r.v[1] = e1;             \
  return r

HD_INLINE F f_load(const float* p) { HD_BOTH(F, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
HD_INLINE void f_store(float* p, F a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
HD_INLINE F f_set1(float x) { HD_BOTH(F, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
HD_INLINE F f_zero() { HD_BOTH(F, _mm256_setzero_ps(), _mm256_setzero_ps()); }
HD_INLINE F f_add(F a, F b) { HD_BOTH(F, _mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])); }
HD_INLINE F f_sub(F a, F b) { HD_BOTH(F, _mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])); }
HD_INLINE F f_mul(F a, F b) { HD_BOTH(F, _mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])); }
HD_INLINE F f_div(F a, F b) { HD_BOTH(F, _mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])); }
HD_INLINE F f_fma(F a, F b, F c) {
  HD_BOTH(F, _mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1]));
}
HD_INLINE F f_max(F a, F b) { HD_BOTH(F, _mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])); }
HD_INLINE F f_min(F a, F b) { HD_BOTH(F, _mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])); }
HD_INLINE F f_abs(F a) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  HD_BOTH(F, _mm256_and_ps(a.v[0], m), _mm256_and_ps(a.v[1], m));
}
HD_INLINE bool f_any_nan(F a) {
  const __m256 u =
      _mm256_or_ps(_mm256_cmp_ps(a.v[0], a.v[0], _CMP_UNORD_Q), _mm256_cmp_ps(a.v[1], a.v[1], _CMP_UNORD_Q));
  return _mm256_movemask_ps(u) != 0;
}
HD_INLINE F f_load_f16(const uint16_t* p) {
  HD_BOTH(F, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
}
HD_INLINE void f_store_f16(uint16_t* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v[0], _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.v[1], _MM_FROUND_TO_NEAREST_INT));
}
HD_INLINE __m256i bf16_pairs(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
// The even (odd) ones of 32 bfloat16.
HD_INLINE F f_even_bf16(const uint16_t* p) {
  HD_BOTH(F, _mm256_castsi256_ps(_mm256_slli_epi32(bf16_pairs(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(bf16_pairs(p + 16), 16)));
}
HD_INLINE F f_odd_bf16(const uint16_t* p) {
  const __m256i m = _mm256_set1_epi32(-65536);
  HD_BOTH(F, _mm256_castsi256_ps(_mm256_and_si256(bf16_pairs(p), m)),
          _mm256_castsi256_ps(_mm256_and_si256(bf16_pairs(p + 16), m)));
}
// Stores floats that are bfloat16 as such: 16, or 32 of which a are the even ones.
HD_INLINE __m256i upper_words(__m256 a) { return _mm256_srli_epi32(_mm256_castps_si256(a), 16); }
HD_INLINE void f_store_bf16(uint16_t* p, F a) {
  const __m256i words = _mm256_packus_epi32(upper_words(a.v[0]), upper_words(a.v[1]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
HD_INLINE void f_store_bf16_pairs(uint16_t* p, F a, F b) {
  for (int i = 0; i < 2; ++i)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16 * i),
                        _mm256_blend_epi16(upper_words(a.v[i]), _mm256_castps_si256(b.v[i]), 0xaa));
}
HD_INLINE F f_from_i(I a) { HD_BOTH(F, _mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])); }
HD_INLINE I i_round(F a) { HD_BOTH(I, _mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1])); }
HD_INLINE __m256 scale2_half(__m256 a, __m256i n) {
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)));
}
HD_INLINE F f_scale2(F a, I n) { HD_BOTH(F, scale2_half(a.v[0], n.v[0]), scale2_half(a.v[1], n.v[1])); }
HD_INLINE __m256 exponent_half(__m256 a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)); }
// The number with an exponent field of a's lower 8 bits, and nothing else.
HD_INLINE F f_exponent(F a) { HD_BOTH(F, exponent_half(a.v[0]), exponent_half(a.v[1])); }
HD_INLINE F f_keep_below(F a, int32_t first, int32_t limit, F other) {
  const __m256i n = _mm256_set1_epi32(limit - first);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i m0 = _mm256_cmpgt_epi32(n, lane);
  const __m256i m1 = _mm256_cmpgt_epi32(n, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
  HD_BOTH(F, _mm256_blendv_ps(other.v[0], a.v[0], _mm256_castsi256_ps(m0)),
          _mm256_blendv_ps(other.v[1], a.v[1], _mm256_castsi256_ps(m1)));
}

// Sum and maximum of the lanes in one fixed tree: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
HD_INLINE float lanes_sum(F a) {
  const __m256 h = _mm256_add_ps(a.v[0], a.v[1]);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
HD_INLINE float lanes_max(F a) {
  const __m256 h = _mm256_max_ps(a.v[0], a.v[1]);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

HD_INLINE I i_set1(int32_t x) { HD_BOTH(I, _mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
// factor times the int32 whose bits lie at p, in every lane. Both fit 16 bits.
HD_INLINE I i_scaled(const float* p, int32_t factor) {
  const __m256i x = _mm256_castps_si256(_mm256_broadcast_ss(p));
  const __m256i product = _mm256_madd_epi16(x, _mm256_set1_epi32(factor & 0xffff));
  HD_BOTH(I, product, product);
}
HD_INLINE I i_load(const int32_t* p) {
  HD_BOTH(I, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8)));
}
HD_INLINE void i_store_s8(int8_t* p, I a) {
  const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.v[0], a.v[1]), 0xd8);
  const __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), b);
}
HD_INLINE I i_add(I a, I b) { HD_BOTH(I, _mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])); }
HD_INLINE int32_t i_sum(I a) {
  const __m256i s = _mm256_add_epi32(a.v[0], a.v[1]);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1));
  return _mm_cvtsi128_si32(q);
}

HD_INLINE B b_load(const uint8_t* p) {
  HD_BOTH(B, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
}
HD_INLINE void b_store(uint8_t* p, B a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.v[1]);
}
HD_INLINE B b_low4(B a) {
  const __m256i m = _mm256_set1_epi8(15);
  HD_BOTH(B, _mm256_and_si256(a.v[0], m), _mm256_and_si256(a.v[1], m));
}
HD_INLINE B b_high4(B a) {
  const __m256i m = _mm256_set1_epi8(15);
  HD_BOTH(B, _mm256_and_si256(_mm256_srli_epi16(a.v[0], 4), m), _mm256_and_si256(_mm256_srli_epi16(a.v[1], 4), m));
}
HD_INLINE B b_table(const int8_t* table16) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table16)));
  HD_BOTH(B, t, t);
}
HD_INLINE B b_lookup(B table, B index) {
  HD_BOTH(B, _mm256_shuffle_epi8(table.v[0], index.v[0]), _mm256_shuffle_epi8(table.v[1], index.v[1]));
}
HD_INLINE B b_sub(B a, uint8_t x) {
  const __m256i s = _mm256_set1_epi8(static_cast<char>(x));
  HD_BOTH(B, _mm256_sub_epi8(a.v[0], s), _mm256_sub_epi8(a.v[1], s));
}

HD_INLINE __m256i broadcast4(const int8_t* a) {
  int32_t x;
  std::memcpy(&x, a, 4);
  return _mm256_set1_epi32(x);
}

#if defined(HD_DOT_VNNI)
constexpr int kByteBias = 0;
HD_INLINE B b_code8(B raw) { return raw; }
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) {
  const __m256i x = broadcast4(a);
  HD_BOTH(I, _mm256_dpbusd_avx_epi32(acc.v[0], w.v[0], x), _mm256_dpbusd_avx_epi32(acc.v[1], w.v[1], x));
}
#else
constexpr int kByteBias = 128;  // 8-bit codes are used as code - 128
HD_INLINE B b_code8(B raw) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(0x80));
  HD_BOTH(B, _mm256_xor_si256(raw.v[0], m), _mm256_xor_si256(raw.v[1], m));
}
HD_INLINE __m256i widen_add(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// A pair of 4-bit codes times int8 is at most 2 * 15 * 127: 8 of them, a group of 32, add up in 16 bits.
#define HD_NIBBLE_SUM 1
struct NibbleSum {
  __m256i pairs[2];
  HD_INLINE void begin(I) { pairs[0] = pairs[1] = _mm256_setzero_si256(); }
  HD_INLINE void add(B w, const int8_t* a) {
    const __m256i x = broadcast4(a);
    pairs[0] = _mm256_add_epi16(pairs[0], _mm256_maddubs_epi16(w.v[0], x));
    pairs[1] = _mm256_add_epi16(pairs[1], _mm256_maddubs_epi16(w.v[1], x));
  }
  HD_INLINE I value(I start) const { HD_BOTH(I, widen_add(start.v[0], pairs[0]), widen_add(start.v[1], pairs[1])); }
};
// |w| * (a with the sign of w): |w| <= 128 and |a| <= 127, so a 16-bit pair cannot saturate.
HD_INLINE __m256i byte_pairs(__m256i w, __m256i x) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) {
  const __m256i x = broadcast4(a);
  HD_BOTH(I, widen_add(acc.v[0], byte_pairs(w.v[0], x)), widen_add(acc.v[1], byte_pairs(w.v[1], x)));
}
#endif

HD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#undef HD_BOTH

}  // namespace herder::HD_ISA_NAMESPACE
