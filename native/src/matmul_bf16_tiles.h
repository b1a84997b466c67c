// bfloat16 matrix products with AMX tiles, one token or many: the same sums as matmul_bf16.h, bit for bit.
//
// A block of 32 inputs is one tile product of 16 tokens and 16 rows. Weights are bfloat16 panels, which lie as tiles
// want them, or integer panels taken apart on the way (bf16_panel.h). Many tokens take 32 tokens x 2 panels, over as
// many inputs at a time as leave the two panels' tiles in the nearest cache; the tokens pass by them, loaded with the
// hint that they need not stay (without it they throw the weights out: 1,220 against 1,520 billion multiply-adds a
// second). Sums wait in memory of their own. Up to 32 tokens keep their sums in the tiles.
//
// Tiles compute by themselves once they are told to: between two products the vector units take the results of the 32
// tokens before, and the next panels apart, a little at a time (Meanwhile). A lot at a time is as slow as one after the
// other, because the tiles then wait for their next instruction.
#pragma once

#include "bf16_panel.h"
#include "elementwise.h"
#include "matmul_bf16.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int64_t kBf16Tokens = 512, kBf16Pairs = 8;  // whose sums wait together
constexpr int64_t kBf16Interleave =
    8;  // from so many steps of 32 tokens on, a piece of a panel goes between two products
constexpr int kPairStride = 2 * kLanes;  // sums of a pair of panels: [32 tokens][2 panels][16 rows]
constexpr int kPairSums = 2 * 16 * kPairStride;
constexpr size_t kBf16Sums = static_cast<size_t>(kBf16Tokens * kBf16Pairs * 2 * kLanes) * sizeof(float);
constexpr size_t kBf16Scratch = kBf16Sums + 4 * kBf16Place;

// Panels that are tiles already. As PanelTiles.
class Bf16Panels {
 public:
  Bf16Panels(const Matrix& w, uint8_t*) : w_(w) {}

  static constexpr bool kInPlace = true;

  struct Work {
    const uint8_t* tiles = nullptr;
    Lines rest = {};
    bool done() const { return rest.at >= rest.end; }
  };
  Work begin(int64_t panel, int64_t from, int64_t to, int, Lines) const {
    const Lines all = lines(panel, from, to);
    return {all.at, all};
  }
  int64_t pieces(int64_t blocks) const { return blocks; }
  void step(Work& work) const { work.rest.ask(kBf16TileBytes / 64); }
  void finish(Work& work) const { work.rest.ask(work.rest.count()); }
  Lines lines(int64_t panel, int64_t from, int64_t to) const {
    const uint8_t* first = w_.data + static_cast<size_t>(panel) * w_.panel_bytes;
    return {first + static_cast<size_t>(from) * kBf16TileBytes, first + static_cast<size_t>(to) * kBf16TileBytes};
  }

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

  // Whether sums are results as they are.
  bool direct() const { return store == Store::kSet && !w.row_scale && !w.bias; }
  int64_t out_stride() const { return stride; }
  float* place(int64_t pair, int64_t token) const { return out + token * stride + panel(pair, 0) * kLanes; }

  // sums: of a token.
  HD_INLINE void take(const float* sums, int64_t pair, int64_t token) const {
    const int64_t p = panel(pair, 0);
    float* to = place(pair, token);
    store_lanes(w, p, f_load(sums), store, to);
    if (p + 1 < end) store_lanes(w, p + 1, f_load(sums + kLanes), store, to + kLanes);
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

  static constexpr bool direct() { return false; }
  float* place(int64_t, int64_t) const { return nullptr; }
  int64_t out_stride() const { return 0; }

  HD_INLINE uint8_t* at(int64_t p, int64_t token) const {
    return rounded + static_cast<size_t>(p / 2 * distance + token) * 64 + static_cast<size_t>(p % 2) * 32;
  }
  HD_INLINE void take(const float* sums, int64_t pair, int64_t token) const {
    const int64_t p = begin + pair;
    const F g = lane_results(gate, p, f_load(sums)), u = lane_results(up, p, f_load(sums + kLanes));
    const __m256bh words = _mm512_cvtneps_pbh(keep_rounded(silu(g, u)).v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(p, token)), reinterpret_cast<__m256i>(words));
    if (p + 1 < gate.panels) return;
    for (int64_t q = gate.panels; q < pad_to(gate.rows, kUnit) / kLanes; ++q)  // what fills up the last unit
      std::memset(at(q, token), 0, 32);
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
    const float* second = sums + 16 * kPairStride;
    _tile_stream_loadd(0, sums, kPairStride * 4);
    _tile_stream_loadd(1, sums + kLanes, kPairStride * 4);
    _tile_stream_loadd(2, second, kPairStride * 4);
    _tile_stream_loadd(3, second + kLanes, kPairStride * 4);
  }
  // stride: floats from a token's sums to the next one's.
  static HD_INLINE void put(float* sums, int64_t stride) {
    float* second = sums + 16 * stride;
    _tile_stored(0, sums, stride * 4);
    _tile_stored(1, sums + kLanes, stride * 4);
    _tile_stored(2, second, stride * 4);
    _tile_stored(3, second + kLanes, stride * 4);
  }

