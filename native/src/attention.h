// Attention over paged keys and values, one fixed order for prefill and decode alike.
//
// K of a (page, head) is stored transposed, [head_dim][32 tokens], so lanes are keys; V is [32 tokens][head_dim], so
// lanes are output dimensions. Online softmax (Milakov and Gimelshein 2018) runs page by page into a partial result of
// kSplitPages pages; partial results merge in order. A query row's bits depend on its own q and its keys only: not on
// which rows share the tile, not on how the prompt was chunked, not on the thread that ran it.
#pragma once

#include <type_traits>

#include "../include/herder.h"
#include "elementwise.h"
#include "formats/block.h"
#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int kPage = HD_PAGE_TOKENS;
static_assert(kPage == 2 * kLanes);

template <bool Half>
HD_INLINE F kv_load(const uint8_t* p, int64_t index) {
  if constexpr (Half) return f_load_f16(reinterpret_cast<const uint16_t*>(p) + index);
  return f_load(reinterpret_cast<const float*>(p) + index);
}

template <bool Half, int R>
HD_INLINE void page_scores(const AttentionRow* rows, const uint8_t* k, int32_t head_dim, float* scores) {
  F lo[R], hi[R];
  for (int r = 0; r < R; ++r) lo[r] = hi[r] = f_zero();
  for (int32_t d = 0; d < head_dim; ++d) {
    const F k0 = kv_load<Half>(k, static_cast<int64_t>(d) * kPage);
    const F k1 = kv_load<Half>(k, static_cast<int64_t>(d) * kPage + kLanes);
    for (int r = 0; r < R; ++r) {
      const F q = f_set1(rows[r].q[d]);
      lo[r] = f_fma(q, k0, lo[r]);
      hi[r] = f_fma(q, k1, hi[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    f_store(scores + r * kPage, lo[r]);
    f_store(scores + r * kPage + kLanes, hi[r]);
  }
}

template <bool Half, int R>
HD_INLINE void page_values(const float* weights, const uint8_t* v, int32_t head_dim, int32_t tokens, float* out) {
  int32_t d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    F lo[R], hi[R];
    for (int r = 0; r < R; ++r) {
      lo[r] = f_load(out + r * head_dim + d);
      hi[r] = f_load(out + r * head_dim + d + kLanes);
    }
    for (int32_t t = 0; t < tokens; ++t) {
      const F v0 = kv_load<Half>(v, static_cast<int64_t>(t) * head_dim + d);
      const F v1 = kv_load<Half>(v, static_cast<int64_t>(t) * head_dim + d + kLanes);
      for (int r = 0; r < R; ++r) {
        const F w = f_set1(weights[r * kPage + t]);
        lo[r] = f_fma(w, v0, lo[r]);
        hi[r] = f_fma(w, v1, hi[r]);
      }
    }
    for (int r = 0; r < R; ++r) {
      f_store(out + r * head_dim + d, lo[r]);
      f_store(out + r * head_dim + d + kLanes, hi[r]);
    }
  }
  for (; d < head_dim; d += 8) {  // head_dim is a multiple of 8: the odd tails, a scalar FMA a lane
    for (int r = 0; r < R; ++r)
      for (int32_t t = 0; t < tokens; ++t)
        for (int i = 0; i < 8; ++i) {
          const int64_t at = static_cast<int64_t>(t) * head_dim + d + i;
          const float x =
              Half ? f16_to_f32(reinterpret_cast<const uint16_t*>(v)[at]) : reinterpret_cast<const float*>(v)[at];
          out[r * head_dim + d + i] = __builtin_fmaf(weights[r * kPage + t], x, out[r * head_dim + d + i]);
        }
  }
}

HD_INLINE void scale_row(float* row, int32_t n, float factor) {
  for (int32_t d = 0; d < n; ++d) row[d] *= factor;
}

// total and partial are softmax sums relative to their maxima: brings both to the larger one and adds.
HD_INLINE void merge(const float* partial, float m, float l, float* total, float& total_m, float& total_l, int32_t n) {
  if (m == -__builtin_inff()) return;
  if (total_m == -__builtin_inff()) {
    std::memcpy(total, partial, sizeof(float) * static_cast<size_t>(n));
    total_m = m;
    total_l = l;
    return;
  }
  const float top = m > total_m ? m : total_m;
  const float a = exp_one(total_m - top), b = exp_one(m - top);
  for (int32_t d = 0; d < n; ++d) total[d] = __builtin_fmaf(total[d], a, partial[d] * b);
  total_l = __builtin_fmaf(total_l, a, l * b);
  total_m = top;
}

// R query rows, all pages. scratch: scores [R][32], partial [R][head_dim], total [R][head_dim].
template <bool Half, int R>
void attention_tile(const AttentionRow* rows, const KvView& kv, float* scratch) {
  const int32_t hd = kv.head_dim;
  float* scores = scratch;
  float* partial = scores + kAttentionTile * kPage;
  float* total = partial + kAttentionTile * static_cast<size_t>(hd);
  float m[R], l[R], total_m[R], total_l[R];
  int32_t last = 0, first = INT32_MAX;
  for (int r = 0; r < R; ++r) {
    last = rows[r].position > last ? rows[r].position : last;
    first = rows[r].first < first ? rows[r].first : first;
    total_m[r] = -__builtin_inff();
    total_l[r] = 0;
  }
  std::memset(total, 0, sizeof(float) * static_cast<size_t>(R) * static_cast<size_t>(hd));
  const int32_t last_page = last / kPage;
  const size_t v_offset = static_cast<size_t>(hd) * kPage * (Half ? 2 : 4);
  for (int32_t split = first / kPage / kSplitPages; split <= last_page / kSplitPages; ++split) {
    for (int r = 0; r < R; ++r) {
      m[r] = -__builtin_inff();
      l[r] = 0;
    }
    std::memset(partial, 0, sizeof(float) * static_cast<size_t>(R) * static_cast<size_t>(hd));
    const int32_t end =
        split * kSplitPages + kSplitPages - 1 < last_page ? split * kSplitPages + kSplitPages - 1 : last_page;
    for (int32_t page = split * kSplitPages; page <= end; ++page) {
      const int32_t base = page * kPage;
      if (base + kPage <= first) continue;
      const uint8_t* k = kv.base + static_cast<size_t>(kv.pages[page]) * kv.page_stride + kv.head_offset;
      page_scores<Half, R>(rows, k, hd, scores);
      const F minus = f_set1(-__builtin_inff());
      for (int r = 0; r < R; ++r) {
        const int32_t visible = rows[r].position + 1 - base;  // keys of this page the row may see
        float* s = scores + r * kPage;
        F s0 = f_keep_below(f_load(s), 0, visible, minus),
          s1 = f_keep_below(f_load(s + kLanes), kLanes, visible, minus);
        if (rows[r].first > base) {  // hide the keys below it
          s0 = f_keep_below(minus, 0, rows[r].first - base, s0);
          s1 = f_keep_below(minus, kLanes, rows[r].first - base, s1);
        }
        const float peak = lanes_max(f_max(s0, s1));
        const float next = m[r] > peak ? m[r] : peak;
        if (next == -__builtin_inff()) {  // nothing visible yet (NaN scores fall through and spread)
          f_store(s, f_zero());
          f_store(s + kLanes, f_zero());
          continue;
        }
        const F shift = f_set1(next);
        // exp(-87.3) of a hidden key is not zero: hide it again after the exponential
        F p0 = f_keep_below(f_exp(f_sub(s0, shift)), 0, visible, f_zero());
        F p1 = f_keep_below(f_exp(f_sub(s1, shift)), kLanes, visible, f_zero());
        if (rows[r].first > base) {
          p0 = f_keep_below(f_zero(), 0, rows[r].first - base, p0);
          p1 = f_keep_below(f_zero(), kLanes, rows[r].first - base, p1);
        }
        f_store(s, p0);
        f_store(s + kLanes, p1);
        const float sum = lanes_sum(f_add(p0, p1));
        if (m[r] == -__builtin_inff()) {
          l[r] = sum;
        } else if (next != m[r]) {
          const float correction = exp_one(m[r] - next);
          l[r] = __builtin_fmaf(l[r], correction, sum);
          scale_row(partial + r * hd, hd, correction);
        } else {
          l[r] += sum;
        }
        m[r] = next;
      }
      const int32_t tokens = last - base + 1 < kPage ? last - base + 1 : kPage;
      page_values<Half, R>(scores, k + v_offset, hd, tokens, partial);
    }
    for (int r = 0; r < R; ++r) merge(partial + r * hd, m[r], l[r], total + r * hd, total_m[r], total_l[r], hd);
  }
  for (int r = 0; r < R; ++r) {
    const float inverse = 1.0f / total_l[r];
    for (int32_t d = 0; d < hd; ++d) rows[r].out[d] = total[r * hd + d] * inverse;
  }
}

template <bool Half>
HD_INLINE void attention_rows(const AttentionRow* rows, int32_t n, const KvView& kv, float* scratch) {
  while (n >= 12) attention_tile<Half, 12>(rows, kv, scratch), rows += 12, n -= 12;
  while (n >= 8) attention_tile<Half, 8>(rows, kv, scratch), rows += 8, n -= 8;
  while (n >= 4) attention_tile<Half, 4>(rows, kv, scratch), rows += 4, n -= 4;
  if (n == 3) attention_tile<Half, 3>(rows, kv, scratch);
  if (n == 2) attention_tile<Half, 2>(rows, kv, scratch);
  if (n == 1) attention_tile<Half, 1>(rows, kv, scratch);
}

inline void attention(const AttentionRow* rows, int32_t n, const KvView& kv, float* scratch) {
  kv.half ? attention_rows<true>(rows, n, kv, scratch) : attention_rows<false>(rows, n, kv, scratch);
}

template <bool Half>
HD_INLINE void kv_write_as(uint8_t* block, int32_t head_dim, int32_t slot, const float* k, const float* v) {
  using T = std::conditional_t<Half, uint16_t, float>;
  T* keys = reinterpret_cast<T*>(block);
  T* values = keys + static_cast<size_t>(head_dim) * kPage + static_cast<size_t>(slot) * static_cast<size_t>(head_dim);
  int32_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    alignas(64) T lane[kLanes];
    if constexpr (Half) {
      f_store_f16(lane, f_load(k + d));
      f_store_f16(values + d, f_load(v + d));
    } else {
      f_store(lane, f_load(k + d));
      f_store(values + d, f_load(v + d));
    }
    for (int i = 0; i < kLanes; ++i) keys[static_cast<size_t>(d + i) * kPage + static_cast<size_t>(slot)] = lane[i];
  }
  for (; d < head_dim; ++d) {
    if constexpr (Half) {
      keys[static_cast<size_t>(d) * kPage + static_cast<size_t>(slot)] = f32_to_f16(k[d]);
      values[d] = f32_to_f16(v[d]);
    } else {
      keys[static_cast<size_t>(d) * kPage + static_cast<size_t>(slot)] = k[d];
      values[d] = v[d];
    }
  }
}

inline void kv_write(uint8_t* block, int32_t head_dim, bool half, int32_t slot, const float* k, const float* v) {
  half ? kv_write_as<true>(block, head_dim, slot, k, v) : kv_write_as<false>(block, head_dim, slot, k, v);
}

}  // namespace herder::HD_ISA_NAMESPACE
