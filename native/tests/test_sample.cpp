// The sampler against a slow twin that sorts, on random rows and options; its memory and its threads.
// tests/native/test_sample.py compares it with NumPy and with what other people wrote.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>

#include "philox.h"
#include "sample.h"
#include "test.h"

using namespace herder;
using herder::test::Random;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A request with the memory its pointers need.
struct Request {
  std::vector<float> logits;
  std::vector<int32_t> bias_ids, history;
  std::vector<float> bias_values;
  std::unique_ptr<uint32_t[]> mask;  // mask_rows rows of exactly the words they need
  int32_t mask_rows = 3;
  hd_sampling options{};

  int32_t vocab() const { return static_cast<int32_t>(logits.size()); }
  bool allows(int32_t row, int32_t id) const {
    const int32_t words = (vocab() + 31) / 32;
    return !mask || (mask[static_cast<size_t>(row * words + id / 32)] >> id % 32 & 1);
  }
};

template <class T>
T pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[random.below(static_cast<int32_t>(values.size()))];
}

Request random_request(Random& random, int32_t most) {
  Request r;
  const int32_t vocab = 1 + random.below(random.below(4) ? std::min(most, 200) : most);
  const float spread = pick(random, {0.0f, 0.01f, 1.0f, 3.0f, 10.0f, 1e38f});
  const float grid = pick(random, {0.0f, 0.0f, 1.0f, 4.0f});
  for (int32_t i = 0; i < vocab; ++i) {
    const float x = std::clamp(random.normal(), -3.0f, 3.0f) * spread;
    r.logits.push_back(grid > 0 && spread < 100 ? std::round(x / grid) * grid : x);
  }
  hd_sampling& o = r.options;
  o.temperature = pick(random, {0.0f, 1e-40f, 1e-6f, 0.5f, 1.0f, 2.0f, 50.0f, 3e38f});
  o.top_k = pick(random, {0, 0, 0, 1, 3, 64, 100, 2000, 1 << 30});
  o.top_p = pick(random, {1.0f, 1.0f, 1e-30f, 0.3f, 0.9f, 0.9999999f});
  o.min_p = pick(random, {0.0f, 0.0f, 1e-40f, 0.01f, 0.5f, 1.0f});
  o.repetition_penalty = pick(random, {1.0f, 1.2f, 0.5f, 1e-30f});
  o.presence_penalty = pick(random, {0.0f, 0.0f, 0.5f, -2.0f});
  o.frequency_penalty = pick(random, {0.0f, 0.0f, 0.25f, -0.5f, 3e38f});
  o.seed = random.next();
  o.step = static_cast<int64_t>(random.next() >> 2);
  for (int32_t n = random.below(3) ? 0 : random.below(8); n > 0; --n) {
    r.bias_ids.push_back(random.below(vocab));
    r.bias_values.push_back(pick(random, {-kInfinity, -5.0f, 0.0f, 2.5f, 100.0f}));
  }
  for (int32_t n = random.below(2) ? 0 : random.below(100); n > 0; --n) r.history.push_back(random.below(vocab));
  if (random.below(3) == 0) {
    const size_t words = static_cast<size_t>((vocab + 31) / 32 * r.mask_rows);
    r.mask.reset(new uint32_t[words]);
    for (size_t i = 0; i < words; ++i)
      r.mask[i] = pick<uint32_t>(random, {0, 0, ~0u, 1, static_cast<uint32_t>(random.next())});
  }
  o.n_bias = static_cast<int32_t>(r.bias_ids.size());
  o.bias_ids = r.bias_ids.data();
  o.bias_values = r.bias_values.data();
  o.mask = r.mask.get();
  o.history = r.history.empty() ? nullptr : r.history.data();
  o.n_history = static_cast<int32_t>(r.history.size());
  o.n_prompt = random.below(o.n_history + 1);
  o.top_logprobs = random.below(std::min(vocab, HD_MAX_TOP) + 1);
  return r;
}

// The token by sorting everything; kNoneLeft or kNoSum (inf - inf) if there is none.
constexpr int32_t kNoneLeft = -1, kNoSum = -2;

