#include "sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <new>

#include "error.h"
#include "philox.h"

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

float key_logit(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

struct RankedFirst {
  bool operator()(const Candidate& a, const Candidate& b) const { return a.key > b.key; }
};

// Steps before temperature ------------------------------------------------------------------------------------------

bool has_penalty(const hd_sampling& o) {
  return o.repetition_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
}

hd_status apply_bias(const hd_sampling& o, float* x, hd_error* err) {
  for (int32_t i = 0; i < o.n_bias; ++i) {
    float& logit = x[o.bias_ids[i]];
    logit += o.bias_values[i];
    if (std::isnan(logit))
      return fail(err, HD_ERR_ARGUMENT, "the biases of token %d are both +inf and -inf", o.bias_ids[i]);
  }
  return HD_OK;
}

// Repetition: a token of prompt or output has its logit divided by the penalty if positive, multiplied if negative
// (Keskar et al. 2019, arXiv:1909.05858, as in Hugging Face transformers). Presence and frequency, over the output
// only: logit - presence - frequency * count (OpenAI API reference).
hd_status apply_penalties(const hd_sampling& o, const int32_t* more_history, int32_t n_more, int32_t vocab, float* x,
                          SampleScratch* scratch, hd_error* err) {
  std::vector<int32_t>& counts = scratch->counts;
  std::vector<int32_t>& touched = scratch->touched;
  if (counts.size() < static_cast<size_t>(vocab)) counts.resize(static_cast<size_t>(vocab));
  // A count is kept as 2 * (times in the output) + 1, so that 0 means not seen at all.
  const auto see = [&](int32_t id, int32_t in_output) {
    int32_t& count = counts[static_cast<size_t>(id)];
    if (count == 0) {
      touched.push_back(id);
      count = 1;
    }
    count += 2 * in_output;
  };
  touched.reserve(std::min(static_cast<size_t>(o.n_history) + static_cast<size_t>(n_more), counts.size()));
  for (int32_t i = 0; i < o.n_history; ++i) see(o.history[i], i >= o.n_prompt);
  for (int32_t i = 0; i < n_more; ++i) see(more_history[i], 1);

  hd_status status = HD_OK;
  for (const int32_t id : touched) {
    const int32_t in_output = counts[static_cast<size_t>(id)] / 2;
    counts[static_cast<size_t>(id)] = 0;
    float logit = x[id];
    logit = logit > 0 ? logit / o.repetition_penalty : logit * o.repetition_penalty;
    if (in_output > 0) {
      logit -= o.presence_penalty;
      logit -= o.frequency_penalty * static_cast<float>(in_output);
    }
    if (std::isnan(logit)) {
      status = fail(err, HD_ERR_ARGUMENT, "bias and penalties of token %d are both +inf and -inf", id);
    }
    x[id] = logit;
  }
  touched.clear();
  return status;
}

void apply_mask(const uint32_t* mask, int32_t vocab, float* x) {
  for (int32_t begin = 0; begin < vocab; begin += 32) {
    const uint32_t word = *mask++;
    if (word == 0xffffffffu) continue;
    const int32_t n = std::min(32, vocab - begin);
    for (int32_t i = 0; i < n; ++i) x[begin + i] = word >> i & 1 ? x[begin + i] : -kInfinity;
  }
}

// Choosing ----------------------------------------------------------------------------------------------------------

// The row being sampled: logits, their maxima, and the factor from logits to exponents.
struct Row {
  const float* x;
  int32_t n;
  const Maxima* maxima;
  float scale;  // 1 / temperature

  float exponent(float logit) const { return (logit - maxima->max) * scale; }
};

int32_t first_of_largest(const Row& row) {
  const auto& block = row.maxima->block;
  const auto b = std::find(block.begin(), block.end(), row.maxima->max) - block.begin();
  const float* begin = row.x + b * kMaximaBlock;
  return static_cast<int32_t>(std::find(begin, row.x + row.n, row.maxima->max) - row.x);
}

// A logit that at least k tokens reach: the k-th largest of the block maxima. -inf if there are fewer than k blocks.
float reached_by(const Maxima& maxima, int32_t k, std::vector<float>* work) {
  if (static_cast<size_t>(k) > maxima.block.size()) return -kInfinity;
  *work = maxima.block;
  std::nth_element(work->begin(), work->begin() + (k - 1), work->end(), std::greater<>());
  return (*work)[static_cast<size_t>(k) - 1];
}

uint64_t mass(const std::vector<Candidate>& candidates) {
  uint64_t sum = 0;
  for (const Candidate& c : candidates) sum += c.weight;
  return sum;
}

// Candidates: all tokens with an exponent of at least `lowest` and a weight, unranked.
void gather(const Row& row, float lowest, std::vector<Candidate>* out) {
  lowest = std::max(lowest, kWeightlessExponent);
  out->clear();
  for (size_t b = 0; b < row.maxima->block.size(); ++b) {
    if (row.exponent(row.maxima->block[b]) < lowest) continue;
    const int32_t begin = static_cast<int32_t>(b) * kMaximaBlock;
    const int32_t end = std::min(begin + kMaximaBlock, row.n);
    for (int32_t i = begin; i < end; ++i) {
      const float exponent = row.exponent(row.x[i]);
      if (exponent >= lowest) out->push_back({ranking_key(row.x[i], i), exp_weight(exponent)});
    }
  }
}

// Gathers a growing prefix of the ranking until enough(candidates) or every token that has a weight is in.
template <class Enough>
void gather_until(const Row& row, float lowest, std::vector<Candidate>* out, Enough enough) {
  for (;;) {
    gather(row, lowest, out);
    if (lowest <= kWeightlessExponent || enough(*out)) return;
    lowest *= 2;
  }
}

// Of the candidates' weights laid end to end in ranking order: the index of the candidate that covers `position`
// (0 <= position < mass). Everything ranked before it is moved before it. Linear: each step halves the range.
size_t select_position(std::vector<Candidate>* candidates, uint64_t position) {
  auto begin = candidates->begin(), end = candidates->end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, RankedFirst());
    uint64_t first_half = 0;
    for (auto c = begin; c != middle; ++c) first_half += c->weight;
    if (position < first_half) {
      end = middle;
    } else {
      position -= first_half;
      begin = middle;
    }
  }
  return static_cast<size_t>(begin - candidates->begin());
}

