// The sampler: one row of logits -> one token, and log-probabilities. The order of the steps is fixed:
//
//   bias -> repetition, presence, frequency penalty -> mask -> temperature -> top-k -> top-p -> min-p -> draw
//
// All tokens are ranked by (logit, lower id first). After temperature every step keeps a prefix of that ranking, so
// ties at a border fall to the lower id, and since weights are integers (softmax.h) the result depends neither on the
// algorithm below, which never ranks more than it must, nor on the instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "herder.h"
#include "ranking.h"
#include "softmax.h"

namespace herder {

// Work space: one a thread, reused from call to call so that nothing is allocated in the long run.
struct SampleScratch {
  std::vector<float> logits;  // after bias, penalties and mask
  Maxima maxima;              // of the model's logits
  Maxima adjusted_maxima;     // of `logits`
  RankingScratch ranking;
  std::vector<int32_t> counts;   // vocab entries, all 0 between calls
  std::vector<int32_t> touched;  // tokens whose count is not 0
};

// Where the results of one output position go; each null if not wanted. top_*: options.top_logprobs entries.
struct SampleResult {
  int32_t* token = nullptr;
  float* logprob = nullptr;  // of the token, under the model: before bias, penalties, mask and temperature
  int32_t* top_ids = nullptr;
  float* top_logprobs = nullptr;
};

// Checks everything in options that does not depend on the output position. sample() relies on it.
hd_status check_sampling(const hd_sampling& options, int32_t vocab, hd_error* err);

// Chooses the token of output position output_index of a chunk (its row of the mask, its draw of the generator).
// more_history: the n_more tokens of the chunk between its first output position and this one, which penalties count as
// output. HD_ERR_NUMERIC: a logit is not finite, or nothing is left to choose from.
hd_status sample(const float* logits, int32_t vocab, const hd_sampling& options, int32_t output_index,
                 const int32_t* more_history, int32_t n_more, SampleScratch* scratch, const SampleResult& result,
                 hd_error* err);

}  // namespace herder
