// Norm, activation quantization, SwiGLU, rotation: one token (or head) a call.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

HD_INLINE float exp_one(float x) {
  float v[16];
  f_store(v, f_exp(f_set1(x)));
  return v[0];
}

// The last, partial vector of a row, zero-filled.
HD_INLINE F load_tail(const float* x, int64_t n) {
  float v[16] = {};
  std::memcpy(v, x, static_cast<size_t>(n) * sizeof(float));
  return f_load(v);
}

HD_INLINE void store_tail(float* x, int64_t n, F a) {
  float v[16];
  f_store(v, a);
  std::memcpy(x, v, static_cast<size_t>(n) * sizeof(float));
}

// Symmetric int8 with one scale for 32 values: q = round(x * 127 / max|x|), ties to even.
inline void quantize(const float* x, int64_t n, int8_t* q, float* fields, int64_t tokens) {
  for (int64_t k = 0; k < n; k += kUnit, q += tokens * kUnit, fields += tokens * kActivationFields) {
    const auto put_sum = [&](int field, int32_t sum) { std::memcpy(fields + field * tokens, &sum, sizeof sum); };
    for (int g = 0; g < kUnit / kActivationGroup; ++g) {
      F v[2];
      for (int i = 0; i < 2; ++i) {
        const int64_t at = k + g * kActivationGroup + i * kLanes, left = n - at;
        v[i] = left >= kLanes ? f_load(x + at) : left > 0 ? load_tail(x + at, left) : f_zero();
      }
      const float amax = lanes_max(f_max(f_abs(v[0]), f_abs(v[1])));
      const bool finite = !f_any_nan(v[0]) && !f_any_nan(v[1]) && amax < __builtin_inff();
      const bool tiny = !(amax > 1e-30f);  // its reciprocal would overflow; such a group counts as zero
      const float inverse = finite && !tiny ? 127.0f / amax : 0.0f;
      const float scale = !finite ? __builtin_nanf("") : tiny ? 0.0f : amax / 127.0f;
      fields[(kScale + g) * tokens] = scale;
      int32_t total = 0;
      for (int i = 0; i < 2; ++i) {
        const I code = i_round(f_mul(v[i], f_set1(inverse)));
        i_store_s8(q + g * kActivationGroup + i * kLanes, code);
        const int32_t sum = finite ? i_sum(code) : 0;
        put_sum(kSum16 + 2 * g + i, sum);
        fields[(kMass16 + 2 * g + i) * tokens] = static_cast<float>(sum) * scale;
        total += sum;
      }
      put_sum(kSum32 + g, total);
      fields[(kMass32 + g) * tokens] = static_cast<float>(total) * scale;
    }
  }
}

// Root mean square norm (Zhang and Sennrich 2019): out = x / sqrt(mean(x^2) + eps) * weight.
inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F squares = f_zero();
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) squares = f_fma(f_load(x + k), f_load(x + k), squares);
  if (k < n) squares = f_fma(load_tail(x + k, n - k), load_tail(x + k, n - k), squares);
  const float mean = lanes_sum(squares) / static_cast<float>(n);
  const F factor = f_set1(1.0f / __builtin_sqrtf(mean + eps));
  for (k = 0; k + kLanes <= n; k += kLanes) f_store(out + k, f_mul(f_mul(f_load(x + k), factor), f_load(weight + k)));
  if (k < n) store_tail(out + k, n - k, f_mul(f_mul(load_tail(x + k, n - k), factor), load_tail(weight + k, n - k)));
}

HD_INLINE F silu(F gate, F up) {
  const F e = f_exp(f_sub(f_zero(), gate));
  return f_mul(f_div(gate, f_add(f_set1(1.0f), e)), up);
}

// gate = gate / (1 + exp(-gate)) * up (SwiGLU, Shazeer 2020). n is a multiple of 16 (rows are padded).
inline void silu_mul(float* gate, const float* up, int64_t n) {
  for (int64_t k = 0; k < n; k += kLanes) {
    f_store(gate + k, silu(f_load(gate + k), f_load(up + k)));
  }
}

inline void add(float* out, const float* x, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) f_store(out + k, f_add(f_load(out + k), f_load(x + k)));
  for (; k < n; ++k) out[k] += x[k];
}

inline void add_scaled(float* out, const float* x, float scale, int64_t n) {
  const F factor = f_set1(scale);
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) f_store(out + k, f_fma(factor, f_load(x + k), f_load(out + k)));
  for (; k < n; ++k) out[k] = __builtin_fmaf(scale, x[k], out[k]);
}

// Half-split rotation (Su et al. 2021; pairs i and i + half as in Hugging Face's rotate_half).
inline void rope(float* head, const float* cosine, const float* sine, int32_t half) {
  int32_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const F a = f_load(head + i), b = f_load(head + half + i), c = f_load(cosine + i), s = f_load(sine + i);
    f_store(head + i, f_sub(f_mul(a, c), f_mul(b, s)));
    f_store(head + half + i, f_add(f_mul(b, c), f_mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    const float ac = a * cosine[i], bs = b * sine[i], bc = b * cosine[i], as = a * sine[i];
    head[i] = ac - bs;
    head[half + i] = bc + as;
  }
}

}  // namespace herder::HD_ISA_NAMESPACE
