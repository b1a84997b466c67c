// The guarantee of docs/numerics.md: a token's logits are the same bits whatever the instruction set, the number of
// threads, the chunks its sequence came in, the pages it lies in and who shares the batch. Also what only a sanitizer
// sees: threads, interruption, the edges of every buffer. Whether the numbers are right is asked in tests/oracle.
#include <atomic>
#include <cmath>
#include <thread>

#include "cpu.h"
#include "sequence.h"

using namespace herder;
using namespace herder::test;

TEST(same_bits_nibbles) {
  check_everything(HD_Q4_1, HD_DTYPE_AUTO);
  if (!kAll) return;
  for (const int32_t format : {HD_Q4_0, HD_Q2_K, HD_Q3_K, HD_Q4_K}) check_everything(format, HD_DTYPE_AUTO);
}

TEST(same_bits_tables) {
  check_everything(HD_IQ4_NL, HD_DTYPE_AUTO);
  if (!kAll) return;
  for (const int32_t format : {HD_IQ4_XS, HD_MXFP4}) check_everything(format, HD_DTYPE_AUTO);
}

TEST(same_bits_bytes) {
  check_everything(HD_Q6_K, HD_DTYPE_AUTO);
  if (!kAll) return;
  for (const int32_t format : {HD_Q5_0, HD_Q5_1, HD_Q8_0, HD_Q5_K}) check_everything(format, HD_DTYPE_AUTO);
}

TEST(same_bits_floats) {
  check_everything(HD_F16, HD_DTYPE_AUTO);
  if (!kAll) return;
  for (const int32_t format : {HD_F32, HD_BF16}) check_everything(format, HD_DTYPE_AUTO);
  check_everything(HD_Q4_1, HD_DTYPE_FLOAT32);
}

// Gate and up that cannot share a pass, inputs that only some products round, feed-forward networks of odd widths.
TEST(same_bits_of_mixed_formats) {
  const auto mixed = [](int32_t format, int32_t ffn, std::map<int32_t, int32_t> formats) {
    TinyShape shape;
    shape.ffn = ffn;
    shape.formats = std::move(formats);
    check_everything(format, HD_DTYPE_AUTO, shape);
  };
  mixed(HD_Q4_0, 288, {{HD_W_UP, HD_Q4_1}, {HD_WK, HD_F16}, {HD_WO, HD_BF16}});
  if (!kAll) return;
  mixed(HD_Q4_K, 256, {{HD_W_DOWN, HD_Q6_K}, {HD_WV, HD_Q6_K}, {HD_WQ, HD_F32}});
  mixed(HD_BF16, 288, {{HD_W_DOWN, HD_Q8_0}, {HD_WQ, HD_Q8_0}});
  mixed(HD_Q8_0, 224, {{HD_W_DOWN, HD_BF16}, {HD_W_UP, HD_Q5_0}, {HD_EMBED, HD_BF16}});
  mixed(HD_BF16, 250, {});
}

// More tokens than an item of bfloat16 products takes, and rounded ones between others.
TEST(large_batches_are_each_sequence_alone) {
  constexpr int32_t kEach = 120, kSequences = 6;
  const TinyWeights weights(15, HD_Q4_0);
  hd_config config = weights.config(HD_DTYPE_AUTO, 2);
  config.kv_pages = 4 * kSequences;
  for (const Kernels* kernels : usable_kernels()) {
    if (kernels == kernels_portable() && usable_kernels().size() > 1) continue;  // slow
    const auto model = weights.build(kernels->isa, config, [](hd_tensor&) {});
    std::vector<Piece> pieces;
    std::vector<Piece*> batch;
    std::vector<std::vector<float>> alone;
    for (int32_t i = 0; i < kSequences; ++i) {
      pieces.push_back(
          piece(tokens(static_cast<uint64_t>(i), kEach), 0, kEach, {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3}));
      pieces.back().bf16 = i != 1;
    }
    for (Piece& p : pieces) {
      check_run(model.get(), {&p});
      alone.push_back(p.logits);
      batch.push_back(&p);
    }
    for (config.threads = 1; config.threads <= 3; ++config.threads) {  // which keep tokens of their own, from two on
      check_run(weights.build(kernels->isa, config, [](hd_tensor&) {}).get(), batch);
      for (size_t i = 0; i < kSequences; ++i) CHECK(same_bits(pieces[i].logits, alone[i].data()));
    }
    config.threads = 2;
    if (!kAll) break;
  }
}

