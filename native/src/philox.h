// A counter-based random generator: the i-th number is a function of (seed, i), so any one can be drawn at any time.
#pragma once

#include <cstdint>

namespace herder {

// The first of the four words of Philox4x64-10 at key (seed, 0), counter (counter, 0, 0, 0).
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// numpy.random.Philox(key=seed, counter=counter - 1).random_raw() is the same number: NumPy counts before it draws.
static inline uint64_t philox(uint64_t seed, uint64_t counter) {
  uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0, k0 = seed, k1 = 0;
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 p0 = static_cast<unsigned __int128>(0xd2e7470ee14c6c93u) * c0;
    const unsigned __int128 p1 = static_cast<unsigned __int128>(0xca5a826395121157u) * c2;
    c0 = static_cast<uint64_t>(p1 >> 64) ^ c1 ^ k0;
    c2 = static_cast<uint64_t>(p0 >> 64) ^ c3 ^ k1;
    c1 = static_cast<uint64_t>(p1);
    c3 = static_cast<uint64_t>(p0);
    k0 += 0x9e3779b97f4a7c15u;  // the golden ratio
    k1 += 0xbb67ae8584caa73bu;  // sqrt(3) - 1
  }
  return c0;
}

}  // namespace herder
