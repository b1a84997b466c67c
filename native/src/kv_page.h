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

  // `count` tokens from slot `slot` on; rows of k and v are `stride` floats apart. Writes nothing of other tokens,
  // which other threads may write meanwhile.
  static void write(uint8_t* block, int32_t head_dim, int32_t slot, int32_t count, const float* k, const float* v,
                    int64_t stride) {
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      const int32_t n = head_dim - d < kLanes ? head_dim - d : kLanes;
      const auto entries = [&](const float* x) __attribute__((always_inline)) {
        const F row = n == kLanes ? f_load(x + d) : load_tail(x + d, n);
        return Half ? f_bf16(row) : row;
      };
      uint8_t* keys = block + (static_cast<size_t>(d) * kEntry * kPage + static_cast<size_t>(slot) * 4);
      for (int32_t t = 0; t < count; ++t, keys += 4)
        n == kLanes ? write_keys(keys, kLanes, entries(k + t * stride)) : write_keys(keys, n, entries(k + t * stride));
      uint8_t* value = block + values(head_dim) + static_cast<size_t>(d) * 4;
      for (int32_t t = 0; t < count;) {
        uint8_t* pair = value + static_cast<size_t>((slot + t) / 2) * value_pair(head_dim);
        const int32_t odd = (slot + t) % 2, two = !odd && t + 1 < count;
        const F x = entries(v + t * stride);
        if constexpr (!Half) {
          f_store(reinterpret_cast<float*>(pair + static_cast<size_t>(odd) * value_pair(head_dim) / 2), x);
        } else if (two) {
          f_store_bf16_pairs(reinterpret_cast<uint16_t*>(pair), x, entries(v + (t + 1) * stride));
        } else {
          uint16_t lone[kLanes];
          f_store_bf16(lone, x);
          for (int32_t i = 0; i < kLanes; ++i) std::memcpy(pair + 4 * i + 2 * odd, lone + i, 2);
        }
        t += Half ? 1 + two : 1;
      }
    }
  }

 private:
  static constexpr size_t kEntry = Half ? 2 : 4;

  // n dimensions of a token's keys. Either kind of entry makes rows of 4 bytes a token.
  static HD_INLINE void write_keys(uint8_t* rows, int32_t n, F x) {
    alignas(64) uint8_t entries[kLanes * kEntry];
    if constexpr (Half) {
      f_store_bf16(reinterpret_cast<uint16_t*>(entries), x);
    } else {
      f_store(reinterpret_cast<float*>(entries), x);
    }
    const size_t bytes = static_cast<size_t>(n) * kEntry;
    for (size_t at = 0; at < bytes; at += 4) std::memcpy(rows + at * kPage, entries + at, 4);
  }
};

inline void kv_write(uint8_t* block, int32_t head_dim, bool half, int32_t slot, int32_t count, const float* k,
                     const float* v, int64_t stride) {
  half ? KvPage<true>::write(block, head_dim, slot, count, k, v, stride)
       : KvPage<false>::write(block, head_dim, slot, count, k, v, stride);
}

}  // namespace herder::HD_ISA_NAMESPACE
