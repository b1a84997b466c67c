// Mixtures of experts: routing against a plain reading of its definition, a layer against plain loops, the same bits on
// every path.
#include <algorithm>
#include <map>
#include <numeric>

#include "mixtures.h"
#include "sequence.h"
#include "tables.h"

using namespace herder;
using namespace herder::test;

TEST(routing_is_the_largest_logits_and_ties_go_to_the_lower_expert) {
  Random random{41};
  for (int round = 0; round < 200; ++round) {
    const int32_t count = 1 + random.below(20), active = 1 + random.below(std::min(count, 4));
    std::vector<float> logits = normals(random, count);
    if (round % 2)
      for (float& x : logits) x = static_cast<float>(random.below(3));
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    for (const hd_router router : {HD_ROUTER_SOFTMAX, HD_ROUTER_SIGMOID}) {
      check_tables("route", [&](const Kernels& kernels) {
        std::vector<int32_t> expert(static_cast<size_t>(active));
        std::vector<float> weight(expert.size());
        kernels.route(logits.data(), count, active, router, expert.data(), weight.data());
        CHECK(std::equal(expert.begin(), expert.end(), order.begin()));
        double total = 0;
        for (const int32_t e : expert) total += std::exp(static_cast<double>(logits[static_cast<size_t>(e)]));
        for (size_t k = 0; k < expert.size(); ++k) {
          const double x = static_cast<double>(logits[static_cast<size_t>(expert[k])]);
          const double wanted = router == HD_ROUTER_SOFTMAX ? std::exp(x) / total : 1 / (1 + std::exp(-x));
          CHECK(std::fabs(static_cast<double>(weight[k]) - wanted) < 1e-6);
        }
        return weight;
      });
    }
    logits[static_cast<size_t>(random.below(count))] = round % 3 ? kNan : kInfinity;
    int32_t expert[4];
    float weight[4];
    kernels_portable()->route(logits.data(), count, active, HD_ROUTER_SOFTMAX, expert, weight);
    for (int32_t k = 0; k < active; ++k) CHECK(expert[k] >= 0 && expert[k] < count && std::isnan(weight[k]));
  }
}

// With float32 weights a layer is plain loops of fused multiply-adds: the slow twin, from the activations that go in.
TEST(a_layer_is_what_plain_loops_give) {
  for (const TinyShape& tiny : {kMixtral, kLlama4}) {
    const TinyWeights weights(42, HD_F32, tiny);
    const auto model = weights.build(nullptr, 2);
    std::map<std::string, std::vector<float>> seen;
    hd_model_tap(
        model.get(),
        [](void* context, const char* name, int64_t rows, int64_t cols, const float* data) {
          (*static_cast<decltype(seen)*>(context))[name].assign(data, data + rows * cols);
        },
        &seen);
    Piece whole = piece(tokens(43, 30), 0, 30, {0});
    check_run(model.get(), {&whole});
    const auto product = [&](int32_t role, int32_t expert, const float* x) {
      for (const auto& t : weights.tensors) {
        if (t.role != role || t.layer != 0 || t.expert != expert) continue;
        const auto* w = reinterpret_cast<const float*>(t.data.data());
        std::vector<float> y(static_cast<size_t>(t.rows), 0.0f);
        for (int64_t r = 0; r < t.rows; ++r)
          for (int64_t k = 0; k < t.cols; ++k)
            y[static_cast<size_t>(r)] = std::fma(w[r * t.cols + k], x[k], y[static_cast<size_t>(r)]);
        return y;
      }
      CHECK(false);
      return std::vector<float>();
    };
    const auto network = [&](int32_t gate_role, int32_t expert, const float* x) {
      std::vector<float> gate = product(gate_role, expert, x);
      const std::vector<float> up = product(gate_role + 1, expert, x);
      kernels_portable()->silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()));
      return product(gate_role + 2, expert, gate.data());
    };
    constexpr size_t kDim = TinyWeights::kDim;
    for (size_t t = 0; t < 30; ++t) {
      const float* x = seen["layers.0.ffn_norm"].data() + t * kDim;
      const std::vector<float> logits = product(HD_ROUTER, 0, x);
      const auto n = static_cast<size_t>(tiny.experts);
      CHECK(same_bits(logits, seen["layers.0.router"].data() + t * n));
      int32_t expert[2];
      float weight[2];
      kernels_portable()->route(logits.data(), tiny.experts, tiny.active, tiny.router, expert, weight);
      std::vector<float> sum(kDim, 0.0f);
      for (int32_t k = 0; k < tiny.active; ++k) {
        std::vector<float> in(x, x + kDim);
        const bool scaled = tiny.router == HD_ROUTER_SIGMOID;
        if (scaled)
          for (float& value : in) value *= weight[k];
        const std::vector<float> out = network(HD_EXPERT_GATE, expert[k], in.data());
        for (size_t i = 0; i < kDim; ++i) sum[i] = std::fma(scaled ? 1.0f : weight[k], out[i], sum[i]);
      }
      CHECK(same_bits(sum, seen["layers.0.experts.out"].data() + t * kDim));
      if (tiny.shared_ffn) {
        const std::vector<float> shared = network(HD_SHARED_GATE, 0, x);
        CHECK(same_bits(shared, seen["layers.0.shared.out"].data() + t * kDim));
        for (size_t i = 0; i < kDim; ++i) sum[i] += shared[i];
      }
      CHECK(same_bits(sum, seen["layers.0.ffn.out"].data() + t * kDim));
    }
  }
}

