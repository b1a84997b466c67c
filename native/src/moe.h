// Where a batch's tokens go in a mixture of experts. A slot is one token at one expert; the slots of an expert lie side
// by side, so that its weights are read once for all of them. The shared expert is one more group, of every token.
#pragma once

#include <cstdint>
#include <vector>

#include "experts.h"

namespace herder {

struct ExpertGroup {
  int32_t expert;  // -1: the shared one
  int64_t first, count;
  int64_t rounded;        // the first of its slots, whose products are of bfloat16 numbers (hd_chunk.bf16)
  const Matrix* part[3];  // by ExpertPart

  const Matrix& operator[](ExpertPart p) const { return *part[static_cast<size_t>(p)]; }
};

struct ExpertSlots {
  std::vector<ExpertGroup> groups;  // routed experts by number, then the shared one
  std::vector<int32_t> token;       // of each slot
  std::vector<float> scale;         // of each slot's input: 1 where none is asked for
  std::vector<int64_t> slot;        // [token][rank]
  std::vector<float> weight;        // [token][rank]: of the expert's output
  std::vector<int64_t> next;        // by expert; for counting
  int64_t routed = 0;               // slots; the shared expert's follow
  size_t phase = 0;                 // of the expert counters

  void reserve(int64_t tokens, int32_t active, int32_t experts);
  // experts, weights: [tokens][active], as Kernels::route gives them. rounded: how many of the tokens, the first, are.
  void fill(const int32_t* experts, const float* weights, int64_t tokens, int32_t active, int64_t rounded,
            bool scale_inputs);
};

}  // namespace herder
