// Q4_K: 256 values in 8 groups of 32; 4-bit codes, 6-bit scales and minima.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: d, f16 | 2: dmin, f16 | 4: scales and minima, 12 bytes | 16: codes, 128 bytes |
// Bytes 32 c .. 32 c + 31 of the codes hold values 64 c .. 64 c + 63 as nibbles, low ones first.
struct Q4_K {
  static constexpr int32_t id = HD_Q4_K;
  static constexpr const char* name = "Q4_K";
  static constexpr int block = 256, bytes = 144;
  static constexpr int bits = 4, group = 32, zero = 0;
  static constexpr bool has_min = true;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
    unpack_scales(source, scale, minimum);
    for (int c = 0; c < 4; ++c) split_nibbles(source + 16 + 32 * c, 32, code + 64 * c);
  }

  // The first 16 bytes of a block. Of the 12 packed bytes p, group g < 4 has its scale in the low six bits of p[g] and
  // its minimum in those of p[4 + g]; group g + 4 has its scale's low four bits in the low nibble of p[8 + g], its
  // minimum's in the high nibble, and the high two bits of each in the top of p[g] and p[4 + g].
  static void unpack_scales(const uint8_t* source, float* scale, float* minimum) {
    const float d = load_f16(source), dmin = load_f16(source + 2);
    const uint8_t* p = source + 4;
    for (int g = 0; g < 4; ++g) {
      scale[g] = d * static_cast<float>(p[g] & 63);
      minimum[g] = -(dmin * static_cast<float>(p[4 + g] & 63));
      scale[4 + g] = d * static_cast<float>((p[8 + g] & 15) | (p[g] >> 6) << 4);
      minimum[4 + g] = -(dmin * static_cast<float>(p[8 + g] >> 4 | (p[4 + g] >> 6) << 4));
    }
  }
};
static_assert(BlockFormat<Q4_K>);

}  // namespace herder
