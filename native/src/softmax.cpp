#include "softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"

namespace herder {

namespace {

// The passes that read a whole vocabulary are written for the compiler's vectoriser and built twice on x86-64; both
// builds give the same bits, so the choice is not the model's `isa` but what this CPU has.
#if defined(__x86_64__) && !defined(__AVX2__)
#define HERDER_WIDE 1
#endif

// A float's bits -> an integer of the same order (negative floats have all bits but the sign flipped), and back.
[[gnu::always_inline]] inline int32_t ordered(int32_t word) { return word ^ (word >> 31 & 0x7fffffff); }

// Integers, because their maximum does not depend on the order in which lanes are folded and so vectorises as it
// stands.
[[gnu::always_inline]] inline bool maxima_pass(const float* x, int32_t n, float* out) {
  constexpr int32_t kInfinity = 0x7f800000;
  int32_t widest = 0;  // the largest exponent field; kInfinity for an infinity or a NaN
  for (int32_t begin = 0; begin < n; begin += kMaximaBlock) {
    const int32_t end = std::min(begin + kMaximaBlock, n);
    int32_t most = std::numeric_limits<int32_t>::min();
    for (int32_t i = begin; i < end; ++i) {
      const int32_t word = std::bit_cast<int32_t>(x[i]);
      most = std::max(most, ordered(word));
      widest = std::max(widest, word & kInfinity);
    }
    *out++ = std::bit_cast<float>(ordered(most));
  }
  return widest < kInfinity;
}

[[gnu::always_inline]] inline uint64_t weight_pass(const float* x, int32_t n, const float* block, float max,
                                                   float scale) {
  uint64_t total = 0;
  for (int32_t begin = 0; begin < n; begin += kMaximaBlock) {
    if (exponent_of(*block++, max, scale) < kWeightlessExponent) continue;
    const int32_t end = std::min(begin + kMaximaBlock, n);
    for (int32_t i = begin; i < end; ++i) total += exp_weight(exponent_of(x[i], max, scale));
  }
  return total;
}

[[gnu::always_inline]] inline void histogram_pass(const float* x, int32_t n, const float* block, float max, float scale,
                                                  uint64_t* mass) {
  uint64_t weight[kMaximaBlock];
  int32_t bucket[kMaximaBlock];
  for (int32_t begin = 0; begin < n; begin += kMaximaBlock) {
    if (exponent_of(*block++, max, scale) < kWeightlessExponent) continue;
    const int32_t count = std::min(kMaximaBlock, n - begin);
    for (int32_t i = 0; i < count; ++i) {
      const float exponent = exponent_of(x[begin + i], max, scale);
      weight[i] = exp_weight(exponent);
      bucket[i] = exponent_bucket(exponent);
    }
    for (int32_t i = 0; i < count; ++i) mass[bucket[i]] += weight[i];
  }
}

#if HERDER_WIDE
[[gnu::target("avx2")]] bool maxima_pass_avx2(const float* x, int32_t n, float* out) { return maxima_pass(x, n, out); }
[[gnu::target("avx2")]] uint64_t weight_pass_avx2(const float* x, int32_t n, const float* block, float max,
                                                  float scale) {
  return weight_pass(x, n, block, max, scale);
}
[[gnu::target("avx2")]] void histogram_pass_avx2(const float* x, int32_t n, const float* block, float max, float scale,
                                                 uint64_t* mass) {
  histogram_pass(x, n, block, max, scale, mass);
}
#endif

}  // namespace

bool find_maxima(const float* x, int32_t n, Maxima* maxima) {
  maxima->block.resize(static_cast<size_t>(n + kMaximaBlock - 1) / kMaximaBlock);
  float* out = maxima->block.data();
#if HERDER_WIDE
  const bool finite = __builtin_cpu_supports("avx2") ? maxima_pass_avx2(x, n, out) : maxima_pass(x, n, out);
#else
  const bool finite = maxima_pass(x, n, out);
#endif
  maxima->max = *std::max_element(maxima->block.begin(), maxima->block.end());
  return finite;
}

uint64_t total_weight(const float* x, int32_t n, const Maxima& maxima, float scale) {
  const float* block = maxima.block.data();
#if HERDER_WIDE
  if (__builtin_cpu_supports("avx2")) return weight_pass_avx2(x, n, block, maxima.max, scale);
#endif
  return weight_pass(x, n, block, maxima.max, scale);
}

void weight_histogram(const float* x, int32_t n, const Maxima& maxima, float scale, uint64_t* mass) {
  const float* block = maxima.block.data();
#if HERDER_WIDE
  if (__builtin_cpu_supports("avx2")) return histogram_pass_avx2(x, n, block, maxima.max, scale, mass);
#endif
  histogram_pass(x, n, block, maxima.max, scale, mass);
}

double natural_log(double x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
  const uint64_t word = std::bit_cast<uint64_t>(x);
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const int64_t e = static_cast<int64_t>(word - kSqrtHalf) >> 52;
  const double m = std::bit_cast<double>(word - (static_cast<uint64_t>(e) << 52));
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double series = 0;
  for (int odd = 23; odd >= 3; odd -= 2) series = (series + 1.0 / odd) * s2;
  return static_cast<double>(e) * 0.6931471805599453 + 2 * (s + s * series);
}

LogSoftmax log_softmax(const float* x, int32_t n, const Maxima& maxima) {
  const double sum = static_cast<double>(total_weight(x, n, maxima, 1.0f)) * 0x1p-42;
  return {maxima.max, natural_log(sum)};
}

hd_status fail_non_finite(const float* x, int32_t n, hd_error* err) {
  const int32_t i = static_cast<int32_t>(std::find_if(x, x + n, [](float v) { return !std::isfinite(v); }) - x);
  return fail(err, HD_ERR_NUMERIC, "the logit of token %d is %f: the model's output must be finite", i, x[i]);
}

}  // namespace herder
