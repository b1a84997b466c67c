// Q5_1: 32 values, 5-bit codes from a minimum, one scale.
#pragma once

#include "formats/block.h"
#include "formats/q5_0.h"

namespace herder {

// | 0: scale, f16 | 2: minimum, f16 | 4: fifth bits, bit i for value i | 8: low four bits, 16 bytes of nibbles |
struct Q5_1 {
  static constexpr int32_t id = HD_Q5_1;
  static constexpr const char* name = "Q5_1";
  static constexpr int block = 32, bytes = 24;
  static constexpr int bits = 8, group = 32, zero = 0;
  static constexpr bool has_min = true;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
    scale[0] = load_f16(source);
    minimum[0] = load_f16(source + 2);
    split_nibbles(source + 8, 16, code);
    Q5_0::add_fifth_bits(load_u32(source + 4), code);
  }
};
static_assert(BlockFormat<Q5_1>);

}  // namespace herder
