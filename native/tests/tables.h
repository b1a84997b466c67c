// How the tests of kernels compare tables: bit for bit, any NaN equal to any NaN.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu.h"
#include "test.h"

namespace herder::test {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                       kNan = std::numeric_limits<float>::quiet_NaN();

inline bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }
inline bool same(uint8_t a, uint8_t b) { return a == b; }

template <class T>
void check_same(const Kernels& kernels, const char* what, const std::vector<T>& expected,
                const std::vector<T>& actual) {
  CHECK(expected.size() == actual.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (same(expected[i], actual[i])) continue;
    char message[160];
    std::snprintf(message, sizeof message, "%s, %s: element %zu is %.9g, not %.9g", kernels.isa, what, i,
                  static_cast<double>(actual[i]), static_cast<double>(expected[i]));
    return fail(__FILE__, __LINE__, message);
  }
}

// run(kernels) gives a vector; the portable table's is what the others must give.
template <class Run>
void check_tables(const char* what, Run run) {
  const auto expected = run(*kernels_portable());
  for (const Kernels* kernels : usable_kernels())
    if (kernels != kernels_portable()) check_same(*kernels, what, expected, run(*kernels));
}

inline std::vector<float> normals(Random& random, int64_t n) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(random.normal());
  return out;
}

// Values at which instruction sets like to differ.
inline constexpr float kEdges[] = {0.0f,   -0.0f,   kInfinity, -kInfinity, kNan,    1e-40f, -1e-45f, 1e-31f,
                                   3e38f,  -3e38f,  87.3f,     -87.3f,     88.0f,   -88.0f, 87.31f,  -88.1f,
                                   200.0f, -200.0f, 104.0f,    -104.0f,    0.5f,    -0.5f,  1.5f,    2.5f,
                                   -2.5f,  1e-8f,   -1e-8f,    65504.0f,   65520.0f};

}  // namespace herder::test
