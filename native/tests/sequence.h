// Sequences through tiny models: whole, cut into chunks, in company, and whether their logits are the same bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "test.h"
#include "tiny_model.h"

namespace herder::test {

// Under a sanitizer memory and threads are on trial: one format of each layout and one way to cut a sequence.
#ifdef HERDER_SANITIZED
inline constexpr bool kAll = false;
#else
inline constexpr bool kAll = true;
#endif

inline constexpr int32_t kLength =
    41;  // more than a page, an odd number, and wide enough for the kernels of long prompts

inline std::vector<int32_t> tokens(uint64_t seed, int32_t n) {
  Random random{seed};
  std::vector<int32_t> out;
  for (int32_t i = 0; i < n; ++i) out.push_back(random.below(TinyWeights::kVocab));
  return out;
}

inline Piece piece(const std::vector<int32_t>& all, int32_t start, int32_t n, std::vector<int32_t> pages) {
  Piece p;
  p.tokens.assign(all.begin() + start, all.begin() + start + n);
  p.pages = std::move(pages);
  for (const int32_t page : p.pages) p.local_pages.push_back(TinyWeights::kPages - 1 - page);
  p.start = start;
  return p;
}

inline void check_run(hd_model* model, const std::vector<Piece*>& batch) {
  hd_error err{};
  if (run(model, batch, &err) != HD_OK) herder::test::fail(__FILE__, __LINE__, err.message);
}

// Logits of the whole sequence from one call on one thread of the portable kernels: the slow twin of everything below.
inline std::vector<float> reference(const TinyWeights& weights, const std::vector<int32_t>& all, int32_t compute) {
  const auto model = weights.build("portable", 1, compute);
  Piece whole = piece(all, 0, static_cast<int32_t>(all.size()), {3, 1, 2});
  check_run(model.get(), {&whole});
  for (const float x : whole.logits) CHECK(std::isfinite(x));
  return whole.logits;
}

inline bool same_bits(const std::vector<float>& a, const float* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

// The sequence in chunks of the given sizes, in company of another one.
inline void check_chunks(hd_model* model, const std::vector<int32_t>& all, const std::vector<float>& expected,
                         std::initializer_list<int32_t> sizes, bool company) {
  int32_t start = 0;
  const std::vector<int32_t> other = tokens(99, 60);
  for (int32_t size : sizes) {
    if (start == kLength) break;
    size = std::min(size, kLength - start);
    Piece mine = piece(all, start, size, {7, 0, 5});
    Piece theirs = piece(other, start, std::min(size + 3, 60 - start), {9, 8});
    std::vector<Piece*> batch{&mine};
    if (company) batch.insert(start % 2 ? batch.end() : batch.begin(), &theirs);
    check_run(model, batch);
    CHECK(same_bits(mine.logits, expected.data() + start * TinyWeights::kVocab));
    start += size;
  }
  CHECK(start == kLength);
}

// Every instruction set, several numbers of threads, several ways to cut the sequence.
inline void check_everything(int32_t format, int32_t compute, const TinyShape& shape = {}) {
  const TinyWeights weights(static_cast<uint64_t>(format) + 1, format, shape);
  const std::vector<int32_t> all = tokens(5, kLength);
  const std::vector<float> expected = reference(weights, all, compute);
  for (const Kernels* kernels : usable_kernels()) {
    const int before = failures;
    for (const int32_t threads : {3, 1}) {
      if (!kAll && threads == 1) continue;
      const auto model = weights.build(kernels->isa, threads, compute);
      check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
      if (!kAll) continue;
      check_chunks(model.get(), all, expected, {kLength}, false);
      check_chunks(model.get(), all, expected, {1, 1, 1, 1, 1, 1, 1, 1, 33}, threads == 1);
    }
    if (failures != before) std::fprintf(stderr, "    with %s, format %d, compute %d\n", kernels->isa, format, compute);
  }
}

}  // namespace herder::test
