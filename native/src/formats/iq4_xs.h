// IQ4_XS: 256 values in 8 groups of 32; the codes of IQ4_NL, 6-bit signed scales.
#pragma once

#include "formats/block.h"
#include "formats/iq4_nl.h"

namespace herder {

// | 0: d, f16 | 2: high two bits of the scales, u16 | 4: low four bits of the scales, 4 bytes | 8: codes, 128 bytes |
// Scale g, in 0..63 around 32: bits 2 g and 2 g + 1 of the u16, nibble g of the 4 bytes. Bytes 16 g .. 16 g + 15 of the
// codes hold values 32 g .. 32 g + 31 as nibbles, low ones first.
struct IQ4_XS {
  static constexpr int32_t id = HD_IQ4_XS;
  static constexpr const char* name = "IQ4_XS";
  static constexpr int block = 256, bytes = 136;
  static constexpr int bits = 4, group = 32, zero = 0;
  static constexpr bool has_min = false;
  static constexpr const int8_t* table = IQ4_NL::levels;

  static void unpack(const uint8_t* source, uint8_t* code, float* scale, float*) {
    const float d = load_f16(source);
    const int high = load_u16(source + 2);
    for (int g = 0; g < 8; ++g) {
      const int low = source[4 + g / 2] >> (4 * (g % 2)) & 15;
      scale[g] = d * static_cast<float>((low | (high >> (2 * g) & 3) << 4) - 32);
      split_nibbles(source + 8 + 16 * g, 16, code + 32 * g);
    }
  }
};
static_assert(BlockFormat<IQ4_XS>);

}  // namespace herder
