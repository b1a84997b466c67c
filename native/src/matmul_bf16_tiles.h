// bfloat16 matrix products with AMX tiles, one token or many: the same sums as matmul_bf16.h, bit for bit.
//
// A block of 32 inputs is one tile product of up to 16 tokens and 16 rows; panels lie as tiles want them. Few tokens
// take four panels side by side, as streams from memory. Many take 32 tokens x 2 panels, over as many inputs at a time
// as leave the panels' part in the nearest cache and everybody's in the next; the sums wait in memory of their own.
#pragma once

#include "matmul_bf16.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr int64_t kBf16Tokens = 512, kBf16Panels = 16;  // whose sums wait together
constexpr int64_t kBf16Blocks = 8;                      // of 32 inputs at a time
constexpr size_t kBf16TileBytes = 1024;
constexpr size_t kBf16Scratch = static_cast<size_t>(kBf16Tokens * kBf16Panels * kLanes) * sizeof(float);

struct Bf16Tiles {
  const Matrix& w;
  const Activations& a;
  Store store;
  float* out;
  int64_t stride;

  int64_t blocks() const { return w.padded_cols / kRoundedBlock; }
  const uint8_t* weights(int64_t panel) const { return w.data + static_cast<size_t>(panel) * w.panel_bytes; }
  const uint8_t* inputs(int64_t block, int64_t token) const {
    return a.rounded + static_cast<size_t>(block * a.tokens + token) * 64;
  }

  // Tiles 0-3: sums. The others hold `rows` tokens or 16 rows of weights.
  static HD_INLINE void configure(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = i < 5 ? static_cast<uint8_t>(rows) : 16;
    asm volatile("ldtilecfg %0" ::"m"(config));  // why not the intrinsic: matmul_tiles.h
  }

  HD_INLINE void finish(const float* sums, int64_t token, int64_t tokens, int64_t panel) const {
    for (int64_t t = 0; t < tokens; ++t)
      store_floats(w, panel, f_load(sums + t * kLanes), store, out + (token + t) * stride + panel * kLanes);
  }

  // Up to 16 tokens.
  void few(int64_t tokens, int64_t begin, int64_t end) const {
    const int64_t step = (end - begin + 3) / 4;
    configure(tokens);
    alignas(64) float sums[4][16 * kLanes];
    for (int64_t panel = begin; panel < begin + step; ++panel) {
      const uint8_t* s[4];  // past the end: any panel, for nothing
      for (int i = 0; i < 4; ++i) s[i] = weights(panel + i * step < end ? panel + i * step : panel);
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t b = 0; b < blocks(); ++b) {
        _tile_loadd(4, inputs(b, 0), 64);
        _tile_loadd(5, s[0], 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, s[1], 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, s[2], 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, s[3], 64);
        _tile_dpbf16ps(3, 4, 5);
        for (auto& stream : s) {
          for (size_t line = 0; line < kBf16TileBytes; line += 64) prefetch(stream + kFloatPrefetch + line);
          stream += kBf16TileBytes;
        }
      }
      _tile_stored(0, sums[0], 64);
      _tile_stored(1, sums[1], 64);
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
      for (int i = 0; i < 4; ++i)
        if (panel + i * step < end) finish(sums[i], 0, tokens, panel + i * step);
    }
  }

  // Adds blocks [from, to) of 32 tokens x 2 panels to the four tiles at `sums`.
  HD_INLINE void add(const uint8_t* w0, const uint8_t* w1, int64_t from, int64_t to, int64_t token0, int64_t token1,
                     float* sums) const {
    constexpr int kTile = 16 * kLanes;
    if (from == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + kTile, 64);
      _tile_loadd(2, sums + 2 * kTile, 64);
      _tile_loadd(3, sums + 3 * kTile, 64);
    }
    const uint8_t *x0 = inputs(from, token0), *x1 = inputs(from, token1);
    const size_t skip = static_cast<size_t>(from) * kBf16TileBytes, next = static_cast<size_t>(a.tokens) * 64;
    w0 += skip;
    w1 += skip;
    for (int64_t b = from; b < to; ++b) {
      _tile_loadd(4, x0, 64);
      _tile_loadd(6, w0, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w1, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x1, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      x0 += next;
      x1 += next;
      w0 += kBf16TileBytes;
      w1 += kBf16TileBytes;
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + kTile, 64);
    _tile_stored(2, sums + 2 * kTile, 64);
    _tile_stored(3, sums + 3 * kTile, 64);
  }

  // Up to kBf16Tokens tokens against up to kBf16Panels panels.
  void many(int64_t token, int64_t tokens, int64_t begin, int64_t end, float* scratch) const {
    for (int64_t from = 0; from < blocks(); from += kBf16Blocks) {
      const int64_t to = from + kBf16Blocks < blocks() ? from + kBf16Blocks : blocks();
      float* sums = scratch;
      for (int64_t p = begin; p < end; p += 2) {
        const int64_t pair = p + 1 < end ? p + 1 : p;  // alone: computed twice, kept once
        for (int64_t t = 0; t < tokens; t += 32, sums += 4 * 16 * kLanes) {
          const int64_t second = t + 16 < tokens ? t + 16 : t;
          add(weights(p), weights(pair), from, to, token + t, token + second, sums);
          if (to < blocks()) continue;
          for (int i = 0; i < 4; ++i) {
            const int64_t at = t + i / 2 * 16, left = tokens - at < 16 ? tokens - at : 16;
            if (p + i % 2 < end) finish(sums + i * 16 * kLanes, token + at, left, p + i % 2);
          }
        }
      }
    }
  }

  void all(int64_t tokens, int64_t begin, int64_t end, uint8_t* scratch) const {
    if (tokens <= 16) {
      few(tokens, begin, end);
    } else {
      configure(16);
      for (int64_t t = 0; t < tokens; t += kBf16Tokens)
        for (int64_t p = begin; p < end; p += kBf16Panels)
          many(t, tokens - t < kBf16Tokens ? tokens - t : kBf16Tokens, p, p + kBf16Panels < end ? p + kBf16Panels : end,
               reinterpret_cast<float*>(scratch));
    }
    _tile_release();
  }
};

}  // namespace herder::HD_ISA_NAMESPACE
