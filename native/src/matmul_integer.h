// Integer matrix products over packed panels: W4/W8 weights, int8 activations, float32 results.
//
// For a token t, a row r and the weight groups g in order:
//   dot(g)  = sum over k in g of (code - zero) * q[t][k]                                    exact in int32
//   result  = fma(float(dot) * activation_scale, scale[r][g], result)
//   result  = fma(float(sum of q over g) * activation_scale, minimum[r][g], result)         where there are minima
// then times row_scale, plus bias.
// The order depends on the layout alone: one token or 512, one thread or many, VNNI or tiles give the same bits.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "matmul_float.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr size_t kPrefetchAhead = 4096;  // bytes

template <Layout L, int G, bool Min>
struct PanelKernel {
  static constexpr bool kNibbles = L != Layout::kByte;
  static constexpr int kGroups = kUnit / G;  // groups of a unit
  static constexpr int kQuads = G / 4;       // quads of a group
  static constexpr int kPerScale = kActivationGroup / G;
  static constexpr size_t kScaleBytes = static_cast<size_t>(kGroups) * kLanes * 2;
  static constexpr size_t kCodeOffset = kScaleBytes * (Min ? 2 : 1);
  static constexpr size_t kUnitBytes = kCodeOffset + (kNibbles ? 512 : 1024);
  static constexpr size_t kGroupCodeBytes = kNibbles ? G * 8 : G * 16;
  static constexpr int kCodeBias = L == Layout::kNibble ? 0 : kByteBias;
  using Sum = std::conditional_t<L == Layout::kNibble, NibbleSum, ByteSum>;

  static HD_INLINE B load_table(const Matrix& w) {
    int8_t biased[16];
    for (int i = 0; i < 16; ++i) biased[i] = static_cast<int8_t>(w.table[i] + 128 - kByteBias);
    return b_table(biased);
  }

  static HD_INLINE void unpack_pair(B raw, B table, B& low, B& high) {
    low = b_low4(raw);
    high = b_high4(raw);
    if constexpr (L == Layout::kNibbleTable) {
      low = b_lookup(table, low);
      high = b_lookup(table, high);
    }
  }

  // A panel as it lies in memory. Its weights are taken apart in registers, for one tile of tokens; those ahead are
  // asked for.
  struct Packed {
    const uint8_t* at;
    size_t ahead = kPrefetchAhead;  // bytes

    HD_INLINE F scale(int g) const { return f_load_f16(reinterpret_cast<const uint16_t*>(at) + g * kLanes); }
    HD_INLINE F minimum(int g) const {
      return f_load_f16(reinterpret_cast<const uint16_t*>(at + kScaleBytes) + g * kLanes);
    }
    HD_INLINE B codes(int g, int i) const {
      return b_load(at + kCodeOffset + static_cast<size_t>(g) * kGroupCodeBytes + 64 * i);
    }
    HD_INLINE void next() {
      for (size_t line = 0; line < kUnitBytes; line += 64) prefetch(at + ahead + line);
      at += kUnitBytes;
    }
  };

  // Some units of a panel taken apart, for many tiles of tokens.
  struct Unpacked {
    const uint8_t* code;  // [unit][kUnit / 4][64]
    const float* factor;  // [unit][scales, minima][kGroups][16]

    HD_INLINE F scale(int g) const { return f_load(factor + g * kLanes); }
    HD_INLINE F minimum(int g) const { return f_load(factor + (kGroups + g) * kLanes); }
    HD_INLINE B codes(int g, int i) const { return b_load(code + g * G * kLanes + 64 * i); }
    HD_INLINE void next() {
      code += kUnit * kLanes;
      factor += kUnitFactors;
    }
  };
  static constexpr int kUnitFactors = kGroups * kLanes * (Min ? 2 : 1);