  // Blocks [from, to) of a pair of panels.
  struct Part {
    int64_t pair, from, to;
  };

  // What vector units do between tile products: the results of the tokens before, taken one by one, and the next part,
  // taken apart piece by piece.
  struct Meanwhile {
    const Rows& rows;
    const float* sums = nullptr;
    int64_t pair = 0, token = 0, taken = 0, tokens = 0;
    typename Rows::Source::Work next[2] = {};
    int64_t pieces = 0, products = 1, due = 0;  // `pieces` of next for as many products

    void results(const float* of, int64_t p, int64_t t, int64_t n) {
      sums = of, pair = p, token = t, taken = 0, tokens = n;
    }
    // Not inline, as steps of panels: between tile products the compiler would keep their state in mask registers.
    __attribute__((noinline)) void take(int64_t n) {
      const int64_t last = taken + n < tokens ? taken + n : tokens;
      for (int64_t t = taken; t < last; ++t) rows.take(sums + t * kPairStride, pair, token + t);
      taken = last;
    }
    HD_INLINE void step() {
      for (due += pieces; due >= products; due -= products) piece();
    }
    HD_INLINE void piece() {
      if (!next[0].done()) {
        rows.first.step(next[0]);
      } else if (!next[1].done()) {
        rows.second.step(next[1]);
      }
    }
    void finish() {
      rows.first.finish(next[0]);
      rows.second.finish(next[1]);
    }
  };

