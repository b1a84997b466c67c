// Integer matrix products with AMX tiles, for blocks of many tokens: the same sums as matmul_integer.h, bit for bit.
//
// A panel's codes are unpacked once to signed bytes [quads][16 rows][4] and its scales to float32. For 16 tokens, each
// weight group is one tile product (int32 is exact, so the tile's own order does not matter); the group's result is
// then scaled and added in the order of matmul_integer.h, with the 16 accumulators of the tokens in registers.
#pragma once

#include "matmul_integer.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int kTileTokens = 16;
constexpr int kTileMinimum = 25;  // fewer tokens than this do not repay unpacking the panel

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3: results 16 x 16 int32. Tile 4, 6: tokens, 16 x G bytes. Tile 5, 7: weights, G / 4 rows of 64 bytes.
template <int G>
HD_INLINE void configure_tiles() {
  TileConfig config;
  for (int i = 0; i < 4; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  for (int i = 4; i < 8; i += 2) {
    config.row_bytes[i] = G, config.rows[i] = 16;
    config.row_bytes[i + 1] = 64, config.rows[i + 1] = G / 4;
  }
  // not _tile_loadconfig: GCC 12's says it reads 8 bytes, and the stores that fill the other 56 are dropped
  asm volatile("ldtilecfg %0" ::"m"(config));
}

struct PanelBuffer {
  uint8_t* codes;  // [padded_cols / 4][64]
  float* scales;   // [padded_cols / group][16]
  float* minima;   // same, or null
};

HD_INLINE PanelBuffer panel_buffer(const Matrix& w, uint8_t* scratch) {
  PanelBuffer b;
  b.codes = scratch;
  b.scales = reinterpret_cast<float*>(scratch + static_cast<size_t>(w.padded_cols) * kLanes);
  b.minima = b.scales + static_cast<size_t>(w.padded_cols / w.group) * kLanes;
  return b;
}

template <class Panel, Layout L, int G, bool Min>
HD_INLINE void unpack_panel(const Matrix& w, int64_t panel, const PanelBuffer& out) {
  const uint8_t* s = w.data + static_cast<size_t>(panel) * w.panel_bytes;
  uint8_t* code = out.codes;
  float *scale = out.scales, *minimum = out.minima;
  const uint8_t shift = static_cast<uint8_t>(L == Layout::kNibble ? w.zero : L == Layout::kNibbleTable ? 0 : w.zero);
  B table;
  if constexpr (L == Layout::kNibbleTable) table = b_table(w.table);
  for (int64_t unit = 0; unit < w.padded_cols / kUnit; ++unit, s += Panel::kUnitBytes) {
    for (int g = 0; g < Panel::kGroups; ++g) {
      f_store(scale, f_load_f16(reinterpret_cast<const uint16_t*>(s) + g * kLanes));
      scale += kLanes;
      if constexpr (Min) {
        f_store(minimum, f_load_f16(reinterpret_cast<const uint16_t*>(s + Panel::kScaleBytes) + g * kLanes));
        minimum += kLanes;
      }
      const uint8_t* c = s + Panel::kCodeOffset + static_cast<size_t>(g) * Panel::kGroupCodeBytes;
      if constexpr (Panel::kNibbles) {
        for (int i = 0; i < Panel::kQuads / 2; ++i) {
          const B raw = b_load(c + 64 * i);
          B low = b_low4(raw), high = b_high4(raw);
          if constexpr (L == Layout::kNibbleTable) {
            low = b_lookup(table, low);
            high = b_lookup(table, high);
          }
          b_store(code + 64 * i, b_sub(low, shift));
          b_store(code + 64 * (i + Panel::kQuads / 2), b_sub(high, shift));
        }
      } else {
        for (int i = 0; i < Panel::kQuads; ++i) b_store(code + 64 * i, b_sub(b_load(c + 64 * i), shift));
      }
      code += static_cast<size_t>(G) * 16;
    }
  }
}

// The tile instructions by number, a constant of the template; the intrinsics of GCC 12 want a literal, and do not say
// which memory they read and write.
template <int T>
HD_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
HD_INLINE void tile_load(const void* rows, int64_t stride) {  // what is read must be in memory: see matmul_tiles()
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T));
}
template <int Sum, int A, int B>
HD_INLINE void tile_multiply() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
constexpr int kPart = kTileTokens * kLanes;  // results of a tile
template <int T>
HD_INLINE void tile_store(int32_t (&part)[kPart]) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(part) : "r"(part), "r"(int64_t{64}), "i"(T));
}

struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  int lines = 0;

  HD_INLINE void ask() {
    for (int i = 0; i < lines; ++i, at += 64) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
  }
};

// The products of one panel with 16 tokens.
//
// Tiles come back through memory, and multiplying and storing them takes the issue port of half the vector arithmetic:
// on Granite Rapids 28 cycles a group of 32 for the tile and 27 for scaling and adding, one after the other whatever
// the order. So nothing else may stand in the way: the sums stay in registers, and while one group's tile is
// multiplied, the vector units take the results of a group two units earlier, which need no waiting for.
template <int G, bool Min>
struct TileBlock {
  static constexpr int kGroups = kUnit / G, kPerScale = kActivationGroup / G;
  static constexpr int kBehind = 2, kRing = 4;  // units
  using Ring = int32_t[kRing][kGroups][kPart];
  using Totals = F[kTileTokens];

