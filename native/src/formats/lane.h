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

// Takes `blocks` consecutive blocks apart. Returns the row's row_scale.
template <BlockFormat F>
float lane_row(const uint8_t* source, int64_t blocks, const LaneRow& out) {
  constexpr int kGroups = F::block / F::group, kHalf = F::group / 2;
  uint8_t* codes = out.codes;
  for (int64_t b = 0; b < blocks; ++b, source += F::bytes) {
    uint8_t code[F::block];
    float scale[kGroups], minimum[kGroups];
    __builtin_prefetch(source + kReadAhead);
    F::unpack(source, code, scale, minimum);
    if constexpr (has_half_scales(F::id)) {
      out.scale[b] = load_u16(source);
      if constexpr (F::has_min) out.minimum[b] = load_u16(source + 2);
    } else {
      std::memcpy(out.exact_scale + b * kGroups, scale, sizeof scale);
      if constexpr (F::has_min) std::memcpy(out.exact_minimum + b * kGroups, minimum, sizeof minimum);
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
