// Q4_1: 32 values, 4-bit codes from a minimum, one scale.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, f16 | 2: minimum, f16 | 4: codes, 16 bytes of nibbles |
struct Q4_1 {
  static constexpr int32_t id = HD_Q4_1;
  static constexpr const char* name = "Q4_1";
  static constexpr int block = 32, bytes = 20;
  static constexpr int bits = 4, group = 32, zero = 0;
  static constexpr bool has_min = true;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
    scale[0] = load_f16(source);
    minimum[0] = load_f16(source + 2);
    split_nibbles(source + 4, 16, code);
  }
};
static_assert(BlockFormat<Q4_1>);

}  // namespace herder
