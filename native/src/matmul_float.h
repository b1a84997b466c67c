// Matrix products over float32 and float16 panels: float32 activations and sums.
// Each lane adds w[r][k] * x[t][k] over k in order, one FMA at a time.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

// The register tile of many tokens: its sums, a vector of weights a panel and one broadcast input fill the registers.
constexpr int kFloatTokens = kTileRegisters >= 12 ? 12 : kTileRegisters >= 4 ? 6 : 2;
constexpr int kFloatPanels = kTileRegisters >= 12 ? 2 : 1;
constexpr size_t kFloatPrefetch = 4096;  // bytes

// What a product ends with, whatever its layout.
HD_INLINE F lane_results(const Matrix& w, int64_t panel, F value) {
  if (w.row_scale) value = f_mul(value, f_load(w.row_scale + panel * kLanes));
  if (w.bias) value = f_add(value, f_load(w.bias + panel * kLanes));
  return value;
}

HD_INLINE void store_lanes(const Matrix& w, int64_t panel, F value, Store store, float* out) {
  value = lane_results(w, panel, value);
  if (store == Store::kAdd) value = f_add(f_load(out), value);
  f_store(out, value);
}

// All tokens against all panels in register tiles. Kernel::sum<T, P, Stream> adds up T tokens x P panels, `step` panels
// apart; with Stream the weights come from memory, and it asks for them ahead of time.
template <class Kernel>
struct FloatProduct {
  template <int T, int P, bool Stream>
  static __attribute__((noinline)) void tile(const Matrix& w, const Activations& a, int64_t token, int64_t panel,
                                             int64_t step, Store store, float* out, int64_t stride) {
    F total[P][T];
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t) total[p][t] = f_zero();
    Kernel::template sum<T, P, Stream>(w, a, token, panel, step, total);
    for (int p = 0; p < P; ++p) {
      const int64_t at = panel + p * step;
      for (int t = 0; t < T; ++t) store_lanes(w, at, total[p][t], store, out + (token + t) * stride + at * kLanes);
    }
  }

  // Panels far apart, each a long stream of its own: one stream alone does not keep enough cache lines in flight.
  template <int T>
  static void few(const Matrix& w, const Activations& a, int64_t begin, int64_t end, Store store, float* out,
                  int64_t stride) {
    constexpr int P = kTileRegisters / T < 1 ? 1 : kTileRegisters / T > 4 ? 4 : kTileRegisters / T;
    const int64_t step = (end - begin) / P;
    for (int64_t p = begin; p < begin + step; ++p) tile<T, P, true>(w, a, 0, p, step, store, out, stride);
    if constexpr (P > 1)
      for (int64_t p = begin + P * step; p < end; ++p) tile<T, 1, true>(w, a, 0, p, 1, store, out, stride);
  }

  template <int P>
  static void many(const Matrix& w, const Activations& a, int64_t tokens, int64_t panel, Store store, float* out,
                   int64_t stride) {
    int64_t t = 0;
    for (; t + kFloatTokens <= tokens; t += kFloatTokens)
      tile<kFloatTokens, P, false>(w, a, t, panel, 1, store, out, stride);
    if constexpr (kFloatTokens > 4)
      for (; t + 4 <= tokens; t += 4) tile<4, P, false>(w, a, t, panel, 1, store, out, stride);
    for (; t < tokens; ++t) tile<1, P, false>(w, a, t, panel, 1, store, out, stride);
  }

  static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride) {
    switch (tokens) {
      case 1:
        return few<1>(w, a, begin, end, store, out, stride);
      case 2:
        return few<2>(w, a, begin, end, store, out, stride);
      case 3:
        return few<3>(w, a, begin, end, store, out, stride);
      case 4:
        return few<4>(w, a, begin, end, store, out, stride);
      default:
        break;
    }
    int64_t p = begin;
    for (; p + kFloatPanels <= end; p += kFloatPanels) many<kFloatPanels>(w, a, tokens, p, store, out, stride);
    if constexpr (kFloatPanels > 1)
      for (; p < end; ++p) many<1>(w, a, tokens, p, store, out, stride);
  }
};

template <Layout L>
struct FloatKernel {
  static constexpr size_t kBytes = L == Layout::kF32 ? 4 : 2;

  static HD_INLINE F load(const uint8_t* p) {
    if constexpr (L == Layout::kF32) return f_load(reinterpret_cast<const float*>(p));
    return f_load_f16(reinterpret_cast<const uint16_t*>(p));
  }

  template <int T, int P, bool Stream>
  static HD_INLINE void sum(const Matrix& w, const Activations& a, int64_t token, int64_t panel, int64_t step,
                            F (&total)[P][T]) {
    const uint8_t* stream[P];
    for (int p = 0; p < P; ++p) stream[p] = w.data + static_cast<size_t>(panel + p * step) * w.panel_bytes;
    const float* x = a.x + token * a.stride;
    for (int64_t k = 0; k < w.cols; ++k) {
      F weights[P];
      for (int p = 0; p < P; ++p) {
        if constexpr (Stream) prefetch(stream[p] + kFloatPrefetch);
        weights[p] = load(stream[p]);
        stream[p] += kLanes * kBytes;
      }
      for (int t = 0; t < T; ++t) {
        const F input = f_set1(x[t * a.stride + k]);
        for (int p = 0; p < P; ++p) total[p][t] = f_fma(weights[p], input, total[p][t]);
      }
    }
  }
};

}  // namespace herder::HD_ISA_NAMESPACE
