// Attention over paged keys and values, one fixed order for prefill and decode alike.
//
// The keys of a sequence are reduced in splits of kSplitPages pages, counted from position 0: the scores of all of a
// split's keys, their softmax relative to the split's own maximum, the weighted sum of the values. Such partial results
// merge in order (Milakov and Gimelshein 2018), whoever computed them. With bfloat16 entries, queries and weights are
// rounded to bfloat16 as well, and a product adds its inputs as matrix tiles do, 32 at a time:
//   sum over 32 inputs = (fused sum of those with even number, from 0) + (the same of those with odd number)
// A score adds these over the dimensions, a value over the pages. A query row's bits depend on its own q and its keys
// only: not on which rows share the tile, not on how the prompt was chunked, not on the thread that ran it.
#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "kv_page.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int32_t kSplitKeys = kSplitPages * kPage;
constexpr int32_t kInputs = 32;  // of a product, added as one

// What a tile of query rows works on; the strides are constants, so that a kernel reaches all rows from one pointer.
struct AttentionScratch {
  static constexpr int32_t kQueryStride = kMaxHeadDim + 16, kKeyStride = kSplitKeys + 16;
  float* q;       // [rows][kQueryStride], as the products take them
  float* scores;  // [rows][kKeyStride], then weights
  float* values;  // [rows][padded head_dim]
  uint8_t* page;  // values of a page that is not full, completed with zeros
  static_assert(kQueryStride + kKeyStride + kMaxHeadDim <= kAttentionRowFloats);

  explicit AttentionScratch(float* memory)
      : q(memory),
        scores(q + kAttentionTile * kQueryStride),
        values(scores + kAttentionTile * kKeyStride),
        page(reinterpret_cast<uint8_t*>(values + kAttentionTile * kMaxHeadDim)) {}
};

// The pages of a split that a tile of rows sees.
struct PageRange {
  int32_t begin, end;  // pages of the sequence
  int32_t tokens;      // of the last of them that any row sees
  HD_INLINE int32_t visible(int32_t page) const { return page + 1 == end ? tokens : kPage; }
};

HD_INLINE F query_scale(int32_t head_dim) { return f_set1(1.0f / __builtin_sqrtf(static_cast<float>(head_dim))); }

// Products by fused multiply-adds.
template <bool Half>
struct FusedProducts {
  using Page = KvPage<Half>;
  static constexpr int kRows = kTileRegisters >= 12 ? 12 : 3;  // two sums each, and the inputs, fit the registers

  // R rows of a, `stride` apart, times `inputs` inputs of 16 lanes.
  template <int R, int32_t Stride>
  static HD_INLINE void sum(const float* a, const uint8_t* b, size_t pair, int32_t inputs, F (&total)[R]) {
    F even[R], odd[R], x, y;
    for (int r = 0; r < R; ++r) even[r] = odd[r] = f_zero();
    int32_t i = 0;
    for (; i + 2 <= inputs; i += 2, b += pair) {
      Page::load(b, pair, x, y);
      for (int r = 0; r < R; ++r) {
        even[r] = f_fma(f_set1(a[r * Stride + i]), x, even[r]);
        odd[r] = f_fma(f_set1(a[r * Stride + i + 1]), y, odd[r]);
      }
    }
    if (i < inputs) {
      Page::load(b, pair, x, y);
      for (int r = 0; r < R; ++r) even[r] = f_fma(f_set1(a[r * Stride + i]), x, even[r]);
    }
    for (int r = 0; r < R; ++r) total[r] = f_add(even[r], odd[r]);
  }

  template <int R>
  static HD_INLINE void score(const float* q, const uint8_t* k, int32_t head_dim, float* scores) {
    for (int half = 0; half < 2; ++half, k += 4 * kLanes, scores += kLanes) {
      for (int32_t d = 0; d < head_dim; d += kInputs) {
        F total[R];
        sum<R, AttentionScratch::kQueryStride>(q + d, k + static_cast<size_t>(d) / 2 * Page::kKeyPair, Page::kKeyPair,
                                               head_dim - d < kInputs ? head_dim - d : kInputs, total);
        for (int r = 0; r < R; ++r) {
          float* at = scores + r * AttentionScratch::kKeyStride;
          f_store(at, d ? f_add(f_load(at), total[r]) : total[r]);
        }
      }
    }
  }

  template <int R>
  static HD_INLINE void add_values(const float* weights, const uint8_t* v, int32_t head_dim, int32_t tokens,
                                   float* values) {
    const int32_t padded = Page::padded(head_dim);
    for (int32_t d = 0; d < padded; d += kLanes) {
      F total[R];
      sum<R, AttentionScratch::kKeyStride>(weights, v + static_cast<size_t>(d) * 4, Page::value_pair(head_dim), tokens,
                                           total);
      for (int r = 0; r < R; ++r) {
        float* at = values + r * padded + d;
        f_store(at, f_add(f_load(at), total[r]));
      }
    }
  }

