// Mixtures of experts: routing against a plain reading of its definition, a layer against plain loops, the same bits on
// every path, and experts that are packed when they are first needed.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "layout.h"
#include "sequence.h"
#include "tables.h"

using namespace herder;
using namespace herder::test;

namespace {

const TinyShape kMixtral = {
    .layers = {{.rope = 1, .experts = 1}, {.window = 20, .experts = 1}}, .experts = 5, .active = 2, .expert_ffn = 256};
const TinyShape kLlama4 = {.layers = {{.rope = 1, .experts = 1}, {.window = 20}},
                           .experts = 20,
                           .active = 1,
                           .expert_ffn = 256,
                           .shared_ffn = 512,
                           .router = HD_ROUTER_SIGMOID};

struct Memory {
  int64_t packed = 0, bytes = 0, packings = 0;
  explicit Memory(const hd_model* model) { hd_model_experts(model, &packed, &bytes, &packings); }
};

// The weights' experts in a file, each tensor on pages of its own, as a mapping of it would have them.
class ExpertFile {
 public:
  explicit ExpertFile(const TinyWeights& weights) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::FILE* file = std::tmpfile();
    size_t end = 0;
    for (const auto& t : weights.tensors) {
      if (t.role < HD_EXPERT_GATE || t.role > HD_EXPERT_DOWN) continue;
      at_[{t.role, t.layer, t.expert}] = end;
      end += (t.data.size() + page - 1) / page * page;
    }
    CHECK(file && ftruncate(fileno(file), static_cast<off_t>(end)) == 0);
    for (const auto& t : weights.tensors) {
      const auto found = at_.find({t.role, t.layer, t.expert});
      if (found == at_.end()) continue;
      CHECK(std::fseek(file, static_cast<long>(found->second), SEEK_SET) == 0 &&
            std::fwrite(t.data.data(), t.data.size(), 1, file) == 1);
    }
    std::fflush(file);
    size_ = end;
    base_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ, MAP_SHARED, fileno(file), 0));
    CHECK(base_ != MAP_FAILED);
    std::fclose(file);
  }
  ~ExpertFile() { munmap(base_, size_); }
  ExpertFile(const ExpertFile&) = delete;
  ExpertFile& operator=(const ExpertFile&) = delete;

  void hand(hd_tensor& t) const {
    const auto found = at_.find({t.role, t.layer, t.expert});
    if (found == at_.end()) return;
    t.data = base_ + found->second;
    t.lazy = 1;
  }
  // Whoever touches an expert from now on dies.
  void forbid() const { CHECK(mprotect(base_, size_, PROT_NONE) == 0); }
  void forbid(const TinyWeights& weights, int32_t expert) const {
    for (const auto& t : weights.tensors) {
      const auto found = at_.find({t.role, t.layer, t.expert});
      if (found != at_.end() && t.expert == expert)
        CHECK(mprotect(base_ + found->second, t.data.size(), PROT_NONE) == 0);
    }
  }
  bool can_give_back() const {
    volatile uint8_t touched = base_[0];
    (void)touched;
    return resident() > 0 && madvise(base_, size_, MADV_DONTNEED) == 0 && resident() == 0;
  }
  // Pages of the mapping in memory; -1 where the system does not say.
  int64_t resident() const {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::FILE* maps = std::fopen("/proc/self/smaps", "r");
    if (!maps) return -1;  // no Linux
    char line[512];
    long kilobytes = -1;
    bool ours = false;
    while (std::fgets(line, sizeof line, maps)) {
      unsigned long from = 0, to = 0;
      if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2) ours = from == reinterpret_cast<uintptr_t>(base_);
      if (ours && std::sscanf(line, "Rss: %ld kB", &kilobytes) == 1) break;
    }
    std::fclose(maps);
    return kilobytes * 1024 / static_cast<int64_t>(page);
  }

 private:
  std::map<std::tuple<int32_t, int32_t, int32_t>, size_t> at_;
  uint8_t* base_ = nullptr;
  size_t size_ = 0;
};

TinyWeights::Model build_lazy(const TinyWeights& weights, const ExpertFile& file, int64_t limit, int32_t threads) {
  hd_config config = weights.config(HD_DTYPE_AUTO, threads);
  config.expert_memory = limit;
  return weights.build(nullptr, config, [&](hd_tensor& t) { file.hand(t); });
}

}  // namespace

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
    hd_model_tap(model.get(), nullptr, nullptr);
    check_run(model.get(), {&p});
    const std::vector<float> expected = p.logits;
    hd_model_tap(model.get(), [](void*, const char*, int64_t, int64_t, const float*) {}, nullptr);
    check_run(model.get(), {&p});
    CHECK(same_bits(p.logits, expected.data()));
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

