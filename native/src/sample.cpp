#include "sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <new>

#include "error.h"
#include "philox.h"

namespace herder {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
      status = fail(err, HD_ERR_ARGUMENT, "bias and penalties take token %d to both +inf and -inf", id);
    }
    x[id] = logit;
  }
  touched.clear();
  return status;
}

void apply_mask(const uint32_t* mask, int32_t vocab, float* x) {
  static constexpr auto kBits = [] {
    std::array<uint32_t, 32> bits{};
    for (int i = 0; i < 32; ++i) bits[static_cast<size_t>(i)] = 1u << i;
    return bits;
  }();
  for (int32_t begin = 0; begin < vocab; begin += 32, x += 32) {
    const uint32_t word = *mask++;
    if (word == 0xffffffffu) continue;
    if (begin + 32 <= vocab) {  // compared with a table, not shifted: the vectoriser takes it on every CPU
      for (size_t i = 0; i < 32; ++i) x[i] = word & kBits[i] ? x[i] : -kInfinity;
    } else {
      for (int i = 0; i < vocab - begin; ++i) x[i] = word & kBits[static_cast<size_t>(i)] ? x[i] : -kInfinity;
    }
  }
}

// Steps from temperature on
// ----------------------------------------------------------------------------------------------------------

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

// Temperature above 0. What top-k, top-p and min-p keep is a prefix of the ranking, so all there is to know of it is
// its mass: the token drawn is the one that covers a random position below that mass.
int32_t draw(const Ranking& ranking, const hd_sampling& o, uint64_t random, RankingScratch* scratch) {
  const bool top_k = o.top_k > 0 && o.top_k < ranking.n, top_p = o.top_p < 1, min_p = o.min_p > 0;
  uint64_t mass = std::numeric_limits<uint64_t>::max();
  if (top_k) {
    mass = ranking.mass_of_first(o.top_k, scratch);
  } else if (top_p || !min_p) {
    mass = ranking.mass();
  }
  if (top_p) mass = ranking.find(part_of(o.top_p, mass) - 1, scratch).through;  // the fewest tokens that hold top_p
  // By exponent and not by weight, because the order of exponents is exactly that of the ranking.
  if (min_p) mass = std::min(mass, ranking.mass_above(static_cast<float>(natural_log(static_cast<double>(o.min_p)))));
  return ranking.find(high_product(random, mass), scratch).id;
}

// A bias of +inf makes a token certain: what is not +inf is out, what is shares evenly.
void resolve_infinities(int32_t n, float* x) {
  for (int32_t i = 0; i < n; ++i) x[i] = x[i] == kInfinity ? 0 : -kInfinity;
}

hd_status sample_row(const float* logits, int32_t vocab, const hd_sampling& o, int32_t output_index,
                     const int32_t* more_history, int32_t n_more, SampleScratch* scratch, const SampleResult& result,
                     hd_error* err) {
  if (!find_maxima(logits, vocab, &scratch->maxima)) return fail_non_finite(logits, vocab, err);

  const Ranking model{logits, vocab, &scratch->maxima, 1};
  Ranking ranking = model;  // of the logits that are sampled from
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
    ranking.x = x;
    ranking.maxima = &scratch->adjusted_maxima;
    if (ranking.maxima->max == -kInfinity)
      return fail(err, HD_ERR_NUMERIC, "no token is left to choose from: bias and mask forbid every one");
  }

  int32_t token;
  if (o.temperature == 0) {
    token = ranking.first();
  } else {
    // Neither infinite nor denormal, so that 0 * scale is 0 and -inf * scale is -inf.
    ranking.scale = std::clamp(1 / o.temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
    const uint64_t counter = static_cast<uint64_t>(o.step) + static_cast<uint64_t>(output_index);
    token = draw(ranking, o, philox(o.seed, counter), &scratch->ranking);
  }
  if (result.token) *result.token = token;

  const bool top = o.top_logprobs > 0 && (result.top_ids || result.top_logprobs);
  if (!result.logprob && !top) return HD_OK;
  const LogSoftmax log_probability = log_softmax(logits, vocab, scratch->maxima);
  if (result.logprob) *result.logprob = log_probability(logits[token]);
  if (top) {
    int32_t ids[HD_MAX_TOP];
    model.first_ids(o.top_logprobs, ids, &scratch->ranking);
    for (int32_t i = 0; i < o.top_logprobs; ++i) {
      if (result.top_ids) result.top_ids[i] = ids[i];
      if (result.top_logprobs) result.top_logprobs[i] = log_probability(logits[ids[i]]);
    }
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
