// Q4_0: 32 values, 4-bit codes around 8, one scale.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, f16 | 2: codes, 16 bytes of nibbles |
struct Q4_0 {
  static constexpr int32_t id = HD_Q4_0;
  static constexpr const char* name = "Q4_0";
  static constexpr int block = 32, bytes = 18;
  static constexpr int bits = 4, group = 32, zero = 8;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    scale[0] = load_f16(source);
    split_nibbles(source + 2, 16, code);
  }
};
static_assert(BlockFormat<Q4_0>);

}  // namespace herder