TEST(an_expert_is_read_when_a_token_first_goes_to_it) {
  TinyWeights weights(48, HD_Q8_0, kMixtral);
  // A router of zeros: every expert's logit is the same, so that all tokens go to experts 0 and 1.
  for (auto& t : weights.tensors)
    if (t.role == HD_ROUTER) std::fill(t.data.begin(), t.data.end(), uint8_t{0});
  const std::vector<int32_t> all = tokens(49, kLength);
  const std::vector<float> expected = reference(weights, all, HD_DTYPE_AUTO);
  const ExpertFile file(weights);
  for (int32_t e = 2; e < kMixtral.experts; ++e) file.forbid(weights, e);
  const auto model = build_lazy(weights, file, 0, 3);
  CHECK(Memory(model.get()).packed == 0 && Memory(model.get()).bytes == 0);
  int64_t before = 0, after = 0;
  hd_model_memory(model.get(), &before, nullptr, nullptr);
  Piece whole = piece(all, 0, kLength, {0, 1});
  check_run(model.get(), {&whole});
  CHECK(same_bits(whole.logits, expected.data()));
  hd_model_memory(model.get(), &after, nullptr, nullptr);
  const Memory held(model.get());
  CHECK(held.packed == 4 && held.packings == 4 && held.bytes > 0 && after - before == held.bytes);
  file.forbid();  // what is packed is not read again
  check_run(model.get(), {&whole});
  CHECK(same_bits(whole.logits, expected.data()));
  CHECK(Memory(model.get()).packings == 4);
}

TEST(pages_of_packed_experts_are_given_back) {
  const TinyWeights weights(50, HD_F32, kMixtral);
  const ExpertFile file(weights);
  if (!file.can_give_back()) {  // QEMU's user mode ignores the advice; other systems have no smaps
    std::puts("     (skipped: needs Linux itself)");
    return;
  }
  const auto model = build_lazy(weights, file, 0, 2);
  Piece whole = piece(tokens(51, kLength), 0, kLength, {0, 1});
  check_run(model.get(), {&whole});
  CHECK(Memory(model.get()).packed == 10);
  // A tenth: around a fault the system maps neighbours too, some of them given back before.
  CHECK(file.resident() < 192);
}

TEST(forgetting_experts_changes_no_bit) {
  for (const TinyShape& tiny : {kMixtral, kLlama4}) {
    const TinyWeights weights(52, HD_Q4_K, tiny);
    const std::vector<int32_t> all = tokens(53, kLength);
    const std::vector<float> expected = reference(weights, all, HD_DTYPE_AUTO);
    const ExpertFile file(weights);
    int64_t one = 0;
    {
      const auto model = build_lazy(weights, file, 0, 2);
      check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
      const Memory all_of_them(model.get());
      CHECK(all_of_them.packings == all_of_them.packed);
      one = all_of_them.bytes / all_of_them.packed;
    }
    for (const int64_t limit : {int64_t{1}, 2 * one, 3 * one + 5}) {
      for (const int32_t threads : {3, 1}) {
        const auto model = build_lazy(weights, file, limit, threads);
        check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
        check_chunks(model.get(), all, expected, {1, 1, 1, 38}, false);
        const Memory held(model.get());
        CHECK(held.packings > held.packed && held.packed >= 1);
        CHECK(held.bytes <= std::max(limit, one));
      }
    }
  }
}

#if !defined(HERDER_SANITIZED) && defined(__linux__)
TEST(a_batch_without_memory_for_its_experts_fails_alone) {
  const TinyWeights weights(55, HD_Q8_0, kMixtral);
  const ExpertFile file(weights);
  const auto model = build_lazy(weights, file, 1, 2);  // forgets every expert before it packs the next
  Piece p = piece(tokens(56, 1), 0, 1, {0});
  check_run(model.get(), {&p});
  const std::vector<float> expected = p.logits;
  rlimit before{};
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  const rlimit none = {1, before.rlim_max};
  hd_error err{};
  CHECK(setrlimit(RLIMIT_AS, &none) == 0);
  const bool limited = mmap(nullptr, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
  const hd_status status = run(model.get(), {&p}, &err);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  if (!limited) {  // QEMU's user mode ignores the limit
    std::puts("     (skipped: needs Linux itself)");
    return;
  }
  CHECK(status == HD_ERR_MEMORY && std::strstr(err.message, "no memory for the experts of layer 0"));
  check_run(model.get(), {&p});
  CHECK(same_bits(p.logits, expected.data()));
}
#endif

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