int32_t slow_sample(const Request& r, int32_t row, const std::vector<int32_t>& more) {
  const hd_sampling& o = r.options;
  std::vector<float> x = r.logits;
  for (int32_t i = 0; i < o.n_bias; ++i) x[static_cast<size_t>(o.bias_ids[i])] += o.bias_values[i];
  std::vector<int32_t> history = r.history;
  history.insert(history.end(), more.begin(), more.end());
  for (int32_t id = 0; id < r.vocab(); ++id) {
    float& logit = x[static_cast<size_t>(id)];
    const bool seen = std::find(history.begin(), history.end(), id) != history.end();
    const auto output = std::count(history.begin() + o.n_prompt, history.end(), id);
    if (seen) logit = logit > 0 ? logit / o.repetition_penalty : logit * o.repetition_penalty;
    if (output > 0) logit = logit - o.presence_penalty - o.frequency_penalty * static_cast<float>(output);
    if (!std::isnan(logit) && !r.allows(row, id)) logit = -kInfinity;
  }
  if (std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v); })) return kNoSum;
  const float max = *std::max_element(x.begin(), x.end());
  if (max == -kInfinity) return kNoneLeft;
  std::vector<int32_t> ranked(x.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](int32_t a, int32_t b) { return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)]; });
  if (o.temperature == 0) return ranked[0];

  const float scale =
      std::clamp(1 / o.temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
  const auto exponent = [&](int32_t id) {
    const float logit = x[static_cast<size_t>(id)];
    return max == kInfinity ? (logit == max ? 0.0f : -kInfinity) : (logit - max) * scale;
  };
  const auto sum = [&](size_t n) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; ++i) total += exp_weight(exponent(ranked[i]));
    return total;
  };
  size_t kept = ranked.size();
  if (o.top_k > 0) kept = std::min(kept, static_cast<size_t>(o.top_k));
  if (o.top_p < 1) {
    const long double needed = static_cast<long double>(o.top_p) * static_cast<long double>(sum(kept));
    size_t n = 1;
    for (uint64_t held = exp_weight(exponent(ranked[0])); static_cast<long double>(held) < needed; ++n)
      held += exp_weight(exponent(ranked[n]));
    kept = n;
  }
  if (o.min_p > 0) {
    const float lowest = static_cast<float>(natural_log(static_cast<double>(o.min_p)));
    while (exponent(ranked[kept - 1]) < lowest) --kept;
  }
  const uint64_t random = philox(o.seed, static_cast<uint64_t>(o.step) + static_cast<uint64_t>(row));
  auto position = static_cast<uint64_t>(static_cast<unsigned __int128>(random) * sum(kept) >> 64);
  for (size_t i = 0; i < kept; ++i) {
    const uint64_t weight = exp_weight(exponent(ranked[i]));
    if (position < weight) return ranked[i];
    position -= weight;
  }
  return -3;
}

}  // namespace

TEST(philox_known_answers) {
  // The kat_vectors file of Random123, philox4x64 10.
  CHECK(philox(0, 0) == 0x16554d9eca36314c);
  std::vector<uint64_t> seen;
  for (uint64_t seed = 0; seed < 100; ++seed)
    for (uint64_t step = 0; step < 100; ++step) seen.push_back(philox(seed, step));
  std::sort(seen.begin(), seen.end());
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}