// floor(a * b / 2^64)
uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// ceil(fraction * total) for a fraction below 1, at least 1.
uint64_t part_of(float fraction, uint64_t total) {
  const auto scaled = static_cast<uint64_t>(std::ldexp(static_cast<double>(fraction), 64));
  const unsigned __int128 product = static_cast<unsigned __int128>(scaled) * total;
  const uint64_t part = static_cast<uint64_t>(product >> 64) + (static_cast<uint64_t>(product) != 0);
  return std::max<uint64_t>(part, 1);
}

// Temperature above 0: top-k, top-p, min-p, draw.
int32_t draw(const Row& row, const hd_sampling& o, uint64_t random, SampleScratch* scratch) {
  // exp(-8) of the largest weight: for a language model at temperature 1 some hundred tokens and nearly all of the
  // mass.
  constexpr float kFirst = -8;
  std::vector<Candidate>& candidates = scratch->candidates;
  const bool top_k = o.top_k > 0 && o.top_k < row.n, top_p = o.top_p < 1, min_p = o.min_p > 0;
  const float lowest = min_p ? static_cast<float>(natural_log(static_cast<double>(o.min_p))) : -kInfinity;

  uint64_t total;  // mass of what the steps so far have kept
  if (top_k) {
    const size_t k = static_cast<size_t>(o.top_k);
    const float reached = reached_by(*row.maxima, o.top_k, &scratch->selected_maxima);
    const float guess = reached > -kInfinity ? row.exponent(reached) : kFirst;
    gather_until(row, guess, &candidates, [&](const auto& c) { return c.size() >= k; });
    if (candidates.size() > k) {
      std::nth_element(candidates.begin(), candidates.begin() + o.top_k, candidates.end(), RankedFirst());
      candidates.resize(k);
    }
    total = mass(candidates);
  } else if (min_p && !top_p) {
    gather(row, lowest, &candidates);
    total = mass(candidates);
  } else {
    total = total_weight(row.x, row.n, *row.maxima, row.scale);
  }
  const auto gather_beyond = [&](uint64_t position) {
    if (!top_k) gather_until(row, kFirst, &candidates, [&](const auto& c) { return mass(c) > position; });
  };
  if (top_p) {  // the fewest tokens that hold top_p of the mass
    const uint64_t last = part_of(o.top_p, total) - 1;
    gather_beyond(last);
    candidates.resize(select_position(&candidates, last) + 1);
    total = mass(candidates);
  }
  if (min_p) {  // exponent and not weight, because its order is exactly that of the ranking
    std::erase_if(candidates, [&](const Candidate& c) { return row.exponent(key_logit(c.key)) < lowest; });
    total = mass(candidates);
  }
  const uint64_t position = high_product(random, total);
  if (!top_p && !min_p) gather_beyond(position);
  return key_id(candidates[select_position(&candidates, position)].key);
}

