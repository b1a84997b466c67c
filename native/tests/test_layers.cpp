// What layers may do besides rotating and seeing everything: windows, chunks, QK norm, attention temperature, and keys
// in a store of their own. The same bits on every path, and what a plan says changes what it should.
#include <algorithm>

#include "sequence.h"

using namespace herder;
using namespace herder::test;

namespace {

// Llama 4's kinds of layers, small enough that every boundary lies inside the sequence.
const std::vector<hd_layer_plan> kLlama4 = {{.rope = 1, .chunk = 24, .qk_norm = 1}, {.temperature = 1}};

TinyShape shape(std::vector<hd_layer_plan> layers, int32_t local_pages = 0) {
  return {.layers = std::move(layers), .local_pages = local_pages, .temperature_floor = 8};
}

std::vector<float> logits_of(const TinyShape& tiny, const std::vector<int32_t>& all) {
  return reference(TinyWeights(31, HD_Q8_0, tiny), all, HD_DTYPE_AUTO);
}

// The first token whose logits differ, -1 for none.
int32_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) return static_cast<int32_t>(i / TinyWeights::kVocab);
  return -1;
}

}  // namespace

TEST(same_bits_for_every_plan) {
  check_everything(HD_Q4_0, HD_DTYPE_AUTO, shape(kLlama4));
  if (!kAll) return;
  check_everything(HD_F32, HD_DTYPE_FLOAT32, shape(kLlama4));
  std::vector<hd_layer_plan> local = kLlama4;
  local[0].local = 1;
  check_everything(HD_Q8_0, HD_DTYPE_AUTO, shape(local, TinyWeights::kPages));
  check_everything(HD_Q8_0, HD_DTYPE_AUTO, shape({{.rope = 1, .window = 5, .local = 1}}, TinyWeights::kPages));
}

TEST(a_plan_changes_what_it_should_and_no_token_before) {
  const std::vector<int32_t> all = tokens(32, kLength);
  const auto plain = logits_of(shape({{.rope = 1}}), all);
  CHECK(first_difference(plain, logits_of(shape({{.rope = 1, .chunk = 24}}), all)) == 24);
  CHECK(first_difference(plain, logits_of(shape({{.rope = 1, .window = 10}}), all)) == 10);
  CHECK(first_difference(plain, logits_of(shape({{.rope = 1, .temperature = 1}}), all)) == 7);  // (7 + 1) / 8 = 1
  CHECK(first_difference(plain, logits_of(shape({{.rope = 1, .chunk = kLength}}), all)) == -1);
  // The first token sees only itself: neither rotation nor norm of q and k can change what it gets.
  CHECK(first_difference(plain, logits_of(shape({{.rope = 0}}), all)) == 1);
  CHECK(first_difference(plain, logits_of(shape({{.rope = 1, .qk_norm = 1}}), all)) == 1);
}

TEST(pages_out_of_sight_are_never_read) {
  for (const hd_layer_plan& bounded :
       {hd_layer_plan{.rope = 1, .chunk = 40, .qk_norm = 1}, hd_layer_plan{.rope = 1, .window = 33}}) {
    constexpr int32_t kLong = 120;
    const std::vector<int32_t> all = tokens(33, kLong);
    const std::vector<hd_layer_plan> layers = {bounded, {}, bounded};
    const auto roomy = TinyWeights(34, HD_Q8_0, shape(layers)).build(nullptr, 2);
    std::vector<hd_layer_plan> local = layers;
    local[0].local = local[2].local = 1;
    const auto frugal = TinyWeights(34, HD_Q8_0, shape(local, 3)).build(nullptr, 2);
    Piece whole = piece(all, 0, kLong, {0, 1, 2, 3});
    check_run(roomy.get(), {&whole});
    std::vector<int32_t> table;
    for (int32_t start = 0, n; start < kLong; start += n) {
      n = std::min(start % 3 == 0 ? 7 : 1, kLong - start);
      const int32_t first = bounded.chunk ? start / bounded.chunk * bounded.chunk : std::max(0, start - 32);
      for (int32_t j = 0; j < first / HD_PAGE_TOKENS; ++j) table[static_cast<size_t>(j)] = -1;
      while (static_cast<int32_t>(table.size()) * HD_PAGE_TOKENS < start + n) {
        int32_t free = 0;  // three pages serve a sequence of four: a page that went out of sight is written again
        while (std::find(table.begin(), table.end(), free) != table.end()) ++free;
        table.push_back(free);
      }
      Piece next = piece(all, start, n, {0, 1, 2, 3});
      next.pages.resize(table.size());
      next.local_pages = table;
      check_run(frugal.get(), {&next});
      CHECK(same_bits(next.logits, whole.logits.data() + start * TinyWeights::kVocab));
    }
    int64_t kv = 0, less = 0;
    hd_model_memory(roomy.get(), nullptr, &kv, nullptr);
    hd_model_memory(frugal.get(), nullptr, &less, nullptr);
    CHECK(less == kv / 3 + kv / 3 * 2 * 3 / TinyWeights::kPages);
  }
}

TEST(local_pages_that_are_needed_must_be_given) {
  std::vector<hd_layer_plan> local = kLlama4;
  local[0].local = 1;
  const auto model = TinyWeights(35, HD_Q8_0, shape(local, 3)).build(nullptr, 1);
  const std::vector<int32_t> all = tokens(36, 80);
  Piece p = piece(all, 0, 40, {0, 1});
  hd_error err{};
  const auto status = [&](std::vector<int32_t> pages) {
    p.local_pages = std::move(pages);
    return run(model.get(), {&p}, &err);
  };
  CHECK(status({0, 1}) == HD_OK);
  for (const auto& wrong : {std::vector<int32_t>{0, 3}, {0, -1}, {-1, 0}, {-2, 0}, {}})
    CHECK(status(wrong) == HD_ERR_ARGUMENT && std::strstr(err.message, "local"));
  p = piece(all, 72, 8, {0, 1, 2});  // the chunk of 24 begins here: the two pages before it are out of sight
  CHECK(status({-1, -1, 2}) == HD_OK);
  p.pages.push_back(3);  // held for later
  CHECK(status({-1, -1, 2, -1}) == HD_OK);
  p.pages.pop_back();
  CHECK(status({-1, -1, -1}) == HD_ERR_ARGUMENT);
  CHECK(status({-2, -1, 2}) == HD_ERR_ARGUMENT);
}

TEST(impossible_plans_are_refused) {
  const auto refusal = [](const TinyShape& tiny) {
    const TinyWeights weights(1, HD_F32, tiny);
    const hd_config config = weights.config(HD_DTYPE_AUTO, 1);
    hd_error err{};
    hd_model* raw = nullptr;
    CHECK(hd_model_create(&config, nullptr, &raw, &err) == HD_ERR_ARGUMENT);
    return std::string(err.message);
  };
  CHECK(refusal(shape({{.window = 3, .chunk = 4}})).find("one may be set") != std::string::npos);
  CHECK(refusal(shape({{.window = -3}})).find("window") != std::string::npos);
  CHECK(refusal(shape({{.local = 1}}, 4)).find("local") != std::string::npos);
  CHECK(refusal(shape({{.window = 3, .local = 1}})).find("kv_local_pages") != std::string::npos);
  CHECK(refusal({.layers = {{.temperature = 1}}}).find("temperature_floor") != std::string::npos);
  CHECK(refusal(shape({{.experts = 1}})).find("n_experts is 0") != std::string::npos);
}

TEST_MAIN