TEST(wide_passes_give_what_scalars_give) {
  Random random{1};
  Maxima maxima;
  for (int round = 0; round < 300; ++round) {
    const int32_t n = 1 + random.below(700);
    const std::unique_ptr<float[]> x(new float[static_cast<size_t>(n)]);
    for (int32_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = random.normal() * (round % 3 ? 6.0f : 1e30f);
    if (round % 5 == 0) x[static_cast<size_t>(random.below(n))] = -kInfinity;
    const bool finite = find_maxima(x.get(), n, &maxima);
    CHECK(finite == std::all_of(x.get(), x.get() + n, [](float v) { return std::isfinite(v); }));
    const float max = *std::max_element(x.get(), x.get() + n);
    CHECK(maxima.max == max);
    if (max == -kInfinity) continue;
    const float scale = random.uniform(0.01f, 3);
    uint64_t total = 0;
    std::vector<uint64_t> by_bucket(kExponentBuckets), histogram(kExponentBuckets);
    for (int32_t i = 0; i < n; ++i) {
      const float exponent = exponent_of(x[static_cast<size_t>(i)], max, scale);
      total += exp_weight(exponent);
      by_bucket[static_cast<size_t>(exponent_bucket(exponent))] += exp_weight(exponent);
    }
    CHECK(total_weight(x.get(), n, maxima, scale) == total);
    weight_histogram(x.get(), n, maxima, scale, histogram.data());
    CHECK(histogram == by_bucket);
  }
}

TEST(exp_and_log) {
  double worst = 0;
  for (float d = 0; d > -12; d -= 1e-4f) {
    const double ours = static_cast<double>(exp_weight(d)) * 0x1p-42, exact = std::exp(static_cast<double>(d));
    worst = std::max(worst, std::fabs(ours - exact) / exact);
  }
  CHECK(worst < 3e-7);
  CHECK(exp_weight(0) == uint64_t{1} << kWeightBits);
  CHECK(exp_weight(-kInfinity) == 0 && exp_weight(kWeightlessExponent) == 0);
  for (double x = 1e-45; x < 1e19; x *= 1.003)
    CHECK(std::fabs(natural_log(x) - std::log(x)) <= 4e-16 * std::max(1.0, std::fabs(std::log(x))));
  CHECK(natural_log(1) == 0);
}

TEST(the_same_bits_on_every_machine) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a over words
  const auto mix = [&](uint64_t word) { hash = (hash ^ word) * 1099511628211u; };
  for (uint32_t i = 0; i < 1'000'000; ++i) mix(exp_weight(static_cast<float>(i) * -0x1p-15f));
  for (double x = 1e-45; x < 1e19; x *= 1.01) mix(std::bit_cast<uint64_t>(natural_log(x)));
  CHECK(hash == 0xbf3c00a49f17d3a9u);
}

TEST(agrees_with_sorting) {
  Random random{2};
  SampleScratch scratch;  // one for all: what a call leaves behind must not reach the next
  for (int round = 0; round < 6000; ++round) {
    const Request r = random_request(random, round % 20 ? 300 : 3000);
    const int32_t row = random.below(r.mask_rows);
    std::vector<int32_t> more;
    for (int32_t i = 0; i < row; ++i) more.push_back(random.below(r.vocab()));
    hd_error err{};
    CHECK(check_sampling(r.options, r.vocab(), &err) == HD_OK);
    int32_t token = -7, top_ids[HD_MAX_TOP];
    float logprob, top_logprobs[HD_MAX_TOP];
    const hd_status status = sample(r.logits.data(), r.vocab(), r.options, row, more.data(), row, &scratch,
                                    {&token, &logprob, top_ids, top_logprobs}, &err);
    const int32_t expected = slow_sample(r, row, more);
    if (expected == kNoneLeft || expected == kNoSum) {
      CHECK(status == (expected == kNoSum ? HD_ERR_ARGUMENT : HD_ERR_NUMERIC));
      CHECK(err.code == status && token == -7);
      continue;
    }
    CHECK(status == HD_OK);
    CHECK(token == expected);
    CHECK(r.allows(row, token));
    CHECK(logprob <= 0);
    for (int32_t i = 0; i < r.options.top_logprobs; ++i) {
      CHECK(top_ids[i] >= 0 && top_ids[i] < r.vocab());
      if (i > 0) {
        const float a = r.logits[static_cast<size_t>(top_ids[i - 1])], b = r.logits[static_cast<size_t>(top_ids[i])];
        CHECK(a > b || (a == b && top_ids[i - 1] < top_ids[i]));
      }
      if (top_ids[i] == token) CHECK(top_logprobs[i] == logprob);
    }
  }
}