// A bias of +inf makes a token certain: what is not +inf is out, what is shares evenly.
void resolve_infinities(int32_t n, float* x) {
  for (int32_t i = 0; i < n; ++i) x[i] = x[i] == kInfinity ? 0 : -kInfinity;
}

void top_logits(const Row& row, int32_t count, const LogSoftmax& log_probability, SampleScratch* scratch,
                const SampleResult& result) {
  std::vector<Candidate>& candidates = scratch->candidates;
  const float reached = reached_by(*row.maxima, count, &scratch->selected_maxima);
  candidates.clear();
  for (size_t b = 0; b < row.maxima->block.size(); ++b) {
    if (row.maxima->block[b] < reached) continue;
    const int32_t begin = static_cast<int32_t>(b) * kMaximaBlock;
    for (int32_t i = begin; i < std::min(begin + kMaximaBlock, row.n); ++i)
      if (row.x[i] >= reached) candidates.push_back({ranking_key(row.x[i], i), 0});
  }
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(), RankedFirst());
  for (int32_t i = 0; i < count; ++i) {
    const int32_t id = key_id(candidates[static_cast<size_t>(i)].key);
    if (result.top_ids) result.top_ids[i] = id;
    if (result.top_logprobs) result.top_logprobs[i] = log_probability(row.x[id]);
  }
}

hd_status sample_row(const float* logits, int32_t vocab, const hd_sampling& o, int32_t output_index,
                     const int32_t* more_history, int32_t n_more, SampleScratch* scratch, const SampleResult& result,
                     hd_error* err) {
  if (!find_maxima(logits, vocab, &scratch->maxima)) return fail_non_finite(logits, vocab, err);

  Row row{logits, vocab, &scratch->maxima, 1};
  if (o.n_bias > 0 || has_penalty(o) || o.mask != nullptr) {
    scratch->logits.assign(logits, logits + vocab);
    float* x = scratch->logits.data();
    if (hd_status status = apply_bias(o, x, err)) return status;
    if (has_penalty(o)) {
      if (hd_status status = apply_penalties(o, more_history, n_more, vocab, x, scratch, err)) return status;
    }
    if (o.mask != nullptr) {
      const int64_t words = (static_cast<int64_t>(vocab) + 31) / 32;
      apply_mask(o.mask + words * output_index, vocab, x);
    }
    find_maxima(x, vocab, &scratch->adjusted_maxima);
    if (scratch->adjusted_maxima.max == kInfinity && o.temperature > 0) {
      resolve_infinities(vocab, x);
      find_maxima(x, vocab, &scratch->adjusted_maxima);
    }
    row.x = x;
    row.maxima = &scratch->adjusted_maxima;
    if (row.maxima->max == -kInfinity)
      return fail(err, HD_ERR_NUMERIC, "no token is left to choose from: bias and mask forbid every one");
  }

  int32_t token;
  if (o.temperature == 0) {
    token = first_of_largest(row);
  } else {
    // Neither infinite nor denormal, so that 0 * scale is 0 and -inf * scale is -inf.
    row.scale = std::clamp(1 / o.temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
    const uint64_t counter = static_cast<uint64_t>(o.step) + static_cast<uint64_t>(output_index);
    token = draw(row, o, philox(o.seed, counter), scratch);
  }
  if (result.token) *result.token = token;

  const bool top = o.top_logprobs > 0 && (result.top_ids || result.top_logprobs);
  if (result.logprob || top) {
    const LogSoftmax log_probability = log_softmax(logits, vocab, scratch->maxima);
    if (result.logprob) *result.logprob = log_probability(logits[token]);
    if (top) top_logits({logits, vocab, &scratch->maxima, 1}, o.top_logprobs, log_probability, scratch, result);
  }
  return HD_OK;
}

}  // namespace

