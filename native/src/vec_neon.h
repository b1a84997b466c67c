// NEON lanes: four q registers each, baseline Armv8-A. HD_DOT_SDOT selects sdot (FEAT_DotProd), HD_DOT_USDOT usdot
// (FEAT_I8MM); without them the dot product goes through 16-bit pairs.
#pragma once

#include <arm_neon.h>

namespace herder::HD_ISA_NAMESPACE {

// Tokens x panels of a micro-kernel: a vector is four of the 32 registers. The int32 accumulators of four tokens take
// 16 and the weights 8; the float32 totals, touched once a group, may wait on the stack.
constexpr int kTileRegisters = 4;
constexpr int kBlockTokens = 4, kBlockPanels = 1;  // of an integer micro-kernel
constexpr int kFewTokens = 4;                      // up to so many pass every panel together
constexpr int64_t kGroupedTokens = 0;              // up to so many, storing a panel taken apart does not pay

struct F {
  float32x4_t v[4];
};
struct I {
  int32x4_t v[4];
};
struct B {
  uint8x16_t v[4];
};

// The expression once for each quarter i = 0..3. Written out, because a loop would leave the array in memory.
#define HD_QUARTERS(T, ...) \
  T r;                      \
  {                         \
    constexpr int i = 0;    \
    r.v[i] = __VA_ARGS__;   \
  }                         \
  {                         \
    constexpr int i = 1;    \
    r.v[i] = __VA_ARGS__;   \
  }                         \
  {                         \
    constexpr int i = 2;    \
    r.v[i] = __VA_ARGS__;   \
  }                         \
  {                         \
    constexpr int i = 3;    \
    r.v[i] = __VA_ARGS__;   \
  }                         \
  return r

HD_INLINE F f_load(const float* p) { HD_QUARTERS(F, vld1q_f32(p + 4 * i)); }
HD_INLINE void f_store(float* p, F a) {
  vst1q_f32(p, a.v[0]);
  vst1q_f32(p + 4, a.v[1]);
  vst1q_f32(p + 8, a.v[2]);
  vst1q_f32(p + 12, a.v[3]);
}
HD_INLINE F f_set1(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {{q, q, q, q}};
}
HD_INLINE F f_zero() { return f_set1(0.0f); }
HD_INLINE F f_add(F a, F b) { HD_QUARTERS(F, vaddq_f32(a.v[i], b.v[i])); }
HD_INLINE F f_sub(F a, F b) { HD_QUARTERS(F, vsubq_f32(a.v[i], b.v[i])); }
HD_INLINE F f_mul(F a, F b) { HD_QUARTERS(F, vmulq_f32(a.v[i], b.v[i])); }
HD_INLINE F f_div(F a, F b) { HD_QUARTERS(F, vdivq_f32(a.v[i], b.v[i])); }
HD_INLINE F f_fma(F a, F b, F c) { HD_QUARTERS(F, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
// fmax and fmin would give NaN, or order the zeros: x86 takes b unless a is truly larger (smaller).
HD_INLINE F f_max(F a, F b) { HD_QUARTERS(F, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
HD_INLINE F f_min(F a, F b) { HD_QUARTERS(F, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
HD_INLINE F f_abs(F a) { HD_QUARTERS(F, vabsq_f32(a.v[i])); }
HD_INLINE bool f_any_nan(F a) {
  const uint32x4_t lo = vandq_u32(vceqq_f32(a.v[0], a.v[0]), vceqq_f32(a.v[1], a.v[1]));
  const uint32x4_t hi = vandq_u32(vceqq_f32(a.v[2], a.v[2]), vceqq_f32(a.v[3], a.v[3]));
  return vminvq_u32(vandq_u32(lo, hi)) == 0;
}
HD_INLINE F f_load_f16(const uint16_t* p) { HD_QUARTERS(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)))); }
HD_INLINE void f_store_f16(uint16_t* p, F a) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v[0])));
  vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(a.v[1])));
  vst1_u16(p + 8, vreinterpret_u16_f16(vcvt_f16_f32(a.v[2])));
  vst1_u16(p + 12, vreinterpret_u16_f16(vcvt_f16_f32(a.v[3])));
}
HD_INLINE uint32x4_t bf16_pairs(const uint16_t* p) { return vreinterpretq_u32_u16(vld1q_u16(p)); }
// The even (odd) ones of 32 bfloat16.
HD_INLINE F f_even_bf16(const uint16_t* p) {
  HD_QUARTERS(F, vreinterpretq_f32_u32(vshlq_n_u32(bf16_pairs(p + 8 * i), 16)));
}
HD_INLINE F f_odd_bf16(const uint16_t* p) {
  HD_QUARTERS(F, vreinterpretq_f32_u32(vandq_u32(bf16_pairs(p + 8 * i), vdupq_n_u32(0xffff0000u))));
}
// Stores floats that are bfloat16 as such: 16, or 32 of which a are the even ones.
HD_INLINE uint16x4_t upper_words(float32x4_t a) { return vshrn_n_u32(vreinterpretq_u32_f32(a), 16); }
HD_INLINE void f_store_bf16(uint16_t* p, F a) {
  vst1_u16(p, upper_words(a.v[0]));
  vst1_u16(p + 4, upper_words(a.v[1]));
  vst1_u16(p + 8, upper_words(a.v[2]));
  vst1_u16(p + 12, upper_words(a.v[3]));
}
HD_INLINE void store_bf16_pairs(uint16_t* p, float32x4_t a, float32x4_t b) {
  // b with a's upper half shifted into its lower one
  vst1q_u16(p, vreinterpretq_u16_u32(vsriq_n_u32(vreinterpretq_u32_f32(b), vreinterpretq_u32_f32(a), 16)));
}
HD_INLINE void f_store_bf16_pairs(uint16_t* p, F a, F b) {
  store_bf16_pairs(p, a.v[0], b.v[0]);
  store_bf16_pairs(p + 8, a.v[1], b.v[1]);
  store_bf16_pairs(p + 16, a.v[2], b.v[2]);
  store_bf16_pairs(p + 24, a.v[3], b.v[3]);
}
HD_INLINE F f_from_i(I a) { HD_QUARTERS(F, vcvtq_f32_s32(a.v[i])); }
HD_INLINE int32x4_t round_quarter(float32x4_t a) {
  // fcvtns saturates and makes NaN 0: x86's answer to NaN and to 2^31 and above is INT32_MIN
  const uint32x4_t fits = vcltq_f32(a, vdupq_n_f32(2147483648.0f));
  return vbslq_s32(fits, vcvtnq_s32_f32(a), vdupq_n_s32(INT32_MIN));
}
HD_INLINE I i_round(F a) { HD_QUARTERS(I, round_quarter(a.v[i])); }
HD_INLINE float32x4_t scale2_quarter(float32x4_t a, int32x4_t n) {
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)));
}
HD_INLINE F f_scale2(F a, I n) { HD_QUARTERS(F, scale2_quarter(a.v[i], n.v[i])); }
// The number with an exponent field of a's lower 8 bits, and nothing else.
HD_INLINE F f_exponent(F a) { HD_QUARTERS(F, vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a.v[i]), 23))); }
HD_INLINE F f_keep_below(F a, int32_t first, int32_t limit, F other) {
  alignas(16) static constexpr int32_t kLane[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(kLane);
  const int32_t n = limit - first;
  HD_QUARTERS(F, vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * i)), a.v[i], other.v[i]));
}

