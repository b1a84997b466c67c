// What every storage format has in common: the words of a block, float16 and bfloat16, and the shape of a format.
//
// The byte layouts are those of GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-common.h.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>

#include "herder.h"

namespace herder {

static_assert(std::endian::native == std::endian::little, "storage formats are read in place, as little-endian words");

// A storage format cuts each row into blocks of `block` values held in `bytes` bytes. unpack() takes one block apart
// into
//   code[block]                one unsigned code a value; `bits` = 4 promises that codes are below 16, else 8
//   scale[block / group]       one scale for `group` consecutive values
//   minimum[block / group]     only if has_min; otherwise not touched and may be null
// and in float32, each operation rounded,
//   value = scale * level            level = table ? table[code] : code - zero
//   value = scale * level + minimum  if has_min
// is what the `gguf` Python package's dequantize gives, bit for bit (a NaN for a NaN). unpack() accepts any bytes.
template <class F>
concept BlockFormat = requires(const uint8_t* source, uint8_t* code, float* scale, float* minimum) {
  { F::id } -> std::convertible_to<int32_t>;
  { F::name } -> std::convertible_to<const char*>;
  { F::block } -> std::convertible_to<int>;
  { F::bytes } -> std::convertible_to<int>;
  { F::bits } -> std::convertible_to<int>;
  { F::group } -> std::convertible_to<int>;
  { F::has_min } -> std::convertible_to<bool>;
  { F::zero } -> std::convertible_to<int>;
  { F::table } -> std::convertible_to<const int8_t*>;
  { F::unpack(source, code, scale, minimum) } -> std::same_as<void>;
} && F::block % F::group == 0 && (F::group == 16 || F::group == 32) && (F::bits == 4 || F::bits == 8);

// The largest block of any format, and the most groups in one: sizes of the arrays unpack() writes to.
inline constexpr int kMaxBlock = 256;
inline constexpr int kMaxGroups = 16;

// Functions in these headers are `static inline`, so that a file built for one ISA never lends its copy to another.

static inline uint16_t load_u16(const uint8_t* source) {
  uint16_t word;
  std::memcpy(&word, source, sizeof word);
  return word;
}

static inline uint32_t load_u32(const uint8_t* source) {
  uint32_t word;
  std::memcpy(&word, source, sizeof word);
  return word;
}

// IEEE 754 binary16 -> binary32, exact. A NaN keeps its sign and payload.
static inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: a product of normal numbers, so flush-to-zero modes cannot change it
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t rebiased = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | rebiased << 23 | mantissa << 13);
}

// binary32 -> binary16, to nearest, ties to even; overflow gives infinity, a NaN a quiet NaN. Without branches, so that
// the compiler makes vectors of it.
static inline uint16_t f32_to_f16(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  const uint32_t sign = word >> 16 & 0x8000u;
  const uint32_t magnitude = word & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;  // rebias by 15 - 127
  // below 2^-14: adding 1/2 leaves units of 2^-24, the processor rounds to them
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // from 65520, half way to the power of two after the largest
  half = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : half;
  return static_cast<uint16_t>(sign | half);
}

static inline float bf16_to_f32(uint16_t brain) { return std::bit_cast<float>(static_cast<uint32_t>(brain) << 16); }

// binary32 -> bfloat16, to nearest, ties to even; a NaN becomes quiet.
static inline uint16_t f32_to_bf16(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(word >> 16 | 0x40u);
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

// Zero for what is below 2^-56 (matmul_bf16.h says why), else the number itself.
static inline uint16_t keep_bf16(uint16_t brain) { return (brain & 0x7fffu) < (127 - 56) << 7 ? uint16_t{0} : brain; }

static inline int level_of(uint8_t code, int zero, const int8_t* table) {
  return table != nullptr ? table[code] : code - zero;
}

static inline float load_f16(const uint8_t* source) { return f16_to_f32(load_u16(source)); }

// n bytes of two codes each: the low nibbles are codes 0..n-1, the high nibbles n..2n-1.
static inline void split_nibbles(const uint8_t* packed, int n, uint8_t* code) {
  for (int i = 0; i < n; ++i) {
    code[i] = packed[i] & 15;
    code[n + i] = packed[i] >> 4;
  }
}

}  // namespace herder
