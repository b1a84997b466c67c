// Keys and values of a head in a page: where each lies, and how it is rounded.
//
// A product takes its inputs in pairs, two bfloat16 in the 32 bits of a lane, as matrix tiles want them:
//   K [head_dim / 2][32 tokens][2 dimensions]    lanes are tokens
//   V [16][padded head_dim][2 tokens]            lanes are dimensions
// float32 has the same two in rows of their own: K [head_dim][32 tokens], V [32 tokens][padded head_dim].
#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int kPage = HD_PAGE_TOKENS;
static_assert(kPage == 2 * kLanes);

// The nearest multiple of 2^-40, then the upper 8 bits of it (Dekker 1971): a bfloat16. Products and sums of such
// numbers, and of them and weights (multiples of 2^-46, see f_exp_bf16), are multiples of 2^-86, so nothing ever
// underflows, and it does not matter that tiles would flush what does. Above 2^111 it is NaN.
HD_INLINE F f_bf16(F x) {
  const F grid = f_set1(0x1.8p-17f);
  x = f_sub(f_add(x, grid), grid);
  const F wide = f_mul(x, f_set1(65537.0f));
  return f_sub(wide, f_sub(wide, x));
}

template <bool Half>
struct KvPage {
  static constexpr size_t kKeyPair = size_t{kPage} * (Half ? 4 : 8);  // bytes from two dimensions to the next two
  static HD_INLINE size_t value_pair(int32_t head_dim) {
    return static_cast<size_t>(padded(head_dim)) * (Half ? 4 : 8);
  }
  static HD_INLINE size_t values(int32_t head_dim) { return static_cast<size_t>(head_dim) / 2 * kKeyPair; }
  static HD_INLINE int32_t padded(int32_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

  // 16 lanes of both inputs of a pair.
  static HD_INLINE void load(const uint8_t* p, size_t pair, F& even, F& odd) {
    if constexpr (Half) {
      even = f_even_bf16(reinterpret_cast<const uint16_t*>(p));
      odd = f_odd_bf16(reinterpret_cast<const uint16_t*>(p));
    } else {
      even = f_load(reinterpret_cast<const float*>(p));
      odd = f_load(reinterpret_cast<const float*>(p + pair / 2));
    }
  }

  static HD_INLINE void put(uint8_t* block, size_t pair_bytes, int32_t input, int32_t lane, float x) {
    uint8_t* pair = block + static_cast<size_t>(input / 2) * pair_bytes + static_cast<size_t>(lane) * 4;
    if constexpr (Half) {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      const auto upper = static_cast<uint16_t>(bits >> 16);
      std::memcpy(pair + input % 2 * 2, &upper, 2);
    } else {
      std::memcpy(pair + static_cast<size_t>(input % 2) * pair_bytes / 2, &x, 4);
    }
  }

  static void write(uint8_t* block, int32_t head_dim, int32_t slot, const float* k, const float* v) {
    uint8_t* value = block + values(head_dim);
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      const int32_t n = head_dim - d < kLanes ? head_dim - d : kLanes;
      float lanes[2][kLanes];
      for (int i = 0; i < 2; ++i) {
        const float* x = (i ? v : k) + d;
        const F row = n == kLanes ? f_load(x) : load_tail(x, n);
        f_store(lanes[i], Half ? f_bf16(row) : row);
      }
      for (int32_t i = 0; i < n; ++i) put(block, kKeyPair, d + i, slot, lanes[0][i]);
      for (int32_t i = 0; i < n; ++i) put(value, value_pair(head_dim), slot, d + i, lanes[1][i]);
    }
  }
};

inline void kv_write(uint8_t* block, int32_t head_dim, bool half, int32_t slot, const float* k, const float* v) {
  half ? KvPage<true>::write(block, head_dim, slot, k, v) : KvPage<false>::write(block, head_dim, slot, k, v);
}

}  // namespace herder::HD_ISA_NAMESPACE
