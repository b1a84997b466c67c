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

HD_INLINE void store_lanes(const Matrix& w, int64_t panel, F value, Store store, float* out) {
  if (w.row_scale) value = f_mul(value, f_load(w.row_scale + panel * kLanes));
  if (w.bias) value = f_add(value, f_load(w.bias + panel * kLanes));
  if (store == Store::kAdd) value = f_add(f_load(out), value);
  f_store(out, value);
}

template <Layout L, int G, bool Min>
struct PanelKernel {
  static constexpr bool kNibbles = L != Layout::kByte;
  static constexpr int kGroups = kUnit / G;   // groups of a unit
  static constexpr int kQuads = G / 4;        // quads of a group
  static constexpr size_t kScaleBytes = static_cast<size_t>(kGroups) * kLanes * 2;
  static constexpr size_t kCodeOffset = kScaleBytes * (Min ? 2 : 1);
  static constexpr size_t kUnitBytes = kCodeOffset + (kNibbles ? 512 : 1024);
  static constexpr size_t kGroupCodeBytes = kNibbles ? G * 8 : G * 16;

  static HD_INLINE I dot(I acc, B w, const int8_t* a) {
    if constexpr (L == Layout::kNibble) return dot4_nibble(acc, w, a);
    return dot4_byte(acc, w, a);
  }

  // T tokens x P panels; the panels lie panel_bytes apart.
  template <int T, int P>
  static HD_INLINE void run(const Matrix& w, const Activations& a, int64_t token, int64_t panel, F (&total)[P][T]) {
    const int64_t padded = a.padded_cols, sum_stride = padded / G, scale_stride = padded / kActivationGroup;
    const uint8_t* stream[P];
    for (int p = 0; p < P; ++p) stream[p] = w.data + static_cast<size_t>(panel + p) * w.panel_bytes;
    const int8_t* q = a.q + token * padded;
    const int32_t* sums = (G == 16 ? a.sum16 : a.sum32) + token * sum_stride;
    const float* scales = a.scale + token * scale_stride;
    const int32_t offset = kByteBiasOf() - w.zero;
    B table;
    if constexpr (L == Layout::kNibbleTable) table = load_table(w);
    for (int64_t unit = 0; unit < padded / kUnit; ++unit) {
      for (int g = 0; g < kGroups; ++g) {
        for (int p = 0; p < P; ++p) {
          const uint8_t* s = stream[p];
          const F scale = f_load_f16(reinterpret_cast<const uint16_t*>(s) + g * kLanes);
          const uint8_t* codes = s + kCodeOffset + static_cast<size_t>(g) * kGroupCodeBytes;
          I acc[T];
          for (int t = 0; t < T; ++t) acc[t] = i_set1(offset * sums[t * sum_stride]);
          if constexpr (kNibbles) {
            for (int i = 0; i < kQuads / 2; ++i) {
              const B raw = b_load(codes + 64 * i);
              B low = b_low4(raw), high = b_high4(raw);
              if constexpr (L == Layout::kNibbleTable) {
                low = b_lookup(table, low);
                high = b_lookup(table, high);
              }
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], low, q + t * padded + 4 * i);
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], high, q + t * padded + 4 * (i + kQuads / 2));
            }
          } else {
            for (int i = 0; i < kQuads; ++i) {
              const B raw = b_code8(b_load(codes + 64 * i));
              for (int t = 0; t < T; ++t) acc[t] = dot(acc[t], raw, q + t * padded + 4 * i);
            }
          }
          const float* as = scales + g * G / kActivationGroup;
          for (int t = 0; t < T; ++t)
            total[p][t] = f_fma(f_mul(f_from_i(acc[t]), f_set1(as[t * scale_stride])), scale, total[p][t]);
          if constexpr (Min) {
            const F minimum = f_load_f16(reinterpret_cast<const uint16_t*>(s + kScaleBytes) + g * kLanes);
            for (int t = 0; t < T; ++t) {
              const float sum = static_cast<float>(sums[t * sum_stride]) * as[t * scale_stride];
              total[p][t] = f_fma(f_set1(sum), minimum, total[p][t]);
            }
          }
        }
        q += G;
        ++sums;
      }
      scales += kUnit / kActivationGroup;
      for (int p = 0; p < P; ++p) stream[p] += kUnitBytes;
    }
  }

  static constexpr int kByteBiasOf() { return L == Layout::kNibble ? 0 : kByteBias; }

  static HD_INLINE B load_table(const Matrix& w) {
    int8_t biased[16];
    for (int i = 0; i < 16; ++i) biased[i] = static_cast<int8_t>(w.table[i] + 128 - kByteBias);
    return b_table(biased);
  }

  template <int T, int P>
  static __attribute__((noinline)) void tile(const Matrix& w, const Activations& a, int64_t token, int64_t panel, Store store, float* out,
                             int64_t out_stride) {
    F total[P][T];
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t) total[p][t] = f_zero();
    run<T, P>(w, a, token, panel, total);
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t)
        store_lanes(w, panel + p, total[p][t], store, out + (token + t) * out_stride + (panel + p) * kLanes);
  }

  static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride, uint8_t*) {
    if (tokens == 1) {
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) tile<1, 4>(w, a, 0, p, store, out, stride);
      for (; p < end; ++p) tile<1, 1>(w, a, 0, p, store, out, stride);
      return;
    }
    for (int64_t p = begin; p < end; ++p) {
      int64_t t = 0;
      for (; t + kMaxTile <= tokens; t += kMaxTile) tile<kMaxTile, 1>(w, a, t, p, store, out, stride);
      switch (tokens - t) {
        case 11: tile<6, 1>(w, a, t, p, store, out, stride), t += 6; [[fallthrough]];
        case 5: tile<5, 1>(w, a, t, p, store, out, stride); break;
        case 10: tile<5, 1>(w, a, t, p, store, out, stride), tile<5, 1>(w, a, t + 5, p, store, out, stride); break;
        case 9: tile<5, 1>(w, a, t, p, store, out, stride), t += 5; [[fallthrough]];
        case 4: tile<4, 1>(w, a, t, p, store, out, stride); break;
        case 8: tile<8, 1>(w, a, t, p, store, out, stride); break;
        case 7: tile<4, 1>(w, a, t, p, store, out, stride), t += 4; [[fallthrough]];
        case 3: tile<3, 1>(w, a, t, p, store, out, stride); break;
        case 6: tile<6, 1>(w, a, t, p, store, out, stride); break;
        case 2: tile<2, 1>(w, a, t, p, store, out, stride); break;
        case 1: tile<1, 1>(w, a, t, p, store, out, stride); break;
        default: break;
      }
    }
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
