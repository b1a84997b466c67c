// A row of a storage format -> a lane of a panel (layout.h): codes in the order of the compute layout, float16 scales.
#pragma once

#include <cmath>

#include "formats/block.h"

namespace herder {

// Where a lane's parts go. A row of n values takes n / 2 bytes of 4-bit codes or n of 8-bit ones, and n / group words
// of scales and of minima (unused without minima). `exact` is room for as many floats of each.
struct LaneRow {
  uint8_t* codes;
  uint16_t *scale, *minimum;
  float *exact_scale, *exact_minimum;
};

// How lane_row() leaves a format's codes: `group` of them share a scale, and `zero` is the code of level 0. Formats
// keep their own, but 8-bit codes in groups of 16 are paired.
template <BlockFormat F>
struct Lane {
  static constexpr bool paired = F::bits == 8 && F::group == 16;
  static constexpr int group = paired ? 32 : F::group, zero = paired ? 128 : F::zero;
};

constexpr int kReadAhead = 2048;  // bytes of a row asked for ahead of time

// The formats whose scales are float16 in the file keep them bit for bit: the first word of a block is its scale, the
// second its minimum. In the others a scale is a product.
constexpr bool has_half_scales(int32_t id) {
  return id == HD_Q4_0 || id == HD_Q4_1 || id == HD_Q5_0 || id == HD_Q5_1 || id == HD_Q8_0 || id == HD_IQ4_NL;
}

// The largest magnitude, NaN aside, as the bits of a float: integers, for then the compiler makes vectors of it.
static inline int32_t largest_bits(const float* x, int64_t n, int32_t largest) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
    const int32_t number = bits > 0x7f800000 ? 0 : bits;
    largest = number > largest ? number : largest;
  }
  return largest;
}

// The power of two that brings a row's largest scale or minimum to [2^13, 2^14): float16 then holds 27 binades below it
// as normal numbers. 1 where there is nothing to bring.
static inline float raising_power(int32_t largest) {
  const float value = std::bit_cast<float>(largest);
  if (!(value > 0) || !std::isfinite(value)) return 1.0f;
  int exponent;
  std::frexp(value, &exponent);
  return std::ldexp(1.0f, 14 - (exponent < -100 ? -100 : exponent));  // keeps its inverse normal, too
}

constexpr int kFiner = 4;  // steps of a pair to one of its wider group
constexpr int kPairedLevel = 128 / kFiner;

// Neighbouring groups get one scale, a quarter of the wider one's: a token has one scale for 32 inputs, too, so that a
// product then takes half the multiplications of int32 sums with scales. Levels of 6 bits leave room for it in 8. Those
// of the wider group stay exact (but for -32 times a ratio of -4), those of the other are rounded to a quarter of its
// step, which adds to the variance of rounding to six bits a sixteenth at the most.
template <BlockFormat F>
void pair_groups(uint8_t (&code)[F::block], float* scale) {
  static_assert(F::zero <= kPairedLevel && F::table == nullptr && !F::has_min);
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, to nearest, in the low bits
  for (int pair = 0; pair < F::block / (2 * F::group); ++pair) {
    const float first = scale[2 * pair], second = scale[2 * pair + 1];
    const float step = (std::fabs(first) < std::fabs(second) ? second : first) / kFiner;
    scale[pair] = step;
    const bool number = step != 0 && std::isfinite(step);
    for (int half = 0; half < 2; ++half) {
      const float ratio = number ? (half ? second : first) / step : 0.0f;
      uint8_t* c = code + (2 * pair + half) * F::group;
      for (int i = 0; i < F::group; ++i) {
        const float level = static_cast<float>(c[i] - F::zero) * ratio + kRound;
        const int32_t nearest = std::bit_cast<int32_t>(level) - std::bit_cast<int32_t>(kRound);
        c[i] = static_cast<uint8_t>((nearest > 127 ? 127 : nearest) + 128);
      }
    }
  }
}

// Takes `blocks` consecutive blocks apart. Returns the row's row_scale.
template <BlockFormat F>
float lane_row(const uint8_t* source, int64_t blocks, const LaneRow& out) {
  constexpr int kGroups = F::block / Lane<F>::group, kHalf = F::group / 2;
  uint8_t* codes = out.codes;
  for (int64_t b = 0; b < blocks; ++b, source += F::bytes) {
    uint8_t code[F::block];
    float scale[F::block / F::group], minimum[F::block / F::group];
    __builtin_prefetch(source + kReadAhead);
    F::unpack(source, code, scale, minimum);
    if constexpr (Lane<F>::paired) pair_groups<F>(code, scale);
    if constexpr (has_half_scales(F::id)) {
      out.scale[b] = load_u16(source);
      if constexpr (F::has_min) out.minimum[b] = load_u16(source + 2);
    } else {
      std::memcpy(out.exact_scale + b * kGroups, scale, kGroups * sizeof(float));
      if constexpr (F::has_min) std::memcpy(out.exact_minimum + b * kGroups, minimum, kGroups * sizeof(float));
    }
    if constexpr (F::bits == 8) {
      std::memcpy(codes, code, F::block);
      codes += F::block;
    } else {
      for (int g = 0; g < kGroups; ++g)
        for (int i = 0; i < kHalf; ++i)
          *codes++ = static_cast<uint8_t>(code[g * F::group + i] | code[g * F::group + kHalf + i] << 4);
    }
  }
  if constexpr (has_half_scales(F::id)) return 1.0f;
  const int64_t groups = blocks * kGroups;
  int32_t largest = largest_bits(out.exact_scale, groups, 0);
  if constexpr (F::has_min) largest = largest_bits(out.exact_minimum, groups, largest);
  const float up = raising_power(largest);
  for (int64_t g = 0; g < groups; ++g) out.scale[g] = f32_to_f16(out.exact_scale[g] * up);
  if constexpr (F::has_min)
    for (int64_t g = 0; g < groups; ++g) out.minimum[g] = f32_to_f16(out.exact_minimum[g] * up);
  return 1.0f / up;
}

}  // namespace herder