  // Takes `units` of a panel apart and leaves it behind them.
  static HD_INLINE void unpack(const Matrix& w, Packed& from, int64_t units, uint8_t* code, float* factor) {
    B table;
    if constexpr (L == Layout::kNibbleTable) table = load_table(w);
    for (; units > 0; --units, from.next()) {
      for (int g = 0; g < kGroups; ++g, code += G * kLanes) {
        f_store(factor + g * kLanes, from.scale(g));
        if constexpr (Min) f_store(factor + (kGroups + g) * kLanes, from.minimum(g));
        for (int i = 0; i < (kNibbles ? kQuads / 2 : kQuads); ++i) {
          B low = from.codes(g, i), high;
          if constexpr (kNibbles) {
            unpack_pair(low, table, low, high);
            b_store(code + 64 * (i + kQuads / 2), high);
          } else {
            low = b_code8(low);
          }
          b_store(code + 64 * i, low);
        }
      }
      factor += kUnitFactors;
    }
  }

  // Adds units begin..end of T tokens x P panels.
  template <int T, int P, class Panel>
  static HD_INLINE void run(const Matrix& w, const Activations& a, int64_t token, int64_t begin, int64_t end,
                            Panel (&panel)[P], F (&total)[P][T]) {
    const int32_t offset = kCodeBias - w.zero;
    const int8_t* q = a.q + (begin * a.tokens + token) * kUnit;
    const float* fields = a.fields + begin * a.tokens * kActivationFields + token;
    B table;
    if constexpr (L == Layout::kNibbleTable) table = load_table(w);
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int g = 0; g < kGroups; ++g) {
        const float* as = fields + (kScale + g / kPerScale) * a.tokens;
        const float* sums = fields + ((G == 16 ? kSum16 : kSum32) + g) * a.tokens;
        const float* masses = fields + ((G == 16 ? kMass16 : kMass32) + g) * a.tokens;
        const auto start = [&](int t) __attribute__((always_inline)) {
          return offset == 0 ? i_set1(0) : i_scaled(sums + t, offset);
        };
        Sum sum[P][T];
        for (int t = 0; t < T; ++t)
          for (int p = 0; p < P; ++p) sum[p][t].begin(start(t));
        const auto add = [&](const B(&codes)[P], int quad) __attribute__((always_inline)) {
          for (int t = 0; t < T; ++t)
            for (int p = 0; p < P; ++p) sum[p][t].add(codes[p], q + t * kUnit + g * G + 4 * quad);
        };
        if constexpr (kNibbles && std::is_same_v<Panel, Packed>) {
          unrolled<kQuads / 2>([&](auto i) __attribute__((always_inline)) {
            B low[P], high[P];
            for (int p = 0; p < P; ++p) unpack_pair(panel[p].codes(g, i), table, low[p], high[p]);
            add(low, i);
            add(high, i + kQuads / 2);
          });
        } else {
          unrolled<kQuads>([&](auto i) __attribute__((always_inline)) {
            B codes[P];
            for (int p = 0; p < P; ++p) {
              codes[p] = panel[p].codes(g, i);
              if constexpr (std::is_same_v<Panel, Packed>) codes[p] = b_code8(codes[p]);
            }
            add(codes, i);
          });
        }
        for (int p = 0; p < P; ++p) {
          const F scale = panel[p].scale(g);
          for (int t = 0; t < T; ++t)
            total[p][t] = f_fma(f_mul(f_from_i(sum[p][t].value(start(t))), f_set1(as[t])), scale, total[p][t]);
          if constexpr (Min) {
            const F minimum = panel[p].minimum(g);
            for (int t = 0; t < T; ++t) total[p][t] = f_fma(f_set1(masses[t]), minimum, total[p][t]);
          }
        }
      }
      q += a.tokens * kUnit;
      fields += a.tokens * kActivationFields;
      for (int p = 0; p < P; ++p) panel[p].next();
    }
  }

  // T tokens from `token` on x P panels, `step` panels apart. ahead: what is asked for before it is needed, bytes.
  template <int T, int P>
  static __attribute__((noinline)) void stream(const Matrix& w, const Activations& a, int64_t token, int64_t panel,
                                               int64_t step, size_t ahead, Store store, float* out, int64_t stride) {
    Packed from[P];
    F total[P][T];
    for (int p = 0; p < P; ++p) {
      from[p] = {w.data + static_cast<size_t>(panel + p * step) * w.panel_bytes, ahead};
      for (int t = 0; t < T; ++t) total[p][t] = f_zero();
    }
    run(w, a, token, 0, w.padded_cols / kUnit, from, total);
    for (int p = 0; p < P; ++p) {
      const int64_t at = panel + p * step;
      for (int t = 0; t < T; ++t) store_lanes(w, at, total[p][t], store, out + (token + t) * stride + at * kLanes);
    }
  }

  // Few tokens, T at the most: the weights' way from memory is what takes time. Side by side as many panels as
  // registers allow, each a long stream of its own, because one stream alone does not keep enough cache lines in
  // flight.
  template <int T>
  static void few(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                  float* out, int64_t stride) {
    if constexpr (T > 1)
      if (tokens < T) return few<T - 1>(w, a, tokens, begin, end, store, out, stride);
    constexpr int kMost = kBlockTokens * kBlockPanels / T, P = kMost < 1 ? 1 : kMost > 4 ? 4 : kMost;
    const int64_t step = (end - begin) / P;
    for (int64_t p = begin; p < begin + step; ++p) stream<T, P>(w, a, 0, p, step, kPrefetchAhead, store, out, stride);
    if constexpr (P > 1)
      for (int64_t p = begin + P * step; p < end; ++p) stream<T, 1>(w, a, 0, p, 1, kPrefetchAhead, store, out, stride);
  }

  // T or fewer tokens x kBlockPanels neighbouring panels.
  template <int T>
  static void group(const Matrix& w, const Activations& a, int64_t token, int64_t tokens, int64_t panel, int64_t panels,
                    Store store, float* out, int64_t stride) {
    const size_t ahead = kBlockPanels * w.panel_bytes;  // where the next panels have what these have here
    if constexpr (T > (kBlockTokens + 1) / 2)
      if (tokens < T) return group<T - 1>(w, a, token, tokens, panel, panels, store, out, stride);
    if (panels == kBlockPanels) return stream<T, kBlockPanels>(w, a, token, panel, 1, ahead, store, out, stride);
    for (int64_t p = panel; p < panel + panels; ++p) stream<T, 1>(w, a, token, p, 1, ahead, store, out, stride);
  }

  // Groups of tokens, as even as can be, that pass a panel one after the other and take it apart each for itself.
  static void groups(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride) {
    const int64_t count = (tokens + kBlockTokens - 1) / kBlockTokens;
    for (int64_t p = begin; p < end; p += kBlockPanels) {
      const int64_t panels = end - p < kBlockPanels ? end - p : kBlockPanels;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t t = tokens * i / count;
        group<kBlockTokens>(w, a, t, tokens * (i + 1) / count - t, p, panels, store, out, stride);
      }
    }
  }

  // Units of P panels that many tiles of tokens multiply with while they are in the first-level cache, and the tokens'
  // results on their way from unit to unit.
  template <int P>
  struct Block {
    static constexpr int64_t kUnits = 4, kTokens = 64;
    alignas(64) uint8_t code[P][kUnits * kUnit * kLanes];
    alignas(64) float factor[P][kUnits * kUnitFactors];
    alignas(64) float total[kTokens][P][kLanes];

    template <int T>
    __attribute__((noinline)) void tile(const Matrix& w, const Activations& a, int64_t token, int64_t begin,
                                        int64_t end, float (*at)[P][kLanes]) const {
      Unpacked from[P];
      F sum[P][T];
      for (int p = 0; p < P; ++p) {
        from[p] = {code[p], factor[p]};
        for (int t = 0; t < T; ++t) sum[p][t] = f_load(at[t][p]);
      }
      run(w, a, token, begin, end, from, sum);
      for (int p = 0; p < P; ++p)
        for (int t = 0; t < T; ++t) f_store(at[t][p], sum[p][t]);
    }

    // A tile of T or fewer tokens.
    template <int T>
    HD_INLINE void tiles(const Matrix& w, const Activations& a, int64_t token, int64_t tokens, int64_t begin,
                         int64_t end, float (*at)[P][kLanes]) const {
      if constexpr (T > (kBlockTokens + 1) / 2)
        if (tokens < T) return tiles<T - 1>(w, a, token, tokens, begin, end, at);
      tile<T>(w, a, token, begin, end, at);
    }

    // Tokens [first, last) in tiles of as equal a size as can be.
    void run_tokens(const Matrix& w, const Activations& a, int64_t first, int64_t last, int64_t panel, Store store,
                    float* out, int64_t stride) {
      const int64_t tokens = last - first, count = (tokens + kBlockTokens - 1) / kBlockTokens;
      const int64_t units = w.padded_cols / kUnit;
      Packed from[P];
      for (int p = 0; p < P; ++p) from[p].at = w.data + static_cast<size_t>(panel + p) * w.panel_bytes;
      std::memset(total, 0, sizeof total);
      for (int64_t begin = 0; begin < units; begin += kUnits) {
        const int64_t end = begin + kUnits < units ? begin + kUnits : units;
        for (int p = 0; p < P; ++p) unpack(w, from[p], end - begin, code[p], factor[p]);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t t = tokens * i / count;
          tiles<kBlockTokens>(w, a, first + t, tokens * (i + 1) / count - t, begin, end, total + t);
        }
      }
      for (int64_t t = 0; t < tokens; ++t)
        for (int p = 0; p < P; ++p)
          store_lanes(w, panel + p, f_load(total[t][p]), store, out + (first + t) * stride + (panel + p) * kLanes);
    }
  };

  // Many tokens, P panels from `panel` on.
  template <int P>
  static void many(const Matrix& w, const Activations& a, int64_t tokens, int64_t panel, Store store, float* out,
                   int64_t stride) {
    Block<P> block;
    const int64_t count = (tokens + block.kTokens - 1) / block.kTokens;
    for (int64_t i = 0; i < count; ++i)
      block.run_tokens(w, a, tokens * i / count, tokens * (i + 1) / count, panel, store, out, stride);
  }

  static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride, uint8_t*) {
    if (tokens <= kFewTokens) return few<kFewTokens>(w, a, tokens, begin, end, store, out, stride);
    if (tokens <= kGroupedTokens) return groups(w, a, tokens, begin, end, store, out, stride);
    int64_t panel = begin;
    for (; panel + kBlockPanels <= end; panel += kBlockPanels)
      many<kBlockPanels>(w, a, tokens, panel, store, out, stride);
    if constexpr (kBlockPanels > 1)
      for (; panel < end; ++panel) many<1>(w, a, tokens, panel, store, out, stride);
  }
};

// Calls f with the PanelKernel of the matrix.
template <class Fn>
HD_INLINE void with_panel_kernel(const Matrix& w, Fn f) {
  if (w.layout == Layout::kNibble && w.group == 32) {
    w.has_min ? f(PanelKernel<Layout::kNibble, 32, true>{}) : f(PanelKernel<Layout::kNibble, 32, false>{});
  } else if (w.layout == Layout::kNibble) {
    w.has_min ? f(PanelKernel<Layout::kNibble, 16, true>{}) : f(PanelKernel<Layout::kNibble, 16, false>{});
  } else if (w.layout == Layout::kNibbleTable) {
    f(PanelKernel<Layout::kNibbleTable, 32, false>{});
  } else {
    w.has_min ? f(PanelKernel<Layout::kByte, 32, true>{}) : f(PanelKernel<Layout::kByte, 32, false>{});
  }
}

}  // namespace herder::HD_ISA_NAMESPACE
