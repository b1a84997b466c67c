// bfloat16 matrix products with AMX tiles, one token or many: the same sums as matmul_bf16.h, bit for bit.
//
// A block of 32 inputs is one tile product of 16 tokens and 16 rows. Weights are bfloat16 panels, which lie as tiles
// want them, or integer panels taken apart on the way (bf16_panel.h). Many tokens take 32 tokens x 2 panels, over as
// many inputs at a time as leave the two panels' tiles in the nearest cache; the tokens pass by them, loaded with the
// hint that they need not stay (without it they throw the weights out: 1,220 against 1,520 billion multiply-adds a
// second). Sums wait in memory of their own. Up to 32 tokens keep their sums in the tiles.
#pragma once

#include "bf16_panel.h"
#include "elementwise.h"
#include "matmul_bf16.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int64_t kBf16Tokens = 512, kBf16Pairs = 8;  // whose sums wait together
constexpr int64_t kBf16Blocks = 20;                   // of 32 inputs at a time, at most
constexpr size_t kBf16TileBytes = 1024;
constexpr int kBf16Tile = 16 * kLanes;  // results of a tile
constexpr size_t kBf16Sums = static_cast<size_t>(kBf16Tokens * kBf16Pairs * 2 * kLanes) * sizeof(float);
constexpr size_t kBf16Place = kBf16Blocks * kBf16TileBytes;
constexpr size_t kBf16Scratch = kBf16Sums + 2 * kBf16Place;

// Panels that are tiles already. As PanelTiles.
class Bf16Panels {
 public:
  Bf16Panels(const Matrix& w, uint8_t*) : w_(w) {}

  static constexpr bool kInPlace = true;
  Lines lines(int64_t panel, int64_t from, int64_t to) const {
    const uint8_t* first = w_.data + static_cast<size_t>(panel) * w_.panel_bytes;
    return {first + static_cast<size_t>(from) * kBf16TileBytes, first + static_cast<size_t>(to) * kBf16TileBytes};
  }
  const uint8_t* tiles(int64_t panel, int64_t from, int64_t to, Lines) const { return lines(panel, from, to).at; }

 private:
  const Matrix& w_;
};

// Where the results of a matrix go: pairs of neighbouring panels.
template <class Panels>
struct OneMatrix {
  using Source = Panels;
  const Matrix& w;
  Panels first, second;  // the same panels, with a place for each of a pair
  Store store;
  float* out;
  int64_t stride;
  int64_t begin, end;  // panels

  int64_t pairs() const { return (end - begin + 1) / 2; }
  int64_t blocks() const { return w.padded_cols / kRoundedBlock; }
  int64_t panel(int64_t pair, int i) const { return begin + 2 * pair + i; }
  bool has(int64_t pair, int i) const { return panel(pair, i) < end; }

  // sums: [2][2][16 tokens][16 rows], by token and panel.
  HD_INLINE void take(const float* sums, int64_t pair, int64_t token, int64_t tokens) const {
    for (int i = 0; i < 4; ++i) {
      const int64_t p = panel(pair, i % 2), at = i / 2 * 16, left = tokens - at < 16 ? tokens - at : 16;
      if (p >= end) continue;
      float* to = out + (token + at) * stride + p * kLanes;
      for (int64_t t = 0; t < left; ++t)
        store_lanes(w, p, f_load(sums + i * kBf16Tile + t * kLanes), store, to + t * stride);
    }
  }
};

// SwiGLU of two matrices: a pair is the same panel of both, and silu(gate) * up goes out rounded, as the next product's
// inputs (layout.h), `distance` tokens between its blocks.
template <class Panels>
struct GateAndUp {
  using Source = Panels;
  const Matrix &gate, &up;
  Panels first, second;
  uint8_t* rounded;
  int64_t distance;
  int64_t begin, end;

  int64_t pairs() const { return end - begin; }
  int64_t blocks() const { return gate.padded_cols / kRoundedBlock; }
  int64_t panel(int64_t pair, int) const { return begin + pair; }
  bool has(int64_t, int) const { return true; }

  HD_INLINE uint8_t* place(int64_t p, int64_t token) const {
    return rounded + static_cast<size_t>(p / 2 * distance + token) * 64 + static_cast<size_t>(p % 2) * 32;
  }
  HD_INLINE void take(const float* sums, int64_t pair, int64_t token, int64_t tokens) const {
    const int64_t p = begin + pair;
    for (int64_t t = 0; t < tokens && t < 32; ++t) {
      const float* at = sums + t / 16 * 2 * kBf16Tile + t % 16 * kLanes;
      const F g = lane_results(gate, p, f_load(at)), u = lane_results(up, p, f_load(at + kBf16Tile));
      const __m256bh words = _mm512_cvtneps_pbh(keep_rounded(silu(g, u)).v);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(p, token + t)), reinterpret_cast<__m256i>(words));
    }
    if (p + 1 < gate.panels) return;
    for (int64_t q = gate.panels; q < pad_to(gate.rows, kUnit) / kLanes; ++q)  // what fills up the last unit
      for (int64_t t = 0; t < tokens && t < 32; ++t) std::memset(place(q, token + t), 0, 32);
  }
};