  // Adds blocks [from, to) of 32 tokens x 2 panels to the tiles, or of 16 tokens to the first two.
  template <bool Two>
  HD_INLINE void add(const uint8_t* w0, const uint8_t* w1, int64_t from, int64_t to, int64_t token,
                     Meanwhile& meanwhile) const {
    const uint8_t* x = inputs(from, token);
    const size_t distance = static_cast<size_t>(a.tokens) * 64;
    const int64_t results = (32 + to - from - 1) / (to - from);
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
      x += distance;
      w0 += kBf16TileBytes;
      w1 += kBf16TileBytes;
      if (meanwhile.taken < meanwhile.tokens) meanwhile.take(results);
      meanwhile.step();
    }
  }

  // The one after `p`: of all pairs the first inputs, then the next, or of the first pair all inputs, then of the next.
  Part after(const Part& p, int64_t first, int64_t last, bool by_inputs) const {
    const int64_t blocks = rows.blocks(), count = (blocks + kBf16Blocks - 1) / kBf16Blocks;
    const int64_t size = pad_to((blocks + count - 1) / count, 2);  // as even as can be, whole units of integer panels
    int64_t pair = p.pair, from = p.to;
    if (by_inputs && p.pair + 1 < last) {
      pair = p.pair + 1, from = p.from;
    } else if (by_inputs) {
      pair = first;
    } else if (p.to >= blocks) {
      pair = p.pair + 1, from = 0;
    }
    if (from >= blocks || pair >= last) return {last, blocks, blocks};
    return {pair, from, from + size < blocks ? from + size : blocks};
  }

  // Up to kBf16Tokens tokens against up to kBf16Pairs pairs.
  void block(int64_t token, int64_t tokens, int64_t first, int64_t last, float* memory) const {
    const bool few = tokens <= 32;
    const int64_t steps = (tokens + 31) / 32;
    const bool interleave = steps >= kBf16Interleave;
    alignas(64) float results[2][kPairSums];
    Meanwhile meanwhile{rows};
    Part now = after({first - 1, 0, rows.blocks()}, first, last, false), then = after(now, first, last, !few);
    const auto begin = [&](const Part& p, int place) {
      const Part following = after(p, first, last, !few);
      const auto lines = [&](const typename Rows::Source& panels, int i) {
        return following.pair < last && rows.has(following.pair, i)
                   ? panels.lines(rows.panel(following.pair, i), following.from, following.to)
                   : Lines{};
      };
      meanwhile.next[0] = meanwhile.next[1] = {};
      if (p.pair >= last) return;
      meanwhile.next[0] = rows.first.begin(rows.panel(p.pair, 0), p.from, p.to, place, lines(rows.first, 0));
      if (rows.has(p.pair, 1))
        meanwhile.next[1] = rows.second.begin(rows.panel(p.pair, 1), p.from, p.to, place, lines(rows.second, 1));
    };
    begin(now, 0);
    int turn = 0;
    for (int place = interleave; now.pair < last; place = interleave - place) {
      meanwhile.finish();
      const uint8_t* w0 = meanwhile.next[0].tiles;
      const uint8_t* w1 = rows.has(now.pair, 1) ? meanwhile.next[1].tiles : w0;  // alone: computed twice, kept once
      begin(then, place);
      meanwhile.pieces = interleave ? 2 * rows.first.pieces(then.to - then.from) : 0;
      meanwhile.products = steps * (now.to - now.from);
      meanwhile.due = 0;
      float* sums = memory + (now.pair - first) * steps * kPairSums;
      for (int64_t t = 0; t < tokens; t += 32, sums += kPairSums) {
        asm volatile("" ::: "memory");  // loading a tile does not say what it reads: keep the stores above it
        if (now.from == 0) {
          zero();
        } else if (!few) {
          get(sums);
        }
        if (t + 16 < tokens) {
          add<true>(w0, w1, now.from, now.to, token + t, meanwhile);
        } else {
          add<false>(w0, w1, now.from, now.to, token + t, meanwhile);
        }
        if (now.to < rows.blocks()) {
          if (!few) put(sums, kPairStride);
        } else if (rows.direct() && t + 32 <= tokens && rows.has(now.pair, 1)) {
          put(rows.place(now.pair, token + t), rows.out_stride());
        } else {
          put(results[turn], kPairStride);
          meanwhile.results(results[turn], now.pair, token + t, tokens - t < 32 ? tokens - t : 32);
          turn = 1 - turn;
        }
      }
      now = then;
      then = after(then, first, last, !few);
    }
    meanwhile.take(32);
  }

  void all(int64_t tokens, uint8_t* scratch) const {
    configure(16);
    for (int64_t t = 0; t < tokens; t += kBf16Tokens) {
      const int64_t n = tokens - t < kBf16Tokens ? tokens - t : kBf16Tokens;
      for (int64_t p = 0; p < rows.pairs(); p += kBf16Pairs) {
        const int64_t last = p + kBf16Pairs < rows.pairs() ? p + kBf16Pairs : rows.pairs();
        block(t, n, p, last, reinterpret_cast<float*>(scratch));
      }
    }
    _tile_release();
  }

  // Up to 16 tokens, panels in place: four of them side by side, as streams from memory.
  void stream(int64_t tokens) const {
    const int64_t step = (rows.end - rows.begin + 3) / 4;
    configure(tokens);
    alignas(64) float sums[kPairSums];
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
      put(sums, kPairStride);
      for (int i = 0; i < 4; ++i) {
        const int64_t p = panel + i * step;
        for (int64_t t = 0; t < tokens && p < rows.end; ++t)
          store_lanes(rows.w, p, f_load(sums + (i / 2 * 16 + t) * kPairStride + i % 2 * kLanes), rows.store,
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
  const OneMatrix<Panels> rows{w, {w, place}, {w, place + 2 * kBf16Place}, store, out, stride, begin, end};
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
  const GateAndUp<Panels> rows{gate, up, {gate, place}, {up, place + 2 * kBf16Place}, rounded, distance, begin, end};
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
