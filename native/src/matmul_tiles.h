// Integer matrix products with AMX tiles, for blocks of many tokens: the same sums as matmul_integer.h, bit for bit.
//
// A part of a panel is unpacked for all tokens, its codes to signed bytes [quads][16 rows][4], its scales to float32.
// For 16 tokens, each weight group is one tile product (int32 is exact, so the tile's own order does not matter); the
// group's result is then scaled and added in the order of matmul_integer.h, with the tokens' accumulators in registers.
#pragma once

#include "lines.h"
#include "matmul_integer.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int kTileTokens = 16;
constexpr int kTileMinimum = 13;  // fewer tokens than this are faster one panel after the other (PanelKernel::few)

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

constexpr int64_t kPartUnits = 8;     // of a panel, taken apart at a time: 8 KB of codes
constexpr int64_t kPassTokens = 256;  // tokens that a part is taken apart for: their sums are 16 KB

// `units` of a panel, from s on: codes [unit][16 quads][64], scales and minima [unit][kUnit / G][16].
template <class Panel, Layout L, int G, bool Min>
HD_INLINE void unpack_part(const Matrix& w, const uint8_t* s, int64_t units, uint8_t* code, float* scale,
                           float* minimum) {
  const uint8_t shift = static_cast<uint8_t>(L == Layout::kNibble ? w.zero : L == Layout::kNibbleTable ? 0 : w.zero);
  B table;
  if constexpr (L == Layout::kNibbleTable) table = b_table(w.table);
  for (; units > 0; --units, s += Panel::kUnitBytes) {
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

// The products of part of a panel with T tokens, 8 or 16; the tile has 16.
//
// Tiles come back through memory, and multiplying and storing them takes the issue port of half the vector arithmetic:
// on Granite Rapids 28 cycles a group of 32 for the tile and 27 for scaling and adding, one after the other whatever
// the order. So nothing else may stand in the way: the sums stay in registers, and while one group's tile is
// multiplied, the vector units take the results of a group two units earlier, which need no waiting for.
template <int G, bool Min, int T>
struct TileBlock {
  static constexpr int kGroups = kUnit / G, kPerScale = kActivationGroup / G;
  static constexpr int kBehind = 2, kRing = 4;  // units
  static constexpr int kAsked = 6;              // lines a group; a unit has 9 (4 bits) to 18 (8 bits)
  using Ring = int32_t[kRing][kGroups][kPart];
  using Totals = F[T];

  const int64_t distance;  // of units and fields (Activations::tokens)
  const int8_t* q;
  const float* fields;
  const uint8_t* codes;
  const float *scales, *minima;
  Lines next;  // asked for meanwhile

  // Group g of the unit at q into tile g % 2.
  template <int g>
  HD_INLINE void multiply() {
    next.ask(kAsked);
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
      if constexpr (Add) add<g, 0, T / 2>(part, total);
      if constexpr (Multiply && g > 0) tile_store<(g - 1) % 2>(ring[put % kRing][g - 1]);
      if constexpr (Multiply && g == 0)
        if (put > 0) tile_store<(kGroups - 1) % 2>(ring[(put - 1) % kRing][kGroups - 1]);
      if constexpr (Add) add<g, T / 2, T>(part, total);
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
    int64_t put = 0, take = 0;
    while (put < units && put < kBehind) step<true, false>(put++, 0, ring, total);
    while (put < units) step<true, true>(put++, take++, ring, total);
    tile_store<(kGroups - 1) % 2>(ring[(put - 1) % kRing][kGroups - 1]);
    while (take < units) step<false, true>(0, take++, ring, total);
  }
};

// The products of up to kPassTokens tokens with a panel, part by part: a part's codes stay in the first-level cache for
// all the tokens, whose sums wait there for the next.
template <Layout L, int G, bool Min>
class TilePanel {
  using Panel = PanelKernel<L, G, Min>;

 public:
  TilePanel(const Matrix& w, const Activations& a, Store store, float* out, int64_t stride)
      : w_(w), a_(a), store_(store), out_(out), stride_(stride) {}

  // end: of the panels to come.
  void run(int64_t token, int64_t tokens, int64_t panel, int64_t end) {
    const int64_t units = w_.padded_cols / kUnit;
    const uint8_t *from = at(panel), *last = at(end);
    for (unit_ = 0; unit_ < units; unit_ += count_) {
      count_ = units - unit_ < kPartUnits ? units - unit_ : kPartUnits;
      unpack_part<Panel, L, G, Min>(w_, from, count_, codes_, scales_, minima_);
      asm volatile("" ::: "memory");  // tile_load does not say what it reads: keep the stores above it
      from += static_cast<size_t>(count_) * Panel::kUnitBytes;
      Lines next{from, last};
      for (int64_t t = 0; t < tokens; t += kTileTokens, next.at = last) {
        const int64_t rest = tokens - t;
        rest > kTileTokens / 2 ? add<kTileTokens>(token, t, rest, panel, next)
                               : add<kTileTokens / 2>(token, t, rest, panel, next);
      }
    }
  }

 private:
  const uint8_t* at(int64_t panel) const { return w_.data + static_cast<size_t>(panel) * w_.panel_bytes; }

  // The part's products with a tile of T tokens, of which `rest` exist; stored when they are the last.
  template <int T>
  HD_INLINE void add(int64_t token, int64_t t, int64_t rest, int64_t panel, const Lines& next) {
    F total[T];
    float(*sum)[kLanes] = sums_ + t;
    unrolled<T>([&](auto i) __attribute__((always_inline)) { total[i] = unit_ == 0 ? f_zero() : f_load(sum[i]); });
    const int8_t* q = a_.q + (unit_ * a_.tokens + token + t) * kUnit;
    const float* fields = a_.fields + unit_ * a_.tokens * kActivationFields + token + t;
    TileBlock<G, Min, T>{a_.tokens, q, fields, codes_, scales_, minima_, next}.run(count_, total);
    float* out = out_ + (token + t) * stride_ + panel * kLanes;
    const bool last = (unit_ + count_) * kUnit == w_.padded_cols;
    unrolled<T>([&](auto i) __attribute__((always_inline)) {
      if (!last) {
        f_store(sum[i], total[i]);
      } else if (i < rest) {
        store_lanes(w_, panel, total[i], store_, out + i * stride_);
      }
    });
  }

  const Matrix& w_;
  const Activations& a_;
  const Store store_;
  float* const out_;
  const int64_t stride_;
  int64_t unit_ = 0, count_ = 0;  // the part
  alignas(64) uint8_t codes_[kPartUnits * kUnit * kLanes];
  alignas(64) float scales_[kPartUnits * Panel::kGroups * kLanes];
  alignas(64) float minima_[Min ? kPartUnits * Panel::kGroups * kLanes : 1];
  alignas(64) float sums_[kPassTokens][kLanes];
};

template <Layout L, int G, bool Min>
void matmul_tiles(const PanelKernel<L, G, Min>&, const Matrix& w, const Activations& a, int64_t tokens, int64_t begin,
                  int64_t end, Store store, float* out, int64_t stride) {
  TilePanel<L, G, Min> products(w, a, store, out, stride);
  configure_tiles<G>();
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t t = 0; t < tokens; t += kPassTokens)
      products.run(t, tokens - t < kPassTokens ? tokens - t : kPassTokens, panel, end);
  _tile_release();
}

}  // namespace herder::HD_ISA_NAMESPACE
