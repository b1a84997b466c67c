// The compute layouts: what a weight matrix looks like after packing.
//
// A matrix is cut into panels of 16 rows (one lane each). Integer layouts store, for every unit of 64 inputs,
//   scales  (64 / group) x 16 float16
//   minima  (64 / group) x 16 float16      only where the format has them
//   codes   4-bit: 8 x 64 bytes, 8-bit: 16 x 64 bytes
// in one stream, so a panel is read front to back. 64 code bytes hold 4 consecutive inputs (a quad) of 16 rows. In the
// 4-bit layout each byte carries two quads of its group: the low nibble quad i, the high nibble quad i + group / 8.
//   weight = row_scale[row] * (scale * (table ? table[code] : code - zero) + minimum)
// code - zero fits an int8 (tiles use it so). row_scale is a power of two that keeps float16 scales in range; it is 1
// where the format's own scales are float16.
//
// Float layouts store 16 rows side by side for every input: [inputs][16] of float32 or float16. bfloat16 comes in pairs
// of inputs, [inputs / 2][16][2], padded with zeros to blocks of 32 inputs; weights below 2^-56 are zero
// (matmul_bf16.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace herder {

constexpr int kLanes = 16;         // rows of a panel
constexpr int kUnit = 64;          // inputs of a unit
constexpr int kRoundedBlock = 32;  // inputs of a bfloat16 layout come in blocks of these
constexpr int kTokenPad = 16;      // activation rows are allocated in multiples of this (an AMX tile)

enum class Layout : int32_t { kNibble, kNibbleTable, kByte, kF32, kF16, kBF16 };

// What products read besides float rows: int8, or rounded to bfloat16. Flags, for a model may need both.
enum Prepared : uint32_t { kFloat = 0, kQuantized = 1, kRounded = 2 };

struct Matrix {
  Layout layout = Layout::kF32;
  int32_t group = 0;  // 16 or 32 inputs share a scale
  bool has_min = false;
  bool scaled_rows = false;  // whether rows have a row_scale other than 1
  int32_t zero = 0;
  int8_t table[16] = {};
  int64_t rows = 0, cols = 0;
  int64_t padded_cols = 0;  // integer layouts: multiple of kUnit; bfloat16: of kRoundedBlock
  int64_t panels = 0;
  size_t panel_bytes = 0;
  uint8_t* data = nullptr;      // panels * panel_bytes, 64-byte aligned
  float* row_scale = nullptr;   // panels * 16, or null when all are 1
  const float* bias = nullptr;  // panels * 16, or null

  // always inlined: this header is compiled for several instruction sets, and one set's copy must not serve another
  [[gnu::always_inline]] bool integer() const { return layout <= Layout::kByte; }
  [[gnu::always_inline]] uint32_t prepared() const {
    return integer() ? kQuantized : layout == Layout::kBF16 ? kRounded : kFloat;
  }
  [[gnu::always_inline]] int groups_per_unit() const { return kUnit / group; }
  [[gnu::always_inline]] size_t unit_scale_bytes() const {
    return static_cast<size_t>(groups_per_unit()) * kLanes * 2 * (has_min ? 2 : 1);
  }
  [[gnu::always_inline]] size_t unit_code_bytes() const { return layout == Layout::kByte ? 1024 : 512; }
  [[gnu::always_inline]] size_t unit_bytes() const { return unit_scale_bytes() + unit_code_bytes(); }
};

constexpr int kActivationGroup = 32;  // inputs of a token that share an int8 scale

static inline int64_t pad_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// What a product needs to know of 64 quantized inputs of a token besides their bytes. `sum` and `mass` are over 16 or
// 32 inputs: sum of q (int32), and scale * sum, which a group's minimum is multiplied with.
enum ActivationField : int { kScale = 0, kMass32 = 2, kSum32 = 4, kMass16 = 6, kSum16 = 10, kActivationFields = 14 };

// Activations of a block of tokens: float rows for float32 and float16 layouts; for integer layouts bytes and fields,
// for bfloat16 rounded inputs, unit by unit (block by block) with the tokens side by side, so that a micro-kernel
// reaches all its tokens from one pointer at constant distances.
struct Activations {
  const float* x = nullptr;  // [tokens][stride]
  int64_t stride = 0;
  const int8_t* q = nullptr;         // [unit][tokens][64]
  const float* fields = nullptr;     // [unit][kActivationFields][tokens]; sums hold the bits of an int32
  const uint8_t* rounded = nullptr;  // [block][tokens][32] of bfloat16, or of float32 that bfloat16 holds
  int64_t rounded_bytes = 0;         // of one of these
  int64_t tokens = 0;                // allocated: the distances between units, fields and blocks
  bool round = false;                // integer panels are to be multiplied as bfloat16 (bf16_panel.h), with `rounded`
};

}  // namespace herder
