// Q5_K: 256 values in 8 groups of 32; 5-bit codes, 6-bit scales and minima.
#pragma once

#include "formats/block.h"
#include "formats/q4_k.h"

namespace herder {

// | 0: d, dmin, scales and minima as in Q4_K | 16: fifth bits, 32 bytes | 48: low four bits, 128 bytes as in Q4_K |
// Bit g of byte l of the fifth bits belongs to value 32 g + l.
struct Q5_K {
  static constexpr int32_t id = HD_Q5_K;
  static constexpr const char* name = "Q5_K";
  static constexpr int block = 256, bytes = 176;
  static constexpr int bits = 8, group = 32, zero = 0;
  static constexpr bool has_min = true;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
    Q4_K::unpack_scales(source, scale, minimum);
    for (int c = 0; c < 4; ++c) split_nibbles(source + 48 + 32 * c, 32, code + 64 * c);
    for (int g = 0; g < 8; ++g)
      for (int l = 0; l < 32; ++l) code[32 * g + l] |= static_cast<uint8_t>((source[16 + l] >> g & 1) << 4);
  }
};
static_assert(BlockFormat<Q5_K>);

}  // namespace herder
