#include "ranking.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace herder {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The logit's bits, mapped so that unsigned order is float order (adding 0 turns -0 into 0), above the complement of
// the id: the larger key is ranked first.
uint64_t ranking_key(float logit, int32_t id) {
  const uint32_t word = std::bit_cast<uint32_t>(logit + 0.0f);
  const uint32_t ordered = word & 0x80000000u ? ~word : word | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(id);
}

int32_t key_id(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

struct RankedFirst {
  bool operator()(const Candidate& a, const Candidate& b) const { return a.key > b.key; }
};

// A logit that at least k tokens reach: the k-th largest of the block maxima. -inf if there are fewer than k blocks.
float reached_by(const Maxima& maxima, int32_t k, std::vector<float>* work) {
  if (static_cast<size_t>(k) > maxima.block.size()) return -kInfinity;
  *work = maxima.block;
  std::nth_element(work->begin(), work->begin() + (k - 1), work->end(), std::greater<>());
  return (*work)[static_cast<size_t>(k) - 1];
}

// find() among `shell`, consecutive places of the ranking in any order, with the mass `before` in front of them. Each
// step halves the range, so it is linear.
Place find_in_shell(std::vector<Candidate>* shell, uint64_t before, uint64_t position) {
  auto begin = shell->begin(), end = shell->end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, RankedFirst());
    uint64_t first_half = 0;
    for (auto c = begin; c != middle; ++c) first_half += c->weight;
    if (position < before + first_half) {
      end = middle;
    } else {
      before += first_half;
      begin = middle;
    }
  }
  return {key_id(begin->key), before + begin->weight};
}

}  // namespace

// Calls visit(id, exponent) for every token that has a weight and an exponent of at least `lowest`, until visit returns
// false.
template <class Visit>
void Ranking::for_each_above(float lowest, Visit visit) const {
  lowest = std::max(lowest, kWeightlessExponent);
  for (size_t b = 0; b < maxima->block.size(); ++b) {
    if (exponent(maxima->block[b]) < lowest) continue;
    const int32_t begin = static_cast<int32_t>(b) * kMaximaBlock;
    const int32_t end = std::min(begin + kMaximaBlock, n);
    for (int32_t i = begin; i < end; ++i) {
      const float e = exponent(x[i]);
      if (e >= lowest && !visit(i, e)) return;
    }
  }
}

int32_t Ranking::first() const {
  const auto& block = maxima->block;
  const auto b = std::find(block.begin(), block.end(), maxima->max) - block.begin();
  return static_cast<int32_t>(std::find(x + b * kMaximaBlock, x + n, maxima->max) - x);
}

void Ranking::first_ids(int32_t count, int32_t* ids, RankingScratch* scratch) const {
  std::vector<Candidate>& candidates = scratch->candidates;
  const float reached = reached_by(*maxima, count, &scratch->selected_maxima);
  candidates.clear();
  for (size_t b = 0; b < maxima->block.size(); ++b) {
    if (maxima->block[b] < reached) continue;
    const int32_t begin = static_cast<int32_t>(b) * kMaximaBlock;
    const int32_t end = std::min(begin + kMaximaBlock, n);
    for (int32_t i = begin; i < end; ++i)
      if (x[i] >= reached) candidates.push_back({ranking_key(x[i], i), 0});
  }
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(), RankedFirst());
  for (int32_t i = 0; i < count; ++i) ids[i] = key_id(candidates[static_cast<size_t>(i)].key);
}

uint64_t Ranking::mass_above(float lowest) const {
  uint64_t mass = 0;
  for_each_above(lowest, [&](int32_t, float e) {
    mass += exp_weight(e);
    return true;
  });
  return mass;
}

uint64_t Ranking::mass_of_first(int32_t k, RankingScratch* scratch) const {
  std::vector<Candidate>& candidates = scratch->candidates;
  const float reached = reached_by(*maxima, k, &scratch->selected_maxima);
  // With fewer than k blocks the maxima tell nothing; then the threshold is lowered until k tokens are above it.
  float lowest = reached > -kInfinity ? exponent(reached) : -8;
  for (;; lowest *= 2) {
    candidates.clear();
    for_each_above(lowest, [&](int32_t i, float e) {
      candidates.push_back({ranking_key(x[i], i), exp_weight(e)});
      return true;
    });
    if (candidates.size() >= static_cast<size_t>(k) || lowest <= kWeightlessExponent) break;
  }
  if (candidates.size() > static_cast<size_t>(k)) {
    std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), RankedFirst());
    candidates.resize(static_cast<size_t>(k));
  }
  uint64_t mass = 0;
  for (const Candidate& c : candidates) mass += c.weight;
  return mass;
}

Place Ranking::find(uint64_t position, RankingScratch* scratch) const {
  std::vector<Candidate>& shell = scratch->candidates;
  // A language model has nearly all of its mass in the first few tokens, so shells of falling exponents are tried
  // first.
  constexpr size_t kFew = 1024;
  uint64_t before = 0;
  float above = kInfinity, lowest = -1;
  do {
    shell.clear();
    uint64_t mass = 0;
    for_each_above(lowest, [&](int32_t i, float e) {
      if (e >= above) return true;
      shell.push_back({ranking_key(x[i], i), exp_weight(e)});
      mass += shell.back().weight;
      return shell.size() < kFew;
    });
    if (shell.size() == kFew) break;
    if (position < before + mass) return find_in_shell(&shell, before, position);
    before += mass;
    above = lowest;
    lowest *= 2;
  } while (above > kWeightlessExponent);

  // A flat row: its mass by narrow intervals of the exponent, then one of them.
  scratch->histogram.assign(kExponentBuckets, 0);
  weight_histogram(x, n, *maxima, scale, scratch->histogram.data());
  before = 0;
  int32_t bucket = 0;
  while (position >= before + scratch->histogram[static_cast<size_t>(bucket)])
    before += scratch->histogram[static_cast<size_t>(bucket++)];
  shell.clear();
  for_each_above(kWeightlessExponent, [&](int32_t i, float e) {
    if (exponent_bucket(e) == bucket) shell.push_back({ranking_key(x[i], i), exp_weight(e)});
    return true;
  });
  return find_in_shell(&shell, before, position);
}

}  // namespace herder
