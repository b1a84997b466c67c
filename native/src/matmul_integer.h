// Integer matrix products over packed panels: W4/W8 weights, int8 activations, float32 results.
//
// For a token t, a row r and the weight groups g in order:
//   dot(g)  = sum over k in g of (code - zero) * q[t][k]                                    exact in int32
//   result  = fma(float(dot) * activation_scale, scale[r][g], result)
//   result  = fma(float(sum of q over g) * activation_scale, minimum[r][g], result)         where there are minima
// then times row_scale, plus bias.
// The order depends on the layout alone: one token or 512, one thread or many, VNNI or tiles give the same bits.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

constexpr size_t kPrefetchAhead = 4096;  // bytes

HD_INLINE void store_lanes(const Matrix& w, int64_t panel, F value, Store store, float* out) {
  if (w.row_scale) value = f_mul(value, f_load(w.row_scale + panel * kLanes));
  if (w.bias) value = f_add(value, f_load(w.bias + panel * kLanes));
  if (store == Store::kAdd) value = f_add(f_load(out), value);
  f_store(out, value);
}

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

  static HD_INLINE I dot(I acc, B w, const int8_t* a) {
    if constexpr (L == Layout::kNibble) return dot4_nibble(acc, w, a);
    return dot4_byte(acc, w, a);
  }

  // T tokens x P panels, `step` panels apart. Stream: the weights come from memory, ask for them ahead of time.
  template <int T, int P, bool Stream>
  static HD_INLINE void run(const Matrix& w, const Activations& a, int64_t token, int64_t panel, int64_t step,
                            F (&total)[P][T]) {
    const uint8_t* stream[P];
    for (int p = 0; p < P; ++p) stream[p] = w.data + static_cast<size_t>(panel + p * step) * w.panel_bytes;
    const int32_t offset = kByteBiasOf() - w.zero;
    const int8_t* q = a.q + token * kUnit;
    const float* fields = a.fields + token;
    B table;
    if constexpr (L == Layout::kNibbleTable) table = load_table(w);
    for (int64_t unit = w.padded_cols / kUnit; unit > 0; --unit) {
      for (int g = 0; g < kGroups; ++g) {
        const float* as = fields + (kScale + g / kPerScale) * a.tokens;
        const float* sums = fields + ((G == 16 ? kSum16 : kSum32) + g) * a.tokens;
        const float* masses = fields + ((G == 16 ? kMass16 : kMass32) + g) * a.tokens;
        for (int p = 0; p < P; ++p) {
          const uint8_t* s = stream[p];
          const F scale = f_load_f16(reinterpret_cast<const uint16_t*>(s) + g * kLanes);
          const uint8_t* codes = s + kCodeOffset + static_cast<size_t>(g) * kGroupCodeBytes;
          I acc[T];
          for (int t = 0; t < T; ++t) acc[t] = offset == 0 ? i_set1(0) : i_scaled(sums + t, offset);
          if constexpr (kNibbles) {
            for (int i = 0; i < kQuads / 2; ++i) {
              const B raw = b_load(codes + 64 * i);
              B low = b_low4(raw), high = b_high4(raw);
              if constexpr (L == Layout::kNibbleTable) {
                low = b_lookup(table, low);
                high = b_lookup(table, high);
              }
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], low, q + t * kUnit + g * G + 4 * i);
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], high, q + t * kUnit + g * G + 4 * (i + kQuads / 2));
            }
          } else {
            for (int i = 0; i < kQuads; ++i) {
              const B raw = b_code8(b_load(codes + 64 * i));
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], raw, q + t * kUnit + g * G + 4 * i);
            }
          }
          for (int t = 0; t < T; ++t) total[p][t] = f_fma(f_mul(f_from_i(acc[t]), f_set1(as[t])), scale, total[p][t]);
          if constexpr (Min) {
            const F minimum = f_load_f16(reinterpret_cast<const uint16_t*>(s + kScaleBytes) + g * kLanes);
            for (int t = 0; t < T; ++t) total[p][t] = f_fma(f_set1(masses[t]), minimum, total[p][t]);
          }
        }
      }
      q += a.tokens * kUnit;
      fields += a.tokens * kActivationFields;
      for (int p = 0; p < P; ++p) {
        if constexpr (Stream)
          for (size_t line = 0; line < kUnitBytes; line += 64) prefetch(stream[p] + kPrefetchAhead + line);
        stream[p] += kUnitBytes;
      }
    }
  }

  static constexpr int kByteBiasOf() { return L == Layout::kNibble ? 0 : kByteBias; }

  static HD_INLINE B load_table(const Matrix& w) {
    int8_t biased[16];
    for (int i = 0; i < 16; ++i) biased[i] = static_cast<int8_t>(w.table[i] + 128 - kByteBias);
    return b_table(biased);
  }

  template <int T, int P, bool Stream>
  static __attribute__((noinline)) void tile(const Matrix& w, const Activations& a, int64_t token, int64_t panel,
                                             int64_t step, Store store, float* out, int64_t out_stride) {
    F total[P][T];
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t) total[p][t] = f_zero();
    run<T, P, Stream>(w, a, token, panel, step, total);
    for (int p = 0; p < P; ++p) {
      const int64_t at = panel + p * step;
      for (int t = 0; t < T; ++t) store_lanes(w, at, total[p][t], store, out + (token + t) * out_stride + at * kLanes);
    }
  }

  // T tokens against all panels: side by side as many panels as registers allow, each a long stream of its own, because
  // one stream alone does not keep enough cache lines in flight.
  template <int T>
  static void few(const Matrix& w, const Activations& a, int64_t token, int64_t begin, int64_t end, Store store,
                  float* out, int64_t stride) {
    constexpr int P = kTileRegisters / T < 1 ? 1 : kTileRegisters / T > 4 ? 4 : kTileRegisters / T;
    const int64_t step = (end - begin) / P;
    for (int64_t p = begin; p < begin + step; ++p) tile<T, P, true>(w, a, token, p, step, store, out, stride);
    if constexpr (P > 1)
      for (int64_t p = begin + P * step; p < end; ++p) tile<T, 1, true>(w, a, token, p, 1, store, out, stride);
  }

  // The largest tile that fits what is left, then the next: `tokens` tokens from `token` on. The first tile brings the
  // panel into the cache.
  template <int T>
  static HD_INLINE void tiles(const Matrix& w, const Activations& a, int64_t token, int64_t tokens, int64_t panel,
                              Store store, float* out, int64_t stride) {
    for (; tokens >= T; token += T, tokens -= T)
      token == 0 ? tile<T, 1, true>(w, a, token, panel, 1, store, out, stride)
                 : tile<T, 1, false>(w, a, token, panel, 1, store, out, stride);
    if constexpr (T > 1)
      tiles<(T > 8 ? 8 : T > 6 ? 6 : T > 4 ? 4 : T - 1)>(w, a, token, tokens, panel, store, out, stride);
  }

  static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride, uint8_t*) {
    switch (tokens) {
      case 1:
        return few<1>(w, a, 0, begin, end, store, out, stride);
      case 2:
        return few<2>(w, a, 0, begin, end, store, out, stride);
      case 3:
        return few<3>(w, a, 0, begin, end, store, out, stride);
      case 4:
        return few<4>(w, a, 0, begin, end, store, out, stride);
      case 5:
        return few<5>(w, a, 0, begin, end, store, out, stride);
      case 6:
        return few<6>(w, a, 0, begin, end, store, out, stride);
      default:
        break;
    }
    for (int64_t p = begin; p < end; ++p) tiles<kTileRegisters>(w, a, 0, tokens, p, store, out, stride);
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
  } else if (w.group == 32) {
    w.has_min ? f(PanelKernel<Layout::kByte, 32, true>{}) : f(PanelKernel<Layout::kByte, 32, false>{});
  } else {
    f(PanelKernel<Layout::kByte, 16, false>{});
  }
}

}  // namespace herder::HD_ISA_NAMESPACE