  // Calls run.template operator()<R>(row) until n rows are done.
  template <class Run>
  static HD_INLINE void in_steps(int32_t n, Run run) {
    int32_t row = 0;
    for (; n - row >= kRows; row += kRows) run.template operator()<kRows>(row);
    if constexpr (kRows > 4) {
      if (n - row >= 8) run.template operator()<8>(row), row += 8;
      if (n - row >= 4) run.template operator()<4>(row), row += 4;
      if (n - row == 3) run.template operator()<3>(row);
    }
    if (n - row == 2) run.template operator()<2>(row);
    if (n - row == 1) run.template operator()<1>(row);
  }

  static void configure(int32_t) {}
  static void finish() {}

  static void begin(const AttentionRow* rows, int32_t n, int32_t head_dim, const AttentionScratch& s) {
    const F scale = query_scale(head_dim);
    for (int32_t r = 0; r < n; ++r) {
      float* to = s.q + r * AttentionScratch::kQueryStride;
      for (int32_t d = 0; d < head_dim; d += kLanes) {
        const F q = head_dim - d < kLanes ? load_tail(rows[r].q + d, head_dim - d) : f_load(rows[r].q + d);
        f_store(to + d, Half ? f_bf16(f_mul(q, scale)) : f_mul(q, scale));
      }
    }
  }

  static void scores(int32_t n, const KvView& kv, const PageRange& range, int32_t first_page,
                     const AttentionScratch& s) {
    for (int32_t page = range.begin; page < range.end; ++page) {
      const uint8_t* k = kv.block(page);
      float* to = s.scores + (page - first_page) * kPage;
      in_steps(
          n, [&]<int R>(int32_t row) __attribute__((always_inline)) {
            score<R>(s.q + row * AttentionScratch::kQueryStride, k, kv.head_dim,
                     to + row * AttentionScratch::kKeyStride);
          });
    }
  }

  // x: the score less the largest of the row
  static HD_INLINE F weight(F x) { return Half ? f_exp_bf16(x) : f_exp(x); }
  static HD_INLINE void store_weights(float* row, int32_t key, F first, F second) {  // of a page
    f_store(row + key, first);
    f_store(row + key + kLanes, second);
  }

  static void values(int32_t n, const KvView& kv, const PageRange& range, int32_t first_page,
                     const AttentionScratch& s) {
    const int32_t padded = Page::padded(kv.head_dim);
    for (int32_t i = 0; i < n * padded; i += kLanes) f_store(s.values + i, f_zero());
    for (int32_t page = range.begin; page < range.end; ++page) {
      const uint8_t* v = kv.block(page) + Page::values(kv.head_dim);
      const float* weights = s.scores + (page - first_page) * kPage;
      in_steps(
          n, [&]<int R>(int32_t row) __attribute__((always_inline)) {
            add_values<R>(weights + row * AttentionScratch::kKeyStride, v, kv.head_dim, range.visible(page),
                          s.values + row * padded);
          });
    }
  }
};

// The keys of a tile of rows in a split, [begin, end), and those that a row sees, [low, high). All are counted from the
// split's first key; begin and end are whole pages.
struct KeyRange {
  int32_t begin, end, low, high;
  HD_INLINE int32_t to() const { return high < end ? high : end; }
  HD_INLINE int32_t from() const {  // of the first page to look at
    const int32_t seen = low > begin ? low / kPage * kPage : begin;
    return seen < to() ? seen : to();
  }
  // x where the row sees the keys `key` and on, else `hidden`.
  HD_INLINE F visible(F x, int32_t key, F hidden) const {
    if (key >= low && key + kLanes <= high) return x;
    return f_keep_below(hidden, key, low, f_keep_below(x, key, high, hidden));
  }
};

HD_INLINE float largest(const float* scores, const KeyRange& keys) {
  const F minus = f_set1(-__builtin_inff());
  F top[2] = {minus, minus};
  for (int32_t key = keys.from(); key < keys.to(); key += kPage)
    for (int i = 0; i < 2; ++i) {
      const int32_t at = key + i * kLanes;
      top[i] = f_max(top[i], keys.visible(f_load(scores + at), at, minus));
    }
  return lanes_max(f_max(top[0], top[1]));
}

// Makes weights of scores, in place, and 0 for keys that the row does not see. Returns their sum.
template <class Products>
HD_INLINE float softmax(float* row, const KeyRange& keys, float peak) {
  const F shift = f_set1(peak), zero = f_zero();
  const int32_t from = keys.from(), to = keys.to();
  F total = zero;
  int32_t key = keys.begin;
  for (; key < from; key += kPage) Products::store_weights(row, key, zero, zero);
  for (; key < to; key += kPage) {
    F p[2];
    for (int i = 0; i < 2; ++i) {
      const int32_t at = key + i * kLanes;
      p[i] = keys.visible(Products::weight(f_sub(f_load(row + at), shift)), at, zero);
      total = f_add(total, p[i]);
    }
    Products::store_weights(row, key, p[0], p[1]);
  }
  for (; key < keys.end; key += kPage) Products::store_weights(row, key, zero, zero);
  return lanes_sum(total);
}

