// Q5_0: 32 values, 5-bit codes around 16, one scale.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, f16 | 2: fifth bits, bit i for value i | 6: low four bits, 16 bytes of nibbles |
struct Q5_0 {
  static constexpr int32_t id = HD_Q5_0;
  static constexpr const char* name = "Q5_0";
  static constexpr int block = 32, bytes = 22;
  static constexpr int bits = 8, group = 32, zero = 16;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    scale[0] = load_f16(source);
    split_nibbles(source + 6, 16, code);
    add_fifth_bits(load_u32(source + 2), code);
  }

  static void add_fifth_bits(uint32_t high, uint8_t* code) {
    for (int i = 0; i < 32; ++i) code[i] |= static_cast<uint8_t>((high >> i & 1) << 4);
  }
};
static_assert(BlockFormat<Q5_0>);

}  // namespace herder
