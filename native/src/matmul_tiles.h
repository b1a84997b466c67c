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

// Products of groups g and g + 1 of a unit, into part and part + 1.
template <int G>
HD_INLINE void tile_pair(const int8_t* q, const uint8_t* codes, int g, int32_t (*part)[kTileTokens * kLanes]) {
  codes += static_cast<size_t>(g) * G * 16;
  _tile_loadd(4, q + g * G, kUnit);
  _tile_loadd(5, codes, 64);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 5);
  _tile_loadd(6, q + (g + 1) * G, kUnit);
  _tile_loadd(7, codes + G * 16, 64);
  _tile_zero(1);
  _tile_dpbssd(1, 6, 7);
  _tile_stored(0, part[0], 64);
  _tile_stored(1, part[1], 64);
}

template <int G, bool Min>
HD_INLINE void tile_block(const Matrix& w, const Activations& a, const PanelBuffer& b, int64_t token, int64_t tokens,
                          int64_t panel, Store store, float* out, int64_t out_stride) {
  constexpr int kGroups = kUnit / G, kPerScale = kActivationGroup / G;
  const int64_t units = w.padded_cols / kUnit;
  const int8_t* q = a.q + token * kUnit;
  const float* fields = a.fields + token;
  const uint8_t* codes = b.codes;
  const float *scales = b.scales, *minima = b.minima;
  alignas(64) int32_t part[4][kTileTokens * kLanes];
  F total[kTileTokens];
  for (int t = 0; t < kTileTokens; ++t) total[t] = f_zero();
  // The tiles work one pair of groups ahead of the vector units.
  tile_pair<G>(q, codes, 0, part);
  int slot = 0;
  for (int64_t unit = 0; unit < units; ++unit) {
    const int8_t* next = q + a.tokens * kUnit;
    for (int pair = 0; pair < kGroups; pair += 2) {
      if (pair + 2 < kGroups) {
        tile_pair<G>(q, codes, pair + 2, part + (slot ^ 2));
      } else if (unit + 1 < units) {
        tile_pair<G>(next, codes + kUnit * kLanes, 0, part + (slot ^ 2));
      }
      for (int g = pair; g < pair + 2; ++g, scales += kLanes) {
        const F scale = f_load(scales);
        const float* as = fields + (kScale + g / kPerScale) * a.tokens;
        const int32_t* p = part[slot + g - pair];
        for (int t = 0; t < kTileTokens; ++t)
          total[t] = f_fma(f_mul(f_from_i(i_load(p + t * kLanes)), f_set1(as[t])), scale, total[t]);
        if constexpr (Min) {
          const F minimum = f_load(minima);
          minima += kLanes;
          const float* masses = fields + ((G == 16 ? kMass16 : kMass32) + g) * a.tokens;
          for (int t = 0; t < kTileTokens; ++t) total[t] = f_fma(f_set1(masses[t]), minimum, total[t]);
        }
      }
      slot ^= 2;
    }
    codes += kUnit * kLanes;
    q = next;
    fields += a.tokens * kActivationFields;
  }
  if (tokens == kTileTokens) {
    for (int t = 0; t < kTileTokens; ++t)
      store_lanes(w, panel, total[t], store, out + (token + t) * out_stride + panel * kLanes);
    return;
  }
  alignas(64) float rest[kTileTokens][kLanes];
  for (int t = 0; t < kTileTokens; ++t) f_store(rest[t], total[t]);
  for (int64_t t = 0; t < tokens; ++t)
    store_lanes(w, panel, f_load(rest[t]), store, out + (token + t) * out_stride + panel * kLanes);
}

template <Layout L, int G, bool Min>
void matmul_tiles(const PanelKernel<L, G, Min>&, const Matrix& w, const Activations& a, int64_t tokens, int64_t begin,
                  int64_t end, Store store, float* out, int64_t stride, uint8_t* scratch) {
  const PanelBuffer buffer = panel_buffer(w, scratch);
  configure_tiles<G>();
  for (int64_t panel = begin; panel < end; ++panel) {
    unpack_panel<PanelKernel<L, G, Min>, L, G, Min>(w, panel, buffer);
    asm volatile("" ::: "memory");  // GCC 12's _tile_loadd does not say that it reads memory: keep the stores above it
    for (int64_t t = 0; t < tokens; t += kTileTokens)
      tile_block<G, Min>(w, a, buffer, t, tokens - t < kTileTokens ? tokens - t : kTileTokens, panel, store, out,
                         stride);
  }
  _tile_release();
}

}  // namespace herder::HD_ISA_NAMESPACE