template <class Rows>
struct Bf16Tiles {
  const Rows& rows;
  const Activations& a;

  const uint8_t* inputs(int64_t block, int64_t token) const {
    return a.rounded + static_cast<size_t>(block * a.tokens + token) * 64;
  }

  // Tiles 0-3: sums. The others hold `tokens` tokens or 16 rows of weights.
  static HD_INLINE void configure(int64_t tokens) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = i < 5 ? static_cast<uint8_t>(tokens) : 16;
    asm volatile("ldtilecfg %0" ::"m"(config));  // why not the intrinsic: matmul_tiles.h
  }
  static HD_INLINE void zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  static HD_INLINE void get(const float* sums) {
    _tile_stream_loadd(0, sums, 64);
    _tile_stream_loadd(1, sums + kBf16Tile, 64);
    _tile_stream_loadd(2, sums + 2 * kBf16Tile, 64);
    _tile_stream_loadd(3, sums + 3 * kBf16Tile, 64);
  }
  static HD_INLINE void put(float* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + kBf16Tile, 64);
    _tile_stored(2, sums + 2 * kBf16Tile, 64);
    _tile_stored(3, sums + 3 * kBf16Tile, 64);
  }

  // Adds blocks [from, to) of 32 tokens x 2 panels to the tiles, or of 16 tokens to the first two.
  template <bool Two>
  HD_INLINE void add(const uint8_t* w0, const uint8_t* w1, int64_t from, int64_t to, int64_t token) const {
    const uint8_t* x = inputs(from, token);
    const size_t next = static_cast<size_t>(a.tokens) * 64;
    for (int64_t b = from; b < to; ++b) {
      _tile_stream_loadd(4, x, 64);
      _tile_loadd(6, w0, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w1, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Two) {
        _tile_stream_loadd(5, x + 1024, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      x += next;
      w0 += kBf16TileBytes;
      w1 += kBf16TileBytes;
    }
  }
  HD_INLINE void add(const uint8_t* w0, const uint8_t* w1, int64_t from, int64_t to, int64_t token, bool two) const {
    two ? add<true>(w0, w1, from, to, token) : add<false>(w0, w1, from, to, token);
  }

  HD_INLINE void take(int64_t pair, int64_t token, int64_t tokens) const {
    alignas(64) float sums[4 * kBf16Tile];
    put(sums);
    rows.take(sums, pair, token, tokens);
  }

  // Blocks [from, to) of a pair of panels.
  struct Part {
    int64_t pair, from, to;
  };

  // Calls body(weights, weights, part, lines to ask for meanwhile) for each part of pairs [first, last): all pairs'
  // first inputs, then the next, or all inputs of the first pair, then the next.
  template <bool ByInputs, class Body>
  HD_INLINE void parts(int64_t first, int64_t last, Body body) const {
    const int64_t blocks = rows.blocks(), count = (blocks + kBf16Blocks - 1) / kBf16Blocks;
    const int64_t size = pad_to((blocks + count - 1) / count, 2);  // as even as can be, whole units of integer panels
    const auto part = [&](int64_t pair, int64_t from) __attribute__((always_inline)) {
      return Part{pair, from, from + size < blocks ? from + size : blocks};
    };
    for (Part now = part(first, 0), then; now.from < blocks && now.pair < last; now = then) {
      if constexpr (ByInputs) {
        then = now.pair + 1 < last ? part(now.pair + 1, now.from) : part(first, now.to);
      } else {
        then = now.to < blocks ? part(now.pair, now.to) : part(now.pair + 1, 0);
      }
      const bool more = then.from < blocks && then.pair < last;
      Lines ahead[2] = {};
      if (more) ahead[0] = rows.first.lines(rows.panel(then.pair, 0), then.from, then.to);
      if (more && rows.has(then.pair, 1)) ahead[1] = rows.second.lines(rows.panel(then.pair, 1), then.from, then.to);
      const uint8_t* w0 = rows.first.tiles(rows.panel(now.pair, 0), now.from, now.to, ahead[0]);
      const uint8_t* w1 = w0;  // alone: computed twice, kept once
      if (rows.has(now.pair, 1)) w1 = rows.second.tiles(rows.panel(now.pair, 1), now.from, now.to, ahead[1]);
      asm volatile("" ::: "memory");  // loading a tile does not say what it reads: keep the stores above it
      body(w0, w1, now, ahead);
    }
  }

  // Up to 32 tokens.
  void few(int64_t token, int64_t tokens, int64_t first, int64_t last) const {
    parts<false>(
        first,
        last, [&](const uint8_t* w0, const uint8_t* w1, const Part& p, const Lines*) __attribute__((always_inline)) {
          if (p.from == 0) zero();
          add(w0, w1, p.from, p.to, token, tokens > 16);
          if (p.to == rows.blocks()) take(p.pair, token, tokens);
        });
  }

  // Up to kBf16Tokens tokens against up to kBf16Pairs pairs.
  void many(int64_t token, int64_t tokens, int64_t first, int64_t last, float* memory) const {
    const int64_t steps = (tokens + 31) / 32;
    parts<true>(
        first,
        last, [&](const uint8_t* w0, const uint8_t* w1, const Part& p, Lines* ahead) __attribute__((always_inline)) {
          float* sums = memory + (p.pair - first) * steps * 4 * kBf16Tile;
          const int64_t share = (ahead[0].count() + steps - 1) / steps;
          for (int64_t t = 0; t < tokens; t += 32, sums += 4 * kBf16Tile) {
            if constexpr (Rows::Source::kInPlace) ahead[0].ask(share), ahead[1].ask(share);
            p.from == 0 ? zero() : get(sums);
            add(w0, w1, p.from, p.to, token + t, t + 16 < tokens);
            p.to < rows.blocks() ? put(sums) : take(p.pair, token + t, tokens - t);
          }
        });
  }

  void all(int64_t tokens, uint8_t* scratch) const {
    configure(16);
    for (int64_t t = 0; t < tokens; t += kBf16Tokens) {
      const int64_t n = tokens - t < kBf16Tokens ? tokens - t : kBf16Tokens;
      for (int64_t p = 0; p < rows.pairs(); p += kBf16Pairs) {
        const int64_t last = p + kBf16Pairs < rows.pairs() ? p + kBf16Pairs : rows.pairs();
        n <= 32 ? few(t, n, p, last) : many(t, n, p, last, reinterpret_cast<float*>(scratch));
      }
    }
    _tile_release();
  }

  // Up to 16 tokens, panels in place: four of them side by side, as streams from memory.
  void stream(int64_t tokens) const {
    const int64_t step = (rows.end - rows.begin + 3) / 4;
    configure(tokens);
    alignas(64) float sums[4 * kBf16Tile];
    for (int64_t panel = rows.begin; panel < rows.begin + step; ++panel) {
      const uint8_t* s[4];  // past the end: any panel, for nothing
      for (int i = 0; i < 4; ++i)
        s[i] = rows.first.lines(panel + i * step < rows.end ? panel + i * step : panel, 0, 0).at;
      zero();
      for (int64_t b = 0; b < rows.blocks(); ++b) {
        _tile_loadd(4, inputs(b, 0), 64);
        _tile_loadd(5, s[0], 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, s[1], 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, s[2], 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, s[3], 64);
        _tile_dpbf16ps(3, 4, 5);
        for (auto& at : s) {
          for (size_t line = 0; line < kBf16TileBytes; line += 64) prefetch(at + kFloatPrefetch + line);
          at += kBf16TileBytes;
        }
      }
      put(sums);
      for (int i = 0; i < 4; ++i) {
        const int64_t p = panel + i * step;
        for (int64_t t = 0; t < tokens && p < rows.end; ++t)
          store_lanes(rows.w, p, f_load(sums + i * kBf16Tile + t * kLanes), rows.store,
                      rows.out + t * rows.stride + p * kLanes);
      }
    }
    _tile_release();
  }
};

template <class Panels>
void matmul_bf16(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                 float* out, int64_t stride, uint8_t* scratch) {
  uint8_t* place = scratch + kBf16Sums;
  const OneMatrix<Panels> rows{w, {w, place}, {w, place + kBf16Place}, store, out, stride, begin, end};
  const Bf16Tiles<OneMatrix<Panels>> tiles{rows, a};
  if (Panels::kInPlace && tokens <= 16) return tiles.stream(tokens);
  tiles.all(tokens, scratch);
}

template <Layout L, int G, bool Min>
void matmul_rounded(const PanelKernel<L, G, Min>&, const Matrix& w, const Activations& a, int64_t tokens, int64_t begin,
                    int64_t end, Store store, float* out, int64_t stride, uint8_t* scratch) {
  matmul_bf16<PanelTiles<L, G, Min>>(w, a, tokens, begin, end, store, out, stride, scratch);
}

template <class Panels>
void swiglu_tiles(const Matrix& gate, const Matrix& up, const Activations& a, int64_t tokens, int64_t begin,
                  int64_t end, uint8_t* rounded, int64_t distance, uint8_t* scratch) {
  uint8_t* place = scratch + kBf16Sums;
  const GateAndUp<Panels> rows{gate, up, {gate, place}, {up, place + kBf16Place}, rounded, distance, begin, end};
  Bf16Tiles<GateAndUp<Panels>>{rows, a}.all(tokens, scratch);
}

// Kernels::swiglu
static void swiglu(const Matrix& gate, const Matrix& up, const Activations& a, int64_t tokens, int64_t begin,
                   int64_t end, uint8_t* rounded, int64_t distance, uint8_t* scratch) {
  if (gate.layout == Layout::kBF16)
    return swiglu_tiles<Bf16Panels>(gate, up, a, tokens, begin, end, rounded, distance, scratch);
  with_panel_kernel(gate, [&]<Layout L, int G, bool Min>(const PanelKernel<L, G, Min>&) {
    swiglu_tiles<PanelTiles<L, G, Min>>(gate, up, a, tokens, begin, end, rounded, distance, scratch);
  });
}

}  // namespace herder::HD_ISA_NAMESPACE
