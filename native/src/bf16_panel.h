// Panels of integer layouts as bfloat16: what the products of prompts multiply with (matmul_bf16.h).
//
//   weight = bfloat16(scale * level + minimum)          in float32 first, which is exact without a minimum
// to nearest, ties to even. row_scale is left to the end of the product. None is below 2^-56: float16 scales and minima
// are multiples of 2^-24.
#pragma once

#if defined(HD_AMX)
#include "lines.h"
#endif
#include "matmul_bf16.h"
#include "matmul_integer.h"

namespace herder::HD_ISA_NAMESPACE {

#if !defined(HD_AMX)
// A unit of a panel: [kUnit / 2 pairs of inputs][16 rows][2]. The slow twin of the one for tiles.
template <Layout L, int G, bool Min>
inline void round_unit(const PanelKernel<L, G, Min>&, const Matrix& w, const uint8_t* unit, uint16_t* out) {
  using Panel = PanelKernel<L, G, Min>;
  for (int g = 0; g < Panel::kGroups; ++g) {
    float scale[kLanes], minimum[kLanes] = {};
    f_store(scale, f_load_f16(reinterpret_cast<const uint16_t*>(unit) + g * kLanes));
    if constexpr (Min)
      f_store(minimum, f_load_f16(reinterpret_cast<const uint16_t*>(unit + Panel::kScaleBytes) + g * kLanes));
    const uint8_t* codes = unit + Panel::kCodeOffset + static_cast<size_t>(g) * Panel::kGroupCodeBytes;
    for (int i = 0; i < G; ++i) {
      const int quad = i / 4, half = Panel::kQuads / 2;
      const bool high = Panel::kNibbles && quad >= half;
      const uint8_t* column = codes + (high ? quad - half : quad) * 64 + i % 4;
      uint16_t* to = out + ((g * G + i) / 2 * kLanes) * 2 + i % 2;
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint8_t byte = column[4 * lane];
        const int code = !Panel::kNibbles ? byte : high ? byte >> 4 : byte & 15;
        const int level = L == Layout::kNibbleTable ? w.table[code] : code - w.zero;
        float value = scale[lane] * static_cast<float>(level);
        if constexpr (Min) value += minimum[lane];
        to[2 * lane] = f32_to_bf16(value);
      }
    }
  }
}

inline size_t rounded_panel_bytes(const Matrix& w) { return static_cast<size_t>(w.padded_cols) * kLanes * 2; }

template <Layout L, int G, bool Min>
void matmul_rounded(const PanelKernel<L, G, Min>& kernel, const Matrix& w, const Activations& a, int64_t tokens,
                    int64_t begin, int64_t end, Store store, float* out, int64_t stride, uint8_t* scratch) {
  Matrix rounded = w;  // one panel of it
  rounded.layout = Layout::kBF16;
  rounded.panels = 1;
  rounded.panel_bytes = rounded_panel_bytes(w);
  rounded.data = scratch;
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* from = w.data + static_cast<size_t>(panel) * w.panel_bytes;
    auto* to = reinterpret_cast<uint16_t*>(scratch);
    for (int64_t k = 0; k < w.padded_cols; k += kUnit, from += w.unit_bytes(), to += kUnit * kLanes)
      round_unit(kernel, w, from, to);
    if (w.row_scale) rounded.row_scale = w.row_scale + panel * kLanes;
    if (w.bias) rounded.bias = w.bias + panel * kLanes;
    FloatProduct<Bf16Kernel>::matmul(rounded, a, tokens, 0, 1, store, out + panel * kLanes, stride);
  }
}
#else
constexpr int64_t kBf16Blocks = 20;  // of 32 inputs of a panel, at most, that a place for tiles has room for
constexpr size_t kBf16TileBytes = 1024;
constexpr size_t kBf16Place = kBf16Blocks * kBf16TileBytes;

// The same for the panels of a product, as tiles of 32 inputs x 16 rows (1024 bytes). Eight rows and two inputs of each
// share a vector, so that rounding two vectors into one leaves the words in their places.
template <Layout L, int G, bool Min>
class PanelTiles {
  using Panel = PanelKernel<L, G, Min>;
  static constexpr unsigned kGroupPieces = Panel::kNibbles ? Panel::kQuads / 2 : Panel::kQuads;
  static constexpr unsigned kUnitPieces = Panel::kGroups * kGroupPieces;
  static constexpr size_t kGroupTiles = static_cast<size_t>(G) * kLanes * 2;  // bytes

 public:
  PanelTiles(const Matrix& w, uint8_t* memory) : w_(w), memory_(memory) {
    alignas(64) float levels[kLanes];
    for (int i = 0; i < kLanes; ++i)
      levels[i] = static_cast<float>(L == Layout::kNibbleTable ? w.table[i] : i - w.zero);
    levels_ = _mm512_load_ps(levels);
  }

  static constexpr bool kInPlace = false;

