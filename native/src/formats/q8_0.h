// Q8_0: 32 values, signed bytes, one scale.
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, f16 | 2: 32 signed bytes | ; a code is the signed byte + 128
struct Q8_0 {
  static constexpr int32_t id = HD_Q8_0;
  static constexpr const char* name = "Q8_0";
  static constexpr int block = 32, bytes = 34;
  static constexpr int bits = 8, group = 32, zero = 128;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = nullptr;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    scale[0] = load_f16(source);
    for (int i = 0; i < 32; ++i) code[i] = source[2 + i] ^ 0x80;
  }
};
static_assert(BlockFormat<Q8_0>);

}  // namespace herder