hd_status check_sampling(const hd_sampling& o, int32_t vocab, hd_error* err) {
  const auto refuse = [&](const char* name, double value, const char* rule) {
    return fail(err, HD_ERR_ARGUMENT, "%s is %g: must be %s", name, value, rule);
  };
  const auto refuse_id = [&](const char* name, int32_t i, int32_t id) {
    return fail(err, HD_ERR_ARGUMENT, "%s[%d] is %d: the vocabulary has tokens 0 to %d", name, i, id, vocab - 1);
  };
  if (vocab < 1 || vocab > kMaxVocab)
    return fail(err, HD_ERR_ARGUMENT, "vocab is %d: must be 1 to %d", vocab, kMaxVocab);
  // Written so that NaN fails each test.
  if (!(o.temperature >= 0 && o.temperature < kInfinity)) return refuse("temperature", o.temperature, "0 or more");
  if (o.top_k < 0) return refuse("top_k", o.top_k, "0 (off) or more");
  if (!(o.top_p > 0 && o.top_p <= 1)) return refuse("top_p", o.top_p, "above 0 and at most 1 (off)");
  if (!(o.min_p >= 0 && o.min_p <= 1)) return refuse("min_p", o.min_p, "between 0 (off) and 1");
  if (!(o.repetition_penalty > 0 && o.repetition_penalty < kInfinity))
    return refuse("repetition_penalty", o.repetition_penalty, "above 0 (1 is off) and finite");
  if (!std::isfinite(o.presence_penalty)) return refuse("presence_penalty", o.presence_penalty, "finite");
  if (!std::isfinite(o.frequency_penalty)) return refuse("frequency_penalty", o.frequency_penalty, "finite");
  if (o.step < 0) return refuse("step", static_cast<double>(o.step), "0 or more");
  if (o.top_logprobs < 0 || o.top_logprobs > std::min(HD_MAX_TOP, vocab))
    return fail(err, HD_ERR_ARGUMENT, "top_logprobs is %d: must be 0 to %d", o.top_logprobs,
                std::min(HD_MAX_TOP, vocab));

  if (o.n_bias < 0 || (o.n_bias > 0 && (o.bias_ids == nullptr || o.bias_values == nullptr)))
    return fail(err, HD_ERR_ARGUMENT, "n_bias is %d: bias_ids and bias_values must hold that many", o.n_bias);
  for (int32_t i = 0; i < o.n_bias; ++i) {
    if (o.bias_ids[i] < 0 || o.bias_ids[i] >= vocab) return refuse_id("bias_ids", i, o.bias_ids[i]);
    if (std::isnan(o.bias_values[i])) return fail(err, HD_ERR_ARGUMENT, "bias_values[%d] is NaN", i);
  }
  if (o.n_history < 0 || (o.n_history > 0 && o.history == nullptr))
    return fail(err, HD_ERR_ARGUMENT, "n_history is %d: history must hold that many tokens", o.n_history);
  if (o.n_prompt < 0 || o.n_prompt > o.n_history)
    return fail(err, HD_ERR_ARGUMENT, "n_prompt is %d: must be 0 to n_history, %d", o.n_prompt, o.n_history);
  for (int32_t i = 0; i < o.n_history; ++i)
    if (o.history[i] < 0 || o.history[i] >= vocab) return refuse_id("history", i, o.history[i]);
  return HD_OK;
}

hd_status sample(const float* logits, int32_t vocab, const hd_sampling& options, int32_t output_index,
                 const int32_t* more_history, int32_t n_more, SampleScratch* scratch, const SampleResult& result,
                 hd_error* err) {
  try {
    return sample_row(logits, vocab, options, output_index, more_history, n_more, scratch, result, err);
  } catch (const std::bad_alloc&) {
    *scratch = {};  // counts may be half filled
    return fail(err, HD_ERR_MEMORY, "no memory to sample from %d tokens", vocab);
  }
}

}  // namespace herder

extern "C" hd_status hd_sample(const float* logits, int32_t vocab, const hd_sampling* sampling, int32_t* token,
                               float* logprob, int32_t* top_ids, float* top_logprobs, hd_error* err) {
  using namespace herder;
  if (logits == nullptr) return fail(err, HD_ERR_ARGUMENT, "logits is NULL");
  if (sampling == nullptr) return fail(err, HD_ERR_ARGUMENT, "sampling is NULL");
  if (hd_status status = check_sampling(*sampling, vocab, err)) return status;
  SampleScratch scratch;
  return sample(logits, vocab, *sampling, 0, nullptr, 0, &scratch, {token, logprob, top_ids, top_logprobs}, err);
}