// Brings a row's partial result and another split's to the larger maximum and adds them.
HD_INLINE void merge(float* total, const float* values, float peak, float sum, int32_t padded) {
  float &total_peak = total[padded], &total_sum = total[padded + 1];
  if (peak == -__builtin_inff()) return;  // no key seen
  if (total_peak == -__builtin_inff()) {  // the first: what follows would multiply by exactly 1 and add to 0
    for (int32_t d = 0; d < padded; d += kLanes) f_store(total + d, f_load(values + d));
    total_peak = peak;
    total_sum = sum;
    return;
  }
  const bool higher = peak > total_peak;
  const float less = exp_one(higher ? total_peak - peak : peak - total_peak), a = higher ? less : 1,
              b = higher ? 1 : less;
  for (int32_t d = 0; d < padded; d += kLanes)
    f_store(total + d, f_fma(f_load(total + d), f_set1(a), f_mul(f_load(values + d), f_set1(b))));
  total_sum = __builtin_fmaf(total_sum, a, sum * b);
  if (higher) total_peak = peak;
}

template <class Products>
void attention_split(const AttentionRow* rows, int32_t n, const KvView& kv, int32_t split, const AttentionScratch& s) {
  const int32_t first_page = split * kSplitPages, first_key = first_page * kPage;
  int32_t low = rows[0].first, last = rows[0].position;
  for (int32_t r = 1; r < n; ++r) {
    low = rows[r].first < low ? rows[r].first : low;
    last = rows[r].position > last ? rows[r].position : last;
  }
  if (last < first_key || low >= first_key + kSplitKeys) return;
  PageRange range;
  range.begin = low > first_key ? low / kPage : first_page;
  range.end = last < first_key + kSplitKeys ? last / kPage + 1 : first_page + kSplitPages;
  range.tokens = last < first_key + kSplitKeys ? last % kPage + 1 : kPage;
  Products::begin(rows, n, kv.head_dim, s);
  Products::scores(n, kv, range, first_page, s);
  const int32_t padded = KvPage<true>::padded(kv.head_dim);
  float peak[kAttentionTile], sum[kAttentionTile];
  const auto keys = [&](int32_t r) __attribute__((always_inline)) {
    return KeyRange{(range.begin - first_page) * kPage, (range.end - first_page) * kPage, rows[r].first - first_key,
                    rows[r].position + 1 - first_key};
  };
  // all maxima first: a row's weights would wait for its own
  for (int32_t r = 0; r < n; ++r) peak[r] = largest(s.scores + r * AttentionScratch::kKeyStride, keys(r));
  for (int32_t r = 0; r < n; ++r)
    sum[r] = softmax<Products>(s.scores + r * AttentionScratch::kKeyStride, keys(r), peak[r]);
  Products::values(n, kv, range, first_page, s);
  for (int32_t r = 0; r < n; ++r) merge(rows[r].partial, s.values + r * padded, peak[r], sum[r], padded);
}

template <class Products>
HD_INLINE void attention_with(const AttentionRow* rows, int32_t n, const KvView& kv, int32_t begin, int32_t end,
                              const AttentionScratch& s) {
  int32_t configured = 0;
  for (int32_t split = begin; split < end; ++split)
    for (int32_t r = 0; r < n; r += kAttentionTile) {
      const int32_t tile = n - r < kAttentionTile ? n - r : kAttentionTile;
      if (tile != configured) Products::configure(configured = tile);
      attention_split<Products>(rows + r, tile, kv, split, s);
    }
  Products::finish();
}

inline void attention_merge(float* partials, int32_t count, size_t stride, int32_t head_dim, float* out) {
  const int32_t padded = KvPage<true>::padded(head_dim);
  for (int32_t i = 1; i < count; ++i) {
    const float* part = partials + static_cast<size_t>(i) * stride;
    merge(partials, part, part[padded], part[padded + 1], padded);
  }
  const F inverse = f_set1(1.0f / partials[padded + 1]);
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    const F value = f_mul(f_load(partials + d), inverse);
    head_dim - d < kLanes ? store_tail(out + d, head_dim - d, value) : f_store(out + d, value);
  }
}

}  // namespace herder::HD_ISA_NAMESPACE

#if defined(HD_AMX)
#include "attention_tiles.h"
#endif

namespace herder::HD_ISA_NAMESPACE {

inline void attention(const AttentionRow* rows, int32_t n, const KvView& kv, int32_t begin, int32_t end,
                      float* scratch) {
  const int32_t padded = KvPage<true>::padded(kv.head_dim);
  for (int32_t r = 0; r < n; ++r) {
    for (int32_t d = 0; d < padded; d += kLanes) f_store(rows[r].partial + d, f_zero());
    rows[r].partial[padded] = -__builtin_inff();
    rows[r].partial[padded + 1] = 0;
  }
  const AttentionScratch s(scratch);
#if defined(HD_AMX)
  if (kv.half && TileProducts::fits(kv.head_dim)) return attention_with<TileProducts>(rows, n, kv, begin, end, s);
#endif
  kv.half ? attention_with<FusedProducts<true>>(rows, n, kv, begin, end, s)
          : attention_with<FusedProducts<false>>(rows, n, kv, begin, end, s);
}

}  // namespace herder::HD_ISA_NAMESPACE
