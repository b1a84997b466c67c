// Float matrix products over packed panels: float32, float16 or bfloat16 weights, float32 activations and sums.
// Each lane adds w[r][k] * x[t][k] over k in order, one FMA at a time.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

template <Layout L>
struct FloatPanelKernel {
  static constexpr size_t kBytes = L == Layout::kF32 ? 4 : 2;

  static HD_INLINE F load(const uint8_t* p) {
    if constexpr (L == Layout::kF32) return f_load(reinterpret_cast<const float*>(p));
    if constexpr (L == Layout::kF16) return f_load_f16(reinterpret_cast<const uint16_t*>(p));
    return f_load_bf16(reinterpret_cast<const uint16_t*>(p));
  }

  template <int T, int P>
  static __attribute__((noinline)) void tile(const Matrix& w, const Activations& a, int64_t token, int64_t panel,
                                             Store store, float* out, int64_t out_stride) {
    F total[P][T];
    const uint8_t* stream[P];
    for (int p = 0; p < P; ++p) {
      stream[p] = w.data + static_cast<size_t>(panel + p) * w.panel_bytes;
      for (int t = 0; t < T; ++t) total[p][t] = f_zero();
    }
    const float* x = a.x + token * a.stride;
    for (int64_t k = 0; k < w.cols; ++k) {
      for (int p = 0; p < P; ++p) {
        const F weights = load(stream[p] + static_cast<size_t>(k) * kLanes * kBytes);
        for (int t = 0; t < T; ++t) total[p][t] = f_fma(weights, f_set1(x[t * a.stride + k]), total[p][t]);
      }
    }
    for (int p = 0; p < P; ++p) {
      for (int t = 0; t < T; ++t) {
        float* o = out + (token + t) * out_stride + (panel + p) * kLanes;
        F value = total[p][t];
        if (w.bias) value = f_add(value, f_load(w.bias + (panel + p) * kLanes));
        if (store == Store::kAdd) value = f_add(f_load(o), value);
        f_store(o, value);
      }
    }
  }

  static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                     float* out, int64_t stride, uint8_t*) {
    if (tokens == 1) {
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) tile<1, 4>(w, a, 0, p, store, out, stride);
      for (; p < end; ++p) tile<1, 1>(w, a, 0, p, store, out, stride);
      return;
    }
    constexpr int T = kTileRegisters > 4 ? kTileRegisters : 4;
    for (int64_t p = begin; p < end; ++p) {
      int64_t t = 0;
      for (; t + T <= tokens; t += T) tile<T, 1>(w, a, t, p, store, out, stride);
      if constexpr (T > 4)
        for (; t + 4 <= tokens; t += 4) tile<4, 1>(w, a, t, p, store, out, stride);
      for (; t < tokens; ++t) tile<1, 1>(w, a, t, p, store, out, stride);
    }
  }
};

}  // namespace herder::HD_ISA_NAMESPACE
