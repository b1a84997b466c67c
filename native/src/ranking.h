// A row of logits as a ranking: all tokens in the order (logit, lower id first), their weights laid end to end.
//
// Nothing here sorts the row: each question is answered by looking at the tokens it needs, found through the block
// maxima.
#pragma once

#include <cstdint>
#include <vector>

#include "softmax.h"

namespace herder {

struct Candidate {
  uint64_t key;  // the ranking as an integer: ordered bits of the logit, then the complement of the id
  uint64_t weight;
};

struct RankingScratch {
  std::vector<Candidate> candidates;
  std::vector<float> selected_maxima;
  std::vector<uint64_t> histogram;
};

// A place in the ranking: a token, and the mass of everything up to and including it.
struct Place {
  int32_t id;
  uint64_t through;
};

struct Ranking {
  const float* x;
  int32_t n;
  const Maxima* maxima;  // of x
  float scale;           // from logits to exponents: 1 / temperature

  // The token ranked first.
  int32_t first() const;

  // The tokens ranked 0 .. count - 1; count is at most n.
  void first_ids(int32_t count, int32_t* ids, RankingScratch* scratch) const;

  // Mass of the whole row, of the k tokens ranked first, of those with exponents of at least `lowest`.
  uint64_t mass() const { return total_weight(x, n, *maxima, scale); }
  uint64_t mass_of_first(int32_t k, RankingScratch* scratch) const;
  uint64_t mass_above(float lowest) const;

  // The token that covers `position`, which is below mass().
  Place find(uint64_t position, RankingScratch* scratch) const;

 private:
  float exponent(float logit) const { return exponent_of(logit, maxima->max, scale); }
  template <class Visit>
  void for_each_above(float lowest, Visit visit) const;
};

}  // namespace herder
