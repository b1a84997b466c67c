// MXFP4: 32 values, E2M1 floats, one power-of-two scale (OCP Microscaling Formats v1.0).
#pragma once

#include "formats/block.h"

namespace herder {

// | 0: scale, E8M0 | 1: codes, 16 bytes of nibbles |
// The table holds the E2M1 values doubled, to be integers, and the scale is half of 2^(e - 127). Code 8, E2M1's -0, is
// +0 as in gguf; e = 255, NaN in the specification, is 2^127 as in gguf.
struct MXFP4 {
  static constexpr int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

  static constexpr int32_t id = HD_MXFP4;
  static constexpr const char* name = "MXFP4";
  static constexpr int block = 32, bytes = 17;
  static constexpr int bits = 4, group = 32, zero = 0;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = doubled;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    const uint32_t e = source[0];
    scale[0] = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);  // below 2^-126: subnormal
    split_nibbles(source + 1, 16, code);
  }
};
static_assert(BlockFormat<MXFP4>);

}  // namespace herder