TEST(a_prompt_takes_bfloat16_or_does_not) {
  const TinyWeights weights(16, HD_Q8_0);
  const auto model = weights.build(nullptr, 1);
  Piece p = piece(tokens(17, 9), 0, 9, {0});
  for (const int32_t wrong : {2, -1}) {
    p.bf16 = wrong;
    hd_error err{};
    CHECK(run(model.get(), {&p}, &err) == HD_ERR_ARGUMENT && err.code == HD_ERR_ARGUMENT);
    CHECK(std::strstr(err.message, wrong == 2 ? "bf16 is 2" : "bf16 is -1"));
  }
  p.bf16 = 0;
  check_run(model.get(), {&p});
  const std::vector<float> plain = p.logits;
  p.bf16 = 1;
  check_run(model.get(), {&p});
  float most = 0;
  for (size_t i = 0; i < plain.size(); ++i) most = std::max(most, std::fabs(p.logits[i] - plain[i]));
  CHECK(most > 0 && most < 0.5f);  // other roundings of the same numbers
}

TEST(sampling_inside_a_pass_is_sampling_outside) {
  const TinyWeights weights(7, HD_Q8_0);
  const std::vector<int32_t> all = tokens(6, 10);
  const auto model = weights.build(nullptr, 2);
  Piece whole = piece(all, 0, 10, {0});
  check_run(model.get(), {&whole});
  hd_sampling sampling{};
  sampling.temperature = 1.5f;
  sampling.top_p = 0.9f;
  sampling.repetition_penalty = 1.3f;
  sampling.frequency_penalty = 0.2f;
  sampling.seed = 11;
  sampling.step = 100;
  sampling.history = all.data();
  sampling.n_history = 7;  // up to and with the first output position
  sampling.n_prompt = 4;
  sampling.top_logprobs = 3;
  int32_t out[4], top[12];
  float logprobs[4], top_logprobs[12];
  hd_chunk chunk{};
  chunk.tokens = all.data();
  chunk.n_tokens = 10;
  chunk.pages = whole.pages.data();
  chunk.n_pages = 1;
  chunk.n_outputs = 4;
  chunk.want = HD_WANT_TOKEN;
  chunk.sampling = &sampling;
  chunk.out_tokens = out;
  chunk.out_logprobs = logprobs;
  chunk.out_top_ids = top;
  chunk.out_top_logprobs = top_logprobs;
  hd_error err{};
  CHECK(hd_forward(model.get(), &chunk, 1, &err) == HD_OK);
  for (int32_t i = 0; i < 4; ++i) {
    hd_sampling alone = sampling;
    alone.step = 100 + i;
    alone.n_history = 7 + i;
    int32_t token, ids[3];
    float logprob, values[3];
    CHECK(hd_sample(whole.logits.data() + (6 + i) * TinyWeights::kVocab, TinyWeights::kVocab, &alone, &token, &logprob,
                    ids, values, &err) == HD_OK);
    CHECK(out[i] == token && logprobs[i] == logprob);
    CHECK(std::memcmp(ids, top + 3 * i, sizeof ids) == 0 &&
          std::memcmp(values, top_logprobs + 3 * i, sizeof values) == 0);
  }
}

TEST(interrupted_from_another_thread) {
  const TinyWeights weights(8, HD_Q4_0);
  const auto model = weights.build(nullptr, 3);
  const std::vector<int32_t> all = tokens(7, kLength);
  Piece whole = piece(all, 0, kLength, {0, 1});
  check_run(model.get(), {&whole});
  const std::vector<float> expected = whole.logits;
  std::atomic<bool> done{false};
  std::thread nuisance([&] {
    while (!done.load()) hd_model_interrupt(model.get());
  });
  for (int i = 0; i < 20; ++i) {
    hd_error err{};
    const hd_status status = run(model.get(), {&whole}, &err);
    CHECK(status == HD_OK || status == HD_ERR_INTERRUPTED);
    CHECK(status == HD_ERR_INTERRUPTED || same_bits(whole.logits, expected.data()));
  }
  done.store(true);
  nuisance.join();
  check_run(model.get(), {&whole});
  CHECK(same_bits(whole.logits, expected.data()));
}