  const int64_t distance;  // of units and fields (Activations::tokens)
  const int8_t* q;
  const float* fields;
  const uint8_t* codes;
  const float *scales, *minima;
  Ahead ahead;

  // Group g of the unit at q into tile g % 2.
  template <int g>
  HD_INLINE void multiply() {
    tile_load<4 + g % 2 * 2>(q + g * G, kUnit);
    tile_load<5 + g % 2 * 2>(codes + g * G * kLanes, 64);
    tile_zero<g % 2>();
    tile_multiply<g % 2, 4 + g % 2 * 2, 5 + g % 2 * 2>();
  }

  // Adds tokens begin..end of what group g gave.
  template <int g, int begin, int end>
  HD_INLINE void add(const int32_t* part, Totals& total) {
    const F scale = f_load(scales + g * kLanes);
    const float* as = fields + (kScale + g / kPerScale) * distance;
    unrolled<end - begin>([&](auto i) __attribute__((always_inline)) {
      constexpr int t = begin + i;
      total[t] = f_fma(f_mul(f_from_i(i_load(part + t * kLanes)), f_set1(as[t])), scale, total[t]);
    });
    if constexpr (Min) {
      const F minimum = f_load(minima + g * kLanes);
      const float* masses = fields + ((G == 16 ? kMass16 : kMass32) + g) * distance;
      unrolled<end - begin>([&](auto i) __attribute__((always_inline)) {
        constexpr int t = begin + i;
        total[t] = f_fma(f_set1(masses[t]), minimum, total[t]);
      });
    }
  }

  // Multiplies unit `put`, adds unit `take`: both, or one of the two.
  template <bool Multiply, bool Add>
  HD_INLINE void step(int64_t put, int64_t take, Ring& ring, Totals& total) {
    unrolled<kGroups>([&](auto g) __attribute__((always_inline)) {
      const int32_t* part = ring[take % kRing][g];
      if constexpr (Multiply) multiply<g>();
      if constexpr (Add) add<g, 0, kTileTokens / 2>(part, total);
      if constexpr (Multiply && g > 0) tile_store<(g - 1) % 2>(ring[put % kRing][g - 1]);
      if constexpr (Multiply && g == 0)
        if (put > 0) tile_store<(kGroups - 1) % 2>(ring[(put - 1) % kRing][kGroups - 1]);
      if constexpr (Add) add<g, kTileTokens / 2, kTileTokens>(part, total);
    });
    if constexpr (Multiply) q += distance * kUnit, codes += kUnit * kLanes;
    if constexpr (Add) {
      scales += kGroups * kLanes;
      if constexpr (Min) minima += kGroups * kLanes;
      fields += distance * kActivationFields;
    }
  }

  HD_INLINE void run(int64_t units, Totals& total) {
    alignas(64) Ring ring;
    unrolled<kTileTokens>([&](auto t) __attribute__((always_inline)) { total[t] = f_zero(); });
    int64_t put = 0, take = 0;
    while (put < units && put < kBehind) step<true, false>(put++, 0, ring, total);
    while (put < units) {
      ahead.ask();
      step<true, true>(put++, take++, ring, total);
    }
    tile_store<(kGroups - 1) % 2>(ring[(put - 1) % kRing][kGroups - 1]);
    while (take < units) step<false, true>(0, take++, ring, total);
  }
};

template <int G, bool Min>
HD_INLINE void tile_block(const Matrix& w, const Activations& a, const PanelBuffer& b, int64_t token, int64_t tokens,
                          int64_t panel, const Ahead& ahead, Store store, float* out, int64_t out_stride) {
  F total[kTileTokens];
  TileBlock<G, Min>{a.tokens, a.q + token * kUnit, a.fields + token, b.codes, b.scales, b.minima, ahead}.run(
      w.padded_cols / kUnit, total);
  out += token * out_stride + panel * kLanes;
  unrolled<kTileTokens>([&](auto t) __attribute__((always_inline)) {
    if (t < tokens) store_lanes(w, panel, total[t], store, out + t * out_stride);
  });
}

template <Layout L, int G, bool Min>
void matmul_tiles(const PanelKernel<L, G, Min>&, const Matrix& w, const Activations& a, int64_t tokens, int64_t begin,
                  int64_t end, Store store, float* out, int64_t stride, uint8_t* scratch) {
  const PanelBuffer buffer = panel_buffer(w, scratch);
  configure_tiles<G>();
  for (int64_t panel = begin; panel < end; ++panel) {
    unpack_panel<PanelKernel<L, G, Min>, L, G, Min>(w, panel, buffer);
    asm volatile("" ::: "memory");  // tile_load does not say what it reads: keep the stores above it
    for (int64_t t = 0; t < tokens; t += kTileTokens) {
      Ahead ahead;
      if (t == 0) ahead = {w.data + static_cast<size_t>(panel + 1) * w.panel_bytes, nullptr, static_cast<int>(w.unit_bytes()/64)};
      tile_block<G, Min>(w, a, buffer, t, tokens - t < kTileTokens ? tokens - t : kTileTokens, panel, ahead, store, out,
                         stride);
    }
  }
  _tile_release();
}

}  // namespace herder::HD_ISA_NAMESPACE
