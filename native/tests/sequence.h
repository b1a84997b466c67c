// Sequences through tiny models: whole, cut into chunks, in company, and whether their logits are the same bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "test.h"
#include "tiny_model.h"

namespace herder::test {

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
// Two calls where its first `prompt` tokens alone take bfloat16.
inline std::vector<float> reference(const TinyWeights& weights, const std::vector<int32_t>& all, int32_t compute,
                                    int32_t prompt = 0) {
  const auto model = weights.build("portable", 1, compute);
  const auto length = static_cast<int32_t>(all.size());
  std::vector<float> logits;
  for (const auto& [start, end] : {std::pair{0, prompt}, {prompt, length}}) {
    if (start == end) continue;
    Piece part = piece(all, start, end - start, {3, 1, 2});
    part.bf16 = start < prompt;
    check_run(model.get(), {&part});
    logits.insert(logits.end(), part.logits.begin(), part.logits.end());
  }
  for (const float x : logits) CHECK(std::isfinite(x));
  return logits;
}

inline bool same_bits(const std::vector<float>& a, const float* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

// The sequence in chunks of the given sizes, again and again, in company of another one. The first `prompt` tokens take
// bfloat16; the company then does where they do not.
inline void check_chunks(hd_model* model, const std::vector<int32_t>& all, const std::vector<float>& expected,
                         std::initializer_list<int32_t> sizes, bool company, int32_t prompt = 0) {
  const std::vector<int32_t> other = tokens(99, 60);
  int32_t start = 0;
  for (size_t i = 0; start < kLength; ++i) {
    const int32_t end = start < prompt ? prompt : kLength;
    const int32_t size = std::min(sizes.begin()[i % sizes.size()], end - start);
    Piece mine = piece(all, start, size, {7, 0, 5});
    Piece theirs = piece(other, start, std::min(size + 3, 60 - start), {9, 8});
    mine.bf16 = start < prompt;
    theirs.bf16 = prompt > 0 && !mine.bf16;
    std::vector<Piece*> batch{&mine};
    if (company) batch.insert(i % 2 ? batch.end() : batch.begin(), &theirs);
    check_run(model, batch);
    CHECK(same_bits(mine.logits, expected.data() + start * TinyWeights::kVocab));
    start += size;
  }
}

// Every instruction set, several numbers of threads, several ways to cut the sequence; with prompts in bfloat16 or not.
inline void check_everything(int32_t format, int32_t compute, const TinyShape& shape = {}) {
  constexpr int32_t kPrompt = 23;
  const TinyWeights weights(static_cast<uint64_t>(format) + 1, format, shape);
  const std::vector<int32_t> all = tokens(5, kLength);
  const std::vector<float> expected = reference(weights, all, compute);
  const std::vector<float> prompt = reference(weights, all, compute, kPrompt);
  const bool same = same_bits(expected, prompt.data());
  CHECK(same == (compute == HD_DTYPE_FLOAT32 || !weights.quantized()));
  std::vector<float> whole;
  if (kAll) {
    whole = reference(weights, all, compute, kLength);
    CHECK(same == same_bits(whole, prompt.data()) && same == same_bits(whole, expected.data()));
    CHECK(std::memcmp(prompt.data(), whole.data(), kPrompt * TinyWeights::kVocab * sizeof(float)) == 0);
  }
  for (const Kernels* kernels : usable_kernels()) {
    const int before = failures;
    const bool thorough = kAll && kernels != kernels_portable();  // the twin is slow
    for (const int32_t threads : {3, 1}) {
      if (!thorough && threads == 1) continue;
      const auto model = weights.build(kernels->isa, threads, compute);
      check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
      if (kAll || kernels != kernels_portable()) check_chunks(model.get(), all, prompt, {17, 1, 14, 3}, true, kPrompt);
      if (!thorough) continue;
      check_chunks(model.get(), all, expected, {kLength}, false);
      check_chunks(model.get(), all, expected, {1, 1, 1, 1, 1, 1, 1, 1, 33}, threads == 1);
      check_chunks(model.get(), all, whole, {kLength}, threads == 3, kLength);
      check_chunks(model.get(), all, prompt, {1, 1, 2, 33}, threads == 1, kPrompt);
    }
    if (failures != before) std::fprintf(stderr, "    with %s, format %d, compute %d\n", kernels->isa, format, compute);
  }
}

}  // namespace herder::test