  // Blocks [from, to) of 32 inputs of a panel, both even, on their way to `tiles`, 64 bytes of codes at a time.
  struct Work {
    const uint8_t *tiles = nullptr, *unit = nullptr;
    uint8_t* at = nullptr;
    int64_t left = 0;    // pieces
    unsigned piece = 0;  // of the unit
    Lines next = {};     // to ask for meanwhile
    bool done() const { return left == 0; }
  };
  // place: 0 or 1.
  Work begin(int64_t panel, int64_t from, int64_t to, int place, Lines next) const {
    uint8_t* at = memory_ + static_cast<size_t>(place) * kBf16Place;
    return {at, lines(panel, from, to).at, at, pieces(to - from), 0, next};
  }
  int64_t pieces(int64_t blocks) const { return blocks * kRoundedBlock / kUnit * kUnitPieces; }
  // One piece.
  __attribute__((noinline)) void step(Work& work) const {
    work.next.ask(Panel::kUnitBytes / 64 / kUnitPieces + 1);
    const unsigned g = work.piece / kGroupPieces, i = work.piece % kGroupPieces;
    codes(group_codes(work.unit, g), i, Scales(work.unit, g), work.at + g * kGroupTiles);
    --work.left;
    if (++work.piece == kUnitPieces) {
      work.piece = 0;
      work.unit += Panel::kUnitBytes;
      work.at += Panel::kGroups * kGroupTiles;
    }
  }
  // All that are left.
  __attribute__((noinline)) void finish(Work& work) const {
    while (work.piece != 0) step(work);
    const uint8_t* unit = work.unit;
    uint8_t* at = work.at;
    Lines next = work.next;
    for (int64_t left = work.left; left > 0; left -= kUnitPieces, unit += Panel::kUnitBytes) {
      next.ask(Panel::kUnitBytes / 64 + 1);
      unrolled<Panel::kGroups>([&](auto g) __attribute__((always_inline)) {
        const Scales scales(unit, g);
        unrolled<kGroupPieces>([&](auto i)
                                   __attribute__((always_inline)) { codes(group_codes(unit, g), i, scales, at); });
        at += kGroupTiles;
      });
    }
    work.left = 0;
  }

  // Where they lie.
  Lines lines(int64_t panel, int64_t from, int64_t to) const {
    const uint8_t* first = w_.data + static_cast<size_t>(panel) * w_.panel_bytes;
    return {first + static_cast<size_t>(from / 2) * Panel::kUnitBytes,
            first + static_cast<size_t>(to / 2) * Panel::kUnitBytes};
  }

 private:
  static HD_INLINE __m512i twice(int half) {
    const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_add_epi32(first, _mm512_set1_epi32(8 * half));
  }

  // Of a group: of a vector's rows, the first eight or the last eight.
  struct Scales {
    __m512 scale[2], minimum[2];

    HD_INLINE Scales(const uint8_t* unit, unsigned group) {
      const auto* scales = reinterpret_cast<const uint16_t*>(unit) + group * kLanes;
      const auto* minima = reinterpret_cast<const uint16_t*>(unit + Panel::kScaleBytes) + group * kLanes;
      unrolled<2>([&](auto h) __attribute__((always_inline)) {
        scale[h] = _mm512_permutexvar_ps(twice(h), f_load_f16(scales).v);
        if constexpr (Min) minimum[h] = _mm512_permutexvar_ps(twice(h), f_load_f16(minima).v);
      });
    }
  };

  static HD_INLINE const uint8_t* group_codes(const uint8_t* unit, unsigned group) {
    return unit + Panel::kCodeOffset + size_t{group} * Panel::kGroupCodeBytes;
  }

  // Piece i of a group: eight inputs of the 16 rows, or four if codes are bytes.
  HD_INLINE void codes(const uint8_t* group, unsigned i, const Scales& scales, uint8_t* out) const {
    const __m512i raw = _mm512_loadu_si512(group + i * 64);
    const __m512i low = _mm512_permutexvar_epi32(twice(0), raw), high = _mm512_permutexvar_epi32(twice(1), raw);
    quad<0>(low, high, scales, out + i * 128);
    if constexpr (Panel::kNibbles) quad<4>(low, high, scales, out + (i + kGroupPieces) * 128);
  }

  // The four inputs whose codes begin at bit `Shift` of the bytes: two vectors.
  template <int Shift>
  HD_INLINE void quad(__m512i low, __m512i high, const Scales& scales, uint8_t* out) const {
    unrolled<2>([&](auto h) __attribute__((always_inline)) {
      constexpr int kFirst = Shift + 16 * h;
      const __m512i shift = _mm512_set1_epi64(static_cast<int64_t>(kFirst) | static_cast<int64_t>(kFirst + 8) << 32);
      const __m512 a = weights<0>(_mm512_srlv_epi32(low, shift), scales);
      const __m512 b = weights<1>(_mm512_srlv_epi32(high, shift), scales);
      _mm512_store_si512(out + h * 64, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
    });
  }

  template <int Half>
  HD_INLINE __m512 weights(__m512i codes, const Scales& scales) const {
    __m512 level;
    if constexpr (Panel::kNibbles) {
      level = _mm512_permutexvar_ps(codes, levels_);  // looks at four bits of the index
    } else {
      level = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(255))),
                            _mm512_set1_ps(static_cast<float>(w_.zero)));
    }
    if constexpr (Min) return _mm512_fmadd_ps(level, scales.scale[Half], scales.minimum[Half]);  // the product is exact
    return _mm512_mul_ps(level, scales.scale[Half]);
  }

  const Matrix& w_;
  uint8_t* const memory_;
  __m512 levels_;
};
#endif

}  // namespace herder::HD_ISA_NAMESPACE
