// The products of attention with AMX tiles: the same sums as FusedProducts, bit for bit.
//
// tdpbf16ps adds 32 inputs of a lane as two fused chains, of even and of odd inputs, and their sum to what is there
// (Intel's manual gives the order; it flushes what underflows, which nothing here does, see f_bf16). Keys and values
// are streamed: they would drive scores and weights from the first cache, which is too small for them anyway.
#pragma once

#include "attention.h"
#include "matmul_tiles.h"

namespace herder::HD_ISA_NAMESPACE {

struct TileProducts {
  static constexpr int kQueryBytes = AttentionScratch::kQueryStride * 4, kKeyBytes = AttentionScratch::kKeyStride * 4;

  static bool fits(int32_t head_dim) { return head_dim % kInputs == 0; }

  // 32 bfloat16, from floats that are such.
  static HD_INLINE void store(float* row, int32_t index, F a, F b) {
    alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    _mm512_storeu_si512(
        reinterpret_cast<uint16_t*>(row) + index,
        _mm512_permutex2var_epi16(_mm512_castps_si512(a.v), _mm512_load_si512(kUpper), _mm512_castps_si512(b.v)));
  }

  // Tiles 0-3: results, a row for each query. Tile 4: queries or weights. Tiles 5-7: keys or values, 16 pairs.
  static void configure(int32_t n) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = static_cast<uint8_t>(i <= 4 ? n : 16);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static void finish() { _tile_release(); }

  static void begin(const AttentionRow* rows, int32_t n, int32_t head_dim, const AttentionScratch& s) {
    const F scale = query_scale(head_dim);
    for (int32_t r = 0; r < n; ++r)
      for (int32_t d = 0; d < head_dim; d += kInputs)
        store(s.q + r * AttentionScratch::kQueryStride, d, f_bf16(f_mul(f_load(rows[r].q + d), scale)),
              f_bf16(f_mul(f_load(rows[r].q + d + kLanes), scale)));
    asm volatile("" ::: "memory");  // GCC 12's _tile_loadd does not say that it reads memory
  }

  static void scores(int32_t, const KvView& kv, const PageRange& range, int32_t first_page, const AttentionScratch& s) {
    constexpr int kPair = static_cast<int>(KvPage<true>::kKeyPair);
    for (int32_t page = range.begin; page < range.end; page += 2) {
      const bool two = page + 1 < range.end;
      const uint8_t *a = kv.block(page), *b = two ? kv.block(page + 1) : a;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int32_t d = 0; d < kv.head_dim; d += kInputs, a += 16 * kPair, b += 16 * kPair) {
        _tile_loadd(4, reinterpret_cast<const uint16_t*>(s.q) + d, kQueryBytes);
        _tile_stream_loadd(5, a, kPair);
        _tile_dpbf16ps(0, 4, 5);
        _tile_stream_loadd(6, a + 64, kPair);
        _tile_dpbf16ps(1, 4, 6);
        if (!two) continue;
        _tile_stream_loadd(7, b, kPair);
        _tile_dpbf16ps(2, 4, 7);
        _tile_stream_loadd(5, b + 64, kPair);
        _tile_dpbf16ps(3, 4, 5);
      }
      float* to = s.scores + (page - first_page) * kPage;
      _tile_stored(0, to, kKeyBytes);
      _tile_stored(1, to + 16, kKeyBytes);
      if (!two) continue;
      _tile_stored(2, to + 32, kKeyBytes);
      _tile_stored(3, to + 48, kKeyBytes);
    }
    asm volatile("" ::: "memory");
  }

  // In place: 32 weights take the room of 16 scores, so they never reach those that are still to be read.
  static HD_INLINE F weight(F x) { return f_exp_bf16(x); }
  static HD_INLINE void store_weights(float* row, int32_t key, F first, F second) { store(row, key, first, second); }

  // A page's values as far as they are visible, zeros behind: what lies there may be anything, NaN too.
  static HD_INLINE const uint8_t* complete(const uint8_t* v, int32_t head_dim, int32_t tokens, uint8_t* page) {
    const size_t pair = KvPage<true>::value_pair(head_dim);
    std::memcpy(page, v, static_cast<size_t>(tokens + 1) / 2 * pair);
    std::memset(page + static_cast<size_t>(tokens + 1) / 2 * pair, 0, static_cast<size_t>(kPage - tokens) / 2 * pair);
    if (tokens % 2)
      for (int32_t d = 0; d < head_dim; ++d)
        std::memset(page + static_cast<size_t>(tokens / 2) * pair + static_cast<size_t>(d) * 4 + 2, 0, 2);
    return page;
  }

  template <int Tiles>
  static HD_INLINE void add_values(const KvView& kv, const PageRange& range, int32_t first_page, int32_t d,
                                   const uint8_t* last, const AttentionScratch& s) {
    const auto pair = static_cast<int>(KvPage<true>::value_pair(kv.head_dim));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int32_t page = range.begin; page < range.end; ++page) {
      const uint8_t* v = (page + 1 == range.end ? last : kv.block(page) + KvPage<true>::values(kv.head_dim)) +
                         static_cast<size_t>(d) * 4;
      _tile_loadd(4, reinterpret_cast<const uint16_t*>(s.scores) + (page - first_page) * kPage, kKeyBytes);
      _tile_stream_loadd(5, v, pair);
      _tile_dpbf16ps(0, 4, 5);
      _tile_stream_loadd(6, v + 64, pair);
      _tile_dpbf16ps(1, 4, 6);
      if constexpr (Tiles == 4) {
        _tile_stream_loadd(7, v + 128, pair);
        _tile_dpbf16ps(2, 4, 7);
        _tile_stream_loadd(5, v + 192, pair);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    float* to = s.values + d;
    _tile_stored(0, to, kv.head_dim * 4);
    _tile_stored(1, to + 16, kv.head_dim * 4);
    if constexpr (Tiles == 4) {
      _tile_stored(2, to + 32, kv.head_dim * 4);
      _tile_stored(3, to + 48, kv.head_dim * 4);
    }
  }

  static void values(int32_t, const KvView& kv, const PageRange& range, int32_t first_page, const AttentionScratch& s) {
    const uint8_t* last = kv.block(range.end - 1) + KvPage<true>::values(kv.head_dim);
    if (range.tokens < kPage) last = complete(last, kv.head_dim, range.tokens, s.page);
    asm volatile("" ::: "memory");
    int32_t d = 0;
    for (; d + 4 * kLanes <= kv.head_dim; d += 4 * kLanes) add_values<4>(kv, range, first_page, d, last, s);
    if (d < kv.head_dim) add_values<2>(kv, range, first_page, d, last, s);
    asm volatile("" ::: "memory");
  }
};

}  // namespace herder::HD_ISA_NAMESPACE
