// IQ4_NL: 32 values, 4-bit codes into a table of 16 unevenly spaced levels, one scale.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, f16 | 2: codes, 16 bytes of nibbles |
struct IQ4_NL {
  static constexpr int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

  static constexpr int32_t id = HD_IQ4_NL;
  static constexpr const char* name = "IQ4_NL";
  static constexpr int block = 32, bytes = 18;
  static constexpr int bits = 4, group = 32, zero = 0;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = levels;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    scale[0] = load_f16(source);
    split_nibbles(source + 2, 16, code);
  }
};
static_assert(BlockFormat<IQ4_NL>);

}  // namespace herder
