// Q6_K: 256 values in 16 groups of 16; 6-bit codes around 32, signed 8-bit scales.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: low four bits, 128 bytes | 128: high two bits, 64 bytes | 192: scales, 16 signed bytes | 208: d, f16 |
// Bytes 64 h .. 64 h + 63 of the low bits hold values 128 h .. 128 h + 127 as nibbles, low ones first; the high bits
// are laid out as the codes of Q2_K.
struct Q6_K {
  static constexpr int32_t id = HD_Q6_K;
  static constexpr const char* name = "Q6_K";
  static constexpr int block = 256, bytes = 210;
  static constexpr int bits = 8, group = 16, zero = 32;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    const float d = load_f16(source + 208);
    for (int g = 0; g < 16; ++g) scale[g] = d * static_cast<float>(static_cast<int8_t>(source[192 + g]));
    for (int h = 0; h < 2; ++h) {
      split_nibbles(source + 64 * h, 64, code + 128 * h);
      const uint8_t* high = source + 128 + 32 * h;
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < 32; ++l) code[128 * h + 32 * j + l] |= static_cast<uint8_t>((high[l] >> (2 * j) & 3) << 4);
    }
  }
};
static_assert(BlockFormat<Q6_K>);

}  // namespace herder