TEST(later_outputs_are_later_requests) {
  // Output i of a chunk = output 0 of a request at step + i, with row i of the mask and the tokens between in the
  // history.
  Random random{3};
  SampleScratch scratch;
  for (int round = 0; round < 2000; ++round) {
    const Request r = random_request(random, 300);
    const int32_t row = random.below(r.mask_rows), words = (r.vocab() + 31) / 32;
    std::vector<int32_t> history = r.history, more;
    for (int32_t i = 0; i < row; ++i) more.push_back(random.below(r.vocab()));
    history.insert(history.end(), more.begin(), more.end());
    hd_sampling later = r.options;
    later.step += row;
    later.history = history.data();
    later.n_history = static_cast<int32_t>(history.size());
    if (later.mask) later.mask += row * words;
    int32_t a = -1, b = -1;
    const hd_status first =
        sample(r.logits.data(), r.vocab(), r.options, row, more.data(), row, &scratch, {&a}, nullptr);
    CHECK(hd_sample(r.logits.data(), r.vocab(), &later, &b, nullptr, nullptr, nullptr, nullptr) == first);
    CHECK(a == b);
  }
}

TEST(any_bytes) {
  // Logits and options of random bytes: a token or an error, and never a touch outside.
  Random random{4};
  int32_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    Request r = random_request(random, 200);
    const auto noise = random.bytes<uint32_t>(16);
    hd_sampling& o = r.options;
    switch (random.below(8)) {
      case 0:
        std::memcpy(&o.temperature, &noise[0], 4);
        break;
      case 1:
        std::memcpy(&o.top_k, &noise[1], 4);
        break;
      case 2:
        std::memcpy(&o.top_p, &noise[2], 4);
        break;
      case 3:
        std::memcpy(&o.min_p, &noise[3], 4);
        break;
      case 4:
        std::memcpy(&o.repetition_penalty, &noise[4], 4);
        break;
      case 5:
        std::memcpy(&o.presence_penalty, &noise[5], 4);
        break;
      case 6:
        std::memcpy(&o.frequency_penalty, &noise[6], 4);
        break;
      case 7:
        std::memcpy(r.logits.data(), &noise[7], 4);
        break;
    }
    if (random.below(20) == 0 && !r.bias_ids.empty()) r.bias_ids[0] = static_cast<int32_t>(noise[8]);
    if (random.below(20) == 0 && !r.history.empty()) r.history[0] = static_cast<int32_t>(noise[9]);
    if (random.below(50) == 0) o.n_prompt = static_cast<int32_t>(noise[10]);
    if (random.below(50) == 0) o.top_logprobs = static_cast<int32_t>(noise[11]);
    int32_t token = -1, top_ids[HD_MAX_TOP];
    float logprob, top_logprobs[HD_MAX_TOP];
    hd_error err{};
    const hd_status status = hd_sample(r.logits.data(), r.vocab(), &o, &token, &logprob, top_ids, top_logprobs, &err);
    if (status == HD_OK) {
      ++accepted;
      CHECK(token >= 0 && token < r.vocab());
    } else {
      CHECK(status == HD_ERR_ARGUMENT || status == HD_ERR_NUMERIC);
      CHECK(err.code == status && err.message[0] != 0);
    }
  }
  CHECK(accepted > 5000 && accepted < 19'000);
}

TEST(threads_share_nothing) {
  Random random{5};
  std::vector<Request> requests;
  for (int i = 0; i < 200; ++i) requests.push_back(random_request(random, 2000));
  std::vector<std::vector<int32_t>> tokens(4, std::vector<int32_t>(requests.size(), -1));
  std::vector<std::thread> threads;
  for (auto& mine : tokens) {
    threads.emplace_back([&requests, &mine] {
      SampleScratch scratch;
      for (size_t i = 0; i < requests.size(); ++i) {
        const Request& r = requests[i];
        sample(r.logits.data(), r.vocab(), r.options, 0, nullptr, 0, &scratch, {&mine[i]}, nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& mine : tokens) CHECK(mine == tokens[0]);
}

TEST_MAIN
