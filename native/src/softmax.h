// Softmax over one row of logits, in fixed point.
//
// A token's weight is exp((x - max) / temperature) in units of 2^-42, an integer. Integers add up to the same sum in
// any order, so every consumer may take the weights in the order and the width that suits it, and the probabilities are
// the same bits on every instruction set. Weights below 2^-43 of the largest round to 0; all that a vocabulary of 2^18
// tokens could lose to it is 3e-8 of the mass, less than float32 logits can express.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "herder.h"

namespace herder {

inline constexpr int kWeightBits = 42;
inline constexpr int32_t kMaxVocab = 1 << 20;         // the sum of all weights must fit 64 bits
inline constexpr float kWeightlessExponent = -31.0f;  // exp(-31) rounds to 0 in fixed point
inline constexpr int kMaximaBlock = 64;

// The exponent of a logit. Never rises as the logit falls, so what is asked of exponents may be asked of block maxima.
static inline float exponent_of(float logit, float max, float scale) { return (logit - max) * scale; }

// exp(d) for d <= 0 in fixed point. Below kWeightlessExponent (also for -inf) 0. Float32 arithmetic with a relative
// error below 3e-7: Cody-Waite reduction and the polynomial of Cephes expf (S. Moshier), without fused operations.
static inline uint64_t exp_weight(float d) {
  d = d < kWeightlessExponent ? kWeightlessExponent : d;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const float shifted = d * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (d - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;  // n, wrapped, in the exponent's place
  const float e = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
  // Adding 2^10 to a float64 leaves it in units of 2^-42 in the low mantissa bits, rounded to nearest.
  return std::bit_cast<uint64_t>(static_cast<double>(e) + 1024.0) - std::bit_cast<uint64_t>(1024.0);
}

// The largest value of each kMaximaBlock logits: what lets later steps pass over a block without reading it.
struct Maxima {
  std::vector<float> block;
  float max = 0;
};

// Fills maxima from n >= 1 logits; returns whether all of them are finite. A block with a NaN has NaN as its maximum.
bool find_maxima(const float* x, int32_t n, Maxima* maxima);

// Sum of exp_weight(exponent_of(x[i], max, scale)) over all n logits; max must be finite and x[i] not NaN.
uint64_t total_weight(const float* x, int32_t n, const Maxima& maxima, float scale);

// Exponents in steps of 1/32: bucket b holds those in (-(b + 1) / 32, -b / 32].
inline constexpr int kExponentBuckets = 31 * 32 + 1;
static inline int32_t exponent_bucket(float exponent) {
  return static_cast<int32_t>((exponent < kWeightlessExponent ? kWeightlessExponent : exponent) * -32.0f);
}

// Adds the weights of the row to the mass of their buckets, kExponentBuckets numbers.
void weight_histogram(const float* x, int32_t n, const Maxima& maxima, float scale, uint64_t* mass);

// Natural logarithm of a positive normal double, relative error below 1e-15 (or absolute, near 1); unlike std::log the
// same bits everywhere.
double natural_log(double x);

// Log-probabilities of one row of logits.
struct LogSoftmax {
  float max;
  double log_sum;  // log of the sum of exp(x - max)

  float operator()(float logit) const { return static_cast<float>(static_cast<double>(logit) - max - log_sum); }
};

// maxima must be finite.
LogSoftmax log_softmax(const float* x, int32_t n, const Maxima& maxima);

// HD_ERR_NUMERIC, naming the first token whose logit is not finite, for a row that find_maxima calls not finite.
hd_status fail_non_finite(const float* x, int32_t n, hd_error* err);

}  // namespace herder
