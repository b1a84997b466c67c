// Q2_K: 256 values in 16 groups of 16; 2-bit codes, 4-bit scales and minima.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: 16 bytes, scale (low nibble) and minimum (high) of each group | 16: codes, 64 bytes | 80: d, f16 | 82: dmin, f16
// | Bytes 32 h .. 32 h + 31 of the codes hold values 128 h .. 128 h + 127: bits 2 j and 2 j + 1 of byte l are value 32
// j + l.
struct Q2_K {
  static constexpr int32_t id = HD_Q2_K;
  static constexpr const char* name = "Q2_K";
  static constexpr int block = 256, bytes = 84;
  static constexpr int bits = 4, group = 16, zero = 0;
  static constexpr bool has_min = true;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
    const float d = load_f16(source + 80), dmin = load_f16(source + 82);
    for (int g = 0; g < 16; ++g) {
      scale[g] = d * static_cast<float>(source[g] & 15);
      minimum[g] = -(dmin * static_cast<float>(source[g] >> 4));
    }
    split_pairs(source + 16, code);
  }

  static void split_pairs(const uint8_t* packed, uint8_t* code) {
    for (int h = 0; h < 2; ++h)
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < 32; ++l) code[128 * h + 32 * j + l] = packed[32 * h + l] >> (2 * j) & 3;
  }
};
static_assert(BlockFormat<Q2_K>);

}  // namespace herder