// Sum and maximum of the lanes in one fixed tree: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
HD_INLINE float lanes_sum(F a) {
  const float32x4_t q = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
HD_INLINE float lanes_max(F a) {
  const auto larger = [](float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); };
  const float32x4_t q = larger(larger(a.v[0], a.v[2]), larger(a.v[1], a.v[3]));
  const float32x2_t lo = vget_low_f32(q), hi = vget_high_f32(q), d = vbsl_f32(vcgt_f32(lo, hi), lo, hi);
  const float x = vget_lane_f32(d, 0), y = vget_lane_f32(d, 1);
  return x > y ? x : y;
}

HD_INLINE I i_set1(int32_t x) {
  const int32x4_t q = vdupq_n_s32(x);
  return {{q, q, q, q}};
}
// factor times the int32 whose bits lie at p, in every lane.
HD_INLINE I i_scaled(const float* p, int32_t factor) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return i_set1(x * factor);
}
HD_INLINE I i_load(const int32_t* p) { HD_QUARTERS(I, vld1q_s32(p + 4 * i)); }
HD_INLINE void i_store_s8(int8_t* p, I a) {
  const int16x8_t lo = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
  const int16x8_t hi = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
}
HD_INLINE I i_add(I a, I b) { HD_QUARTERS(I, vaddq_s32(a.v[i], b.v[i])); }
HD_INLINE int32_t i_sum(I a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }

