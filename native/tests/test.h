// A test runner in one header: TEST registers, CHECK records a failure and goes on, RANDOM is the same on every
// machine.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace herder::test {

// Under a sanitizer memory and threads are on trial: one format of each layout and one way to cut a sequence.
#ifdef HERDER_SANITIZED
inline constexpr bool kAll = false;
#else
inline constexpr bool kAll = true;
#endif

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

// Only the first failures of a run are printed: a loop over a million values would drown the reason.
inline void fail(const char* file, int line, const char* what) {
  if (++failures <= 20) std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
}

// SplitMix64 (Steele, Lea, Flood 2014).
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int32_t below(int32_t n) { return static_cast<int32_t>(next() % static_cast<uint64_t>(n)); }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f; }
  float normal() {  // Irwin-Hall
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform(0, 1);
    return sum;
  }
  template <class T>
  std::vector<T> bytes(size_t n) {
    std::vector<T> out(n);
    auto* p = reinterpret_cast<uint8_t*>(out.data());
    for (size_t i = 0; i < n * sizeof(T); ++i) p[i] = static_cast<uint8_t>(next());
    return out;
  }
};

}  // namespace herder::test

#define TEST(name)                                                     \
  static void test_##name();                                           \
  static ::herder::test::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(...) ((__VA_ARGS__) ? (void)0 : ::herder::test::fail(__FILE__, __LINE__, #__VA_ARGS__))

// In one file of each executable. An argument runs the tests whose names contain it.
#define TEST_MAIN                                                                           \
  int main(int argc, char** argv) {                                                         \
    for (const ::herder::test::Case& c : ::herder::test::cases()) {                         \
      if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;                    \
      const int before = ::herder::test::failures;                                          \
      c.run();                                                                              \
      std::printf("%s %s\n", ::herder::test::failures == before ? "ok  " : "FAIL", c.name); \
    }                                                                                       \
    return ::herder::test::failures != 0;                                                   \
  }