TEST(models_run_beside_each_other) {
  const TinyWeights weights(9, HD_Q4_K);
  const std::vector<int32_t> all = tokens(8, kLength);
  const std::vector<float> expected = reference(weights, all, HD_DTYPE_AUTO);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      const auto model = weights.build(nullptr, 2);
      Piece whole = piece(all, 0, kLength, {4, 5});
      hd_error err{};
      if (run(model.get(), {&whole}, &err) != HD_OK || !same_bits(whole.logits, expected.data())) ++wrong;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST(taps_name_what_passes_and_change_nothing) {
  const TinyWeights weights(10, HD_Q5_K);
  const auto model = weights.build(nullptr, 2);
  const std::vector<int32_t> all = tokens(9, kLength);
  Piece whole = piece(all, 0, kLength, {0, 1});
  for (const int32_t bf16 : {0, 1}) {
    whole.bf16 = bf16;
    hd_model_tap(model.get(), nullptr, nullptr);
    check_run(model.get(), {&whole});
    const std::vector<float> expected = whole.logits;
    std::vector<std::string> names;
    hd_model_tap(
        model.get(),
        [](void* context, const char* name, int64_t rows, int64_t cols, const float* data) {
          double sum = 0;
          for (int64_t i = 0; i < rows * cols; ++i) sum += static_cast<double>(data[i]);
          CHECK(std::isfinite(sum));
          static_cast<std::vector<std::string>*>(context)->push_back(name);
        },
        &names);
    check_run(model.get(), {&whole});
    CHECK(same_bits(whole.logits, expected.data()));
    CHECK(names.size() > 10);
  }
}

TEST(nan_weights_are_reported) {
  for (const int32_t format : {HD_F32, HD_Q8_0, HD_Q4_K}) {
    TinyWeights weights(11, format);
    for (TinyWeights::Tensor& t : weights.tensors)
      if (t.role == HD_W_UP && t.layer == 0) std::memset(t.data.data(), 0xff, format == HD_F32 ? 4 : 2);
    const auto model = weights.build(nullptr, 2);
    Piece whole = piece(tokens(10, 5), 0, 5, {0});
    for (const int32_t bf16 : {0, 1}) {
      whole.bf16 = bf16;
      hd_error err{};
      CHECK(run(model.get(), {&whole}, &err) == HD_ERR_NUMERIC);
      CHECK(err.code == HD_ERR_NUMERIC && err.message[0] != 0);
    }
  }
}

TEST(lying_batches_are_refused) {
  const TinyWeights weights(12, HD_Q8_0);
  const auto model = weights.build(nullptr, 2);
  Random random{13};
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    Piece p = piece(tokens(static_cast<uint64_t>(i), 6), 0, 1 + random.below(6), {random.below(16), random.below(16)});
    hd_chunk c{};
    float logits[6 * TinyWeights::kVocab];
    c.tokens = p.tokens.data();
    c.n_tokens = static_cast<int32_t>(p.tokens.size());
    c.pages = p.pages.data();
    c.n_pages = 2;
    c.n_outputs = random.below(c.n_tokens + 1);
    c.want = HD_WANT_LOGITS;
    c.out_logits = logits;
    const auto noise = static_cast<int32_t>(random.next() >> random.below(32));
    switch (random.below(9)) {
      case 0:
        c.start = noise;
        break;
      case 1:
        c.n_pages = std::min(noise, 2);
        break;
      case 2:
        c.n_outputs = noise;
        break;
      case 3:
        c.want = noise;
        break;
      case 4:
        p.tokens[0] = noise;
        break;
      case 5:
        p.pages[static_cast<size_t>(random.below(2))] = noise;
        break;
      case 6:
        c.n_tokens = std::min(noise, c.n_tokens);
        break;
      case 7:
        c.out_logits = nullptr;
        break;
      case 8:
        c.bf16 = noise;
        break;
    }
    hd_error err{};
    const hd_status status = hd_forward(model.get(), &c, 1, &err);
    CHECK(status == HD_OK || (status == HD_ERR_ARGUMENT && err.code == status && err.message[0] != 0));
    refused += status != HD_OK;
  }
  CHECK(refused > 1000);
}

TEST_MAIN