HD_INLINE B b_load(const uint8_t* p) { HD_QUARTERS(B, vld1q_u8(p + 16 * i)); }
HD_INLINE void b_store(uint8_t* p, B a) {
  vst1q_u8(p, a.v[0]);
  vst1q_u8(p + 16, a.v[1]);
  vst1q_u8(p + 32, a.v[2]);
  vst1q_u8(p + 48, a.v[3]);
}
HD_INLINE B b_low4(B a) { HD_QUARTERS(B, vandq_u8(a.v[i], vdupq_n_u8(15))); }
HD_INLINE B b_high4(B a) { HD_QUARTERS(B, vshrq_n_u8(a.v[i], 4)); }
HD_INLINE B b_table(const int8_t* table16) {
  const uint8x16_t q = vreinterpretq_u8_s8(vld1q_s8(table16));
  return {{q, q, q, q}};
}
HD_INLINE B b_lookup(B table, B index) { HD_QUARTERS(B, vqtbl1q_u8(table.v[i], index.v[i])); }
HD_INLINE B b_sub(B a, uint8_t x) { HD_QUARTERS(B, vsubq_u8(a.v[i], vdupq_n_u8(x))); }

#if defined(HD_DOT_USDOT)
constexpr int kByteBias = 0;
HD_INLINE B b_code8(B raw) { return raw; }
#else
constexpr int kByteBias = 128;  // 8-bit codes are used as code - 128: the instructions take both factors signed
HD_INLINE B b_code8(B raw) { HD_QUARTERS(B, veorq_u8(raw.v[i], vdupq_n_u8(0x80))); }
#endif

#if defined(HD_DOT_USDOT) || defined(HD_DOT_SDOT)
// sdot and usdot multiply with one 32-bit lane of a register: 4 bytes, loaded without being copied to all lanes.
HD_INLINE int8x8_t four_bytes(const int8_t* a) {
  uint32_t x;
  std::memcpy(&x, a, 4);
  return vcreate_s8(x);
}
HD_INLINE int32x4_t dot_quarter(int32x4_t acc, uint8x16_t w, int8x8_t x) {
#if defined(HD_DOT_USDOT)
  return vusdotq_lane_s32(acc, w, x, 0);
#else
  return vdotq_lane_s32(acc, vreinterpretq_s8_u8(w), x, 0);
#endif
}
#else
HD_INLINE int8x8_t four_bytes(const int8_t* a) {  // twice
  int32_t x;
  std::memcpy(&x, a, 4);
  return vreinterpret_s8_s32(vdup_n_s32(x));
}
HD_INLINE int32x4_t dot_quarter(int32x4_t acc, uint8x16_t w, int8x8_t x) {
  // |w| <= 128 and |a| <= 127, so the sum of a 16-bit pair stays below 2^15
  const int8x16_t s = vreinterpretq_s8_u8(w);
  return vpadalq_s16(acc, vpaddq_s16(vmull_s8(vget_low_s8(s), x), vmull_s8(vget_high_s8(s), x)));
}
#endif
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) {
  const int8x8_t x = four_bytes(a);
  HD_QUARTERS(I, dot_quarter(acc.v[i], w.v[i], x));
}

HD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

#undef HD_QUARTERS

}  // namespace herder::HD_ISA_NAMESPACE
