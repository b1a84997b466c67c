// Portable lanes: arrays of 16 and plain loops. The slow twin of every instruction set, and what runs on an unknown
// CPU.
#pragma once

#include "formats/block.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int kTileRegisters = 2;                  // tokens x panels of a micro-kernel: lanes live in memory anyway
constexpr int kBlockTokens = 2, kBlockPanels = 1;  // of an integer micro-kernel
constexpr int kFewTokens = 2;                      // up to so many pass every panel together
constexpr int64_t kGroupedTokens = 0;              // up to so many, storing a panel taken apart does not pay

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct B {
  uint8_t v[64];
};

#define HD_LANES(T, expression)                     \
  T r;                                              \
  for (int i = 0; i < 16; ++i) r.v[i] = expression; \
  return r

HD_INLINE F f_load(const float* p) { HD_LANES(F, p[i]); }
HD_INLINE void f_store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
HD_INLINE F f_set1(float x) { HD_LANES(F, x); }
HD_INLINE F f_zero() { HD_LANES(F, 0.0f); }
HD_INLINE F f_add(F a, F b) { HD_LANES(F, a.v[i] + b.v[i]); }
HD_INLINE F f_sub(F a, F b) { HD_LANES(F, a.v[i] - b.v[i]); }
HD_INLINE F f_mul(F a, F b) { HD_LANES(F, a.v[i] * b.v[i]); }
HD_INLINE F f_div(F a, F b) { HD_LANES(F, a.v[i] / b.v[i]); }
HD_INLINE F f_fma(F a, F b, F c) { HD_LANES(F, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
HD_INLINE F f_max(F a, F b) { HD_LANES(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  // NaN: takes b, as x86 does
HD_INLINE F f_min(F a, F b) { HD_LANES(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
HD_INLINE F f_abs(F a) { HD_LANES(F, __builtin_fabsf(a.v[i])); }
HD_INLINE bool f_any_nan(F a) {
  bool any = false;
  for (int i = 0; i < 16; ++i) any |= a.v[i] != a.v[i];
  return any;
}
HD_INLINE F f_load_f16(const uint16_t* p) { HD_LANES(F, f16_to_f32(p[i])); }
HD_INLINE void f_store_f16(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.v[i]);
}
// The even (odd) ones of 32 bfloat16.
HD_INLINE F f_even_bf16(const uint16_t* p) { HD_LANES(F, bf16_to_f32(p[2 * i])); }
HD_INLINE F f_odd_bf16(const uint16_t* p) { HD_LANES(F, bf16_to_f32(p[2 * i + 1])); }
HD_INLINE uint16_t upper_word(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return static_cast<uint16_t>(bits >> 16);
}
// Stores floats that are bfloat16 as such: 16, or 32 of which a are the even ones.
HD_INLINE void f_store_bf16(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = upper_word(a.v[i]);
}
HD_INLINE void f_store_bf16_pairs(uint16_t* p, F a, F b) {
  for (int i = 0; i < 16; ++i) {
    p[2 * i] = upper_word(a.v[i]);
    p[2 * i + 1] = upper_word(b.v[i]);
  }
}
HD_INLINE F f_from_i(I a) { HD_LANES(F, static_cast<float>(a.v[i])); }
HD_INLINE int32_t round_lane(float x) {
  // x86's answer for NaN and out-of-range values, so that damaged weights take the same path everywhere
  return x > -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(__builtin_rintf(x)) : INT32_MIN;
}
HD_INLINE I i_round(F a) { HD_LANES(I, round_lane(a.v[i])); }
HD_INLINE float scale2_lane(float a, int32_t n) {
  const uint32_t bits = (static_cast<uint32_t>(n) + 127u) << 23;
  float e;
  std::memcpy(&e, &bits, 4);
  return a * e;
}
HD_INLINE F f_scale2(F a, I n) { HD_LANES(F, scale2_lane(a.v[i], n.v[i])); }
HD_INLINE float exponent_lane(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  bits <<= 23;
  std::memcpy(&a, &bits, 4);
  return a;
}
// The number with an exponent field of a's lower 8 bits, and nothing else.
HD_INLINE F f_exponent(F a) { HD_LANES(F, exponent_lane(a.v[i])); }
HD_INLINE F f_keep_below(F a, int32_t first, int32_t limit, F other) {
  HD_LANES(F, i < limit - first ? a.v[i] : other.v[i]);
}

// Sum and maximum of the lanes in one fixed tree: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
HD_INLINE float lanes_sum(F a) {
  for (int step = 8; step; step >>= 1)
    for (int i = 0; i < step; ++i) a.v[i] = a.v[i] + a.v[i + step];
  return a.v[0];
}
HD_INLINE float lanes_max(F a) {
  for (int step = 8; step; step >>= 1)
    for (int i = 0; i < step; ++i) a.v[i] = a.v[i] > a.v[i + step] ? a.v[i] : a.v[i + step];
  return a.v[0];
}

HD_INLINE I i_set1(int32_t x) { HD_LANES(I, x); }
// factor times the int32 whose bits lie at p, in every lane.
HD_INLINE I i_scaled(const float* p, int32_t factor) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return i_set1(x * factor);
}
HD_INLINE I i_load(const int32_t* p) { HD_LANES(I, p[i]); }
HD_INLINE void i_store_s8(int8_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}
HD_INLINE I i_add(I a, I b) {
  HD_LANES(I, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])));
}
HD_INLINE int32_t i_sum(I a) {
  uint32_t s = 0;
  for (int i = 0; i < 16; ++i) s += static_cast<uint32_t>(a.v[i]);
  return static_cast<int32_t>(s);
}

HD_INLINE B b_load(const uint8_t* p) {
  B r;
  std::memcpy(r.v, p, 64);
  return r;
}
HD_INLINE void b_store(uint8_t* p, B a) { std::memcpy(p, a.v, 64); }
HD_INLINE B b_low4(B a) {
  for (auto& x : a.v) x &= 15;
  return a;
}
HD_INLINE B b_high4(B a) {
  for (auto& x : a.v) x >>= 4;
  return a;
}
HD_INLINE B b_table(const int8_t* table16) {
  B r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(table16[i & 15]);
  return r;
}
HD_INLINE B b_lookup(B table, B index) {
  for (auto& x : index.v) x = table.v[x];
  return index;
}
HD_INLINE B b_sub(B a, uint8_t s) {
  for (auto& x : a.v) x = static_cast<uint8_t>(x - s);
  return a;
}
constexpr int kByteBias = 0;
HD_INLINE B b_code8(B raw) { return raw; }
HD_INLINE I dot4_byte(I acc, B w, const int8_t* a) {
  for (int i = 0; i < 16; ++i) {
    int32_t s = 0;
    for (int j = 0; j < 4; ++j) s += static_cast<int32_t>(w.v[4 * i + j]) * a[j];
    acc.v[i] = static_cast<int32_t>(static_cast<uint32_t>(acc.v[i]) + static_cast<uint32_t>(s));
  }
  return acc;
}
HD_INLINE void prefetch(const void*) {}

#undef HD_LANES

}  // namespace herder::HD_ISA_NAMESPACE
