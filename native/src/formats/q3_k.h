// Q3_K: 256 values in 16 groups of 16; 3-bit codes around 4, 6-bit signed scales.
#pragma once

#include "formats/block.h"
#include "formats/q2_k.h"

namespace herder {

// | 0: third bits, 32 bytes | 32: low two bits, 64 bytes as in Q2_K | 96: scales, 12 bytes | 108: d, f16 |
// Bit b of byte l of the third bits belongs to value 32 b + l. Scale g, in 0..63 around 32, has its low four bits in
// byte g % 8 (low nibble for g < 8) and its high two in bits 2 (g / 4) and up of byte 8 + g % 4.
struct Q3_K {
  static constexpr int32_t id = HD_Q3_K;
  static constexpr const char* name = "Q3_K";
  static constexpr int block = 256, bytes = 110;
  static constexpr int bits = 4, group = 16, zero = 4;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    const uint8_t* packed = source + 96;
    const float d = load_f16(source + 108);
    for (int g = 0; g < 16; ++g) {
      const int low = packed[g % 8] >> (4 * (g / 8)) & 15;
      const int high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
      scale[g] = d * static_cast<float>((low | high << 4) - 32);
    }
    Q2_K::split_pairs(source + 32, code);
    for (int b = 0; b < 8; ++b)
      for (int l = 0; l < 32; ++l) code[32 * b + l] |= static_cast<uint8_t>((source[l] >> b & 1) << 2);
  }
};
static_assert(BlockFormat<Q3_K>);

}  // namespace herder