TEST(same_bits_with_experts) {
  check_everything(HD_Q4_0, HD_DTYPE_AUTO, kMixtral);
  check_everything(HD_Q4_K, HD_DTYPE_AUTO, kLlama4);
  if (!kAll) return;
  check_everything(HD_Q8_0, HD_DTYPE_AUTO, kMixtral);
  check_everything(HD_MXFP4, HD_DTYPE_AUTO, kLlama4);
  check_everything(HD_F16, HD_DTYPE_AUTO, kLlama4);
  check_everything(HD_Q6_K, HD_DTYPE_FLOAT32, kMixtral);
  TinyShape everyone = kMixtral;
  everyone.active = everyone.experts;
  check_everything(HD_Q5_1, HD_DTYPE_AUTO, everyone);
}

TEST(taps_change_nothing_with_experts) {
  const TinyWeights weights(44, HD_Q4_0, kLlama4);
  const auto model = weights.build(nullptr, 2);
  for (const int32_t n : {1, 5, 41}) {
    Piece p = piece(tokens(45, 41), 0, n, {0, 1});
    for (const int32_t bf16 : {0, 1}) {
      p.bf16 = bf16;
      hd_model_tap(model.get(), nullptr, nullptr);
      check_run(model.get(), {&p});
      const std::vector<float> expected = p.logits;
      hd_model_tap(model.get(), [](void*, const char*, int64_t, int64_t, const float*) {}, nullptr);
      check_run(model.get(), {&p});
      CHECK(same_bits(p.logits, expected.data()));
    }
  }
}

TEST(matrices_stored_transposed) {
  for (const int32_t format : {HD_F32, HD_BF16, HD_F16}) {
    for (const int32_t compute : {HD_DTYPE_AUTO, HD_DTYPE_FLOAT32}) {
      const TinyWeights weights(46, format, kLlama4);
      const std::vector<int32_t> all = tokens(47, 20);
      const std::vector<float> expected = reference(weights, all, compute);
      std::vector<std::vector<uint8_t>> turned;
      const auto model = weights.build(nullptr, weights.config(compute, 2), [&](hd_tensor& t) {
        if (t.role < HD_WQ || t.rows == 1) return;
        const auto size = static_cast<size_t>(format_info(t.format)->bytes);
        const int64_t leading = t.rows + 7;  // other values lie between the rows
        std::vector<uint8_t>& data = turned.emplace_back(static_cast<size_t>(leading * t.cols) * size, uint8_t{0xff});
        for (int64_t r = 0; r < t.rows; ++r)
          for (int64_t k = 0; k < t.cols; ++k)
            std::memcpy(data.data() + static_cast<size_t>(k * leading + r) * size,
                        static_cast<const uint8_t*>(t.data) + static_cast<size_t>(r * t.cols + k) * size, size);
        t.data = data.data();
        t.turned = leading;
      });
      Piece whole = piece(all, 0, 20, {0});
      check_run(model.get(), {&whole});
      CHECK(same_bits(whole.logits, expected.data()));
    }
  }
}

TEST(what_is_wrong_with_an_expert_is_said) {
  const TinyWeights weights(54, HD_Q8_0, kLlama4);
  const auto refusal = [&](auto spoil) {
    const hd_config config = weights.config(HD_DTYPE_AUTO, 1);
    hd_error err{};
    hd_model* raw = nullptr;
    CHECK(hd_model_create(&config, nullptr, &raw, &err) == HD_OK);
    const TinyWeights::Model model(raw);
    hd_status status = HD_OK;
    for (const auto& t : weights.tensors) {
      hd_tensor tensor = {t.role,        t.layer,       t.expert, t.format, t.rows, t.cols,
                          t.data.data(), t.data.size(), nullptr,  0,        0};
      if (!spoil(tensor)) continue;
      status = hd_model_tensor(raw, &tensor, &err);
      if (status != HD_OK) break;
    }
    if (status == HD_OK) status = hd_model_finish(raw, &err);
    CHECK(status == HD_ERR_ARGUMENT || status == HD_ERR_FORMAT);
    return std::string(err.message);
  };
  const auto says = [](const std::string& message, const char* words) {
    if (message.find(words) == std::string::npos) herder::test::fail(__FILE__, __LINE__, message.c_str());
  };
  says(refusal([](hd_tensor& t) { return t.role != HD_EXPERT_UP || t.expert != 7; }),
       "expert_up of layer 0, expert 7, is missing");
  says(refusal([](hd_tensor& t) { return t.role != HD_ROUTER; }), "router of layer 0 is missing");
  says(refusal([](hd_tensor& t) { return t.role != HD_SHARED_DOWN; }), "shared_down of layer 0 is missing");
  says(refusal([](hd_tensor& t) { return (t.expert = t.role == HD_EXPERT_UP ? 20 : t.expert, true); }),
       "expert 20 is outside 0..19");
  says(refusal([](hd_tensor& t) { return (t.expert = 0, true); }), "given twice");
  says(refusal([](hd_tensor& t) { return (t.layer = t.role == HD_ROUTER ? 1 : t.layer, true); }),
       "layer 1 has no router");
  says(refusal([](hd_tensor& t) { return (t.layer = t.role == HD_W_UP ? 0 : t.layer, true); }), "layer 0 has no w_up");
  says(refusal([](hd_tensor& t) { return (t.lazy = t.role == HD_WQ, true); }), "wq is lazy");
  says(refusal([](hd_tensor& t) { return (t.turned = t.role == HD_WQ ? t.rows : 0, true); }), "turned");
}

TEST_MAIN
