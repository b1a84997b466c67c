// A small model of random weights in any storage format, built and run through the C ABI.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/block.h"
#include "formats/registry.h"
#include "herder.h"
#include "test.h"

namespace herder::test {

// Bytes of a tensor in a storage format, with weights of about the size 1 / sqrt(cols).
inline std::vector<uint8_t> random_tensor(Random& random, const FormatInfo& format, int64_t rows, int64_t cols) {
  const size_t blocks = static_cast<size_t>(rows * (cols / format.block));
  std::vector<uint8_t> data = random.bytes<uint8_t>(blocks * static_cast<size_t>(format.bytes));
  // Where a block keeps its float16 scales, and the scale that gives values up to about 0.2.
  struct Scale {
    int32_t id;
    int first, second;
    float size;
  };
  static constexpr Scale kScales[] = {
      {HD_Q4_0, 0, -1, 0.025f},  {HD_Q4_1, 0, 2, 0.025f},   {HD_Q5_0, 0, -1, 0.0125f},   {HD_Q5_1, 0, 2, 0.0125f},
      {HD_Q8_0, 0, -1, 0.0016f}, {HD_Q2_K, 80, 82, 0.004f}, {HD_Q3_K, 108, -1, 0.0015f}, {HD_Q4_K, 0, 2, 0.0002f},
      {HD_Q5_K, 0, 2, 0.0001f},  {HD_Q6_K, 208, -1, 5e-5f}, {HD_IQ4_NL, 0, -1, 0.0016f}, {HD_IQ4_XS, 0, -1, 5e-5f},
  };
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t* block = data.data() + b * static_cast<size_t>(format.bytes);
    const auto put = [&](int at, float value) {
      const uint16_t half = f32_to_f16(value);
      std::memcpy(block + at, &half, sizeof half);
    };
    for (const Scale& s : kScales) {
      if (s.id != format.id) continue;
      put(s.first, random.uniform(0.5f, 1) * s.size * (random.below(2) ? 1.0f : -1.0f));
      if (s.second >= 0) put(s.second, random.uniform(-1, 1) * s.size);
    }
    const float value = random.normal() * 0.06f;
    if (format.id == HD_MXFP4) block[0] = static_cast<uint8_t>(121 + random.below(3));
    if (format.id == HD_F16) put(0, value);
    if (format.id == HD_F32) std::memcpy(block, &value, sizeof value);
    const uint16_t brain = f32_to_bf16(value);
    if (format.id == HD_BF16) std::memcpy(block, &brain, sizeof brain);
  }
  return data;
}

// What a tiny model is besides dense: its layers' plans, its experts.
struct TinyShape {
  // one layer rotates and sees all, one is a window without RoPE
  std::vector<hd_layer_plan> layers = {{.rope = 1}, {.window = 20}};
  int32_t experts = 0, active = 0, expert_ffn = 0, shared_ffn = 0;
  hd_router router = HD_ROUTER_SOFTMAX;
  int32_t local_pages = 0, temperature_floor = 0;
  int32_t ffn = 256;                   // of dense layers
  std::map<int32_t, int32_t> formats;  // of roles that have another than the rest
};

// Weights of one model; build() makes the same hd_model again and again, for any ISA and any number of threads.
struct TinyWeights {
  static constexpr int32_t kDim = 256, kHeads = 4, kKvHeads = 2, kHeadDim = 64, kVocab = 70;
  static constexpr int32_t kContext = 128, kPages = 16;

  struct Tensor {
    int32_t role, layer, expert, format;
    int64_t rows, cols;
    std::vector<uint8_t> data;
  };
  TinyShape shape;
  std::vector<float> frequencies;
  std::vector<Tensor> tensors;

  TinyWeights(uint64_t seed, int32_t format, TinyShape tiny = {}) : shape(std::move(tiny)) {
    Random random{seed};
    for (int32_t i = 0; i < kHeadDim / 2; ++i) frequencies.push_back(1.0f / static_cast<float>(1 + i * i));
    const auto add = [&](int32_t role, int32_t layer, int32_t id, int64_t rows, int64_t cols, int32_t expert = 0) {
      if (const auto other = shape.formats.find(role); other != shape.formats.end()) id = other->second;
      tensors.push_back({role, layer, expert, id, rows, cols, random_tensor(random, *format_info(id), rows, cols)});
    };
    const auto norm = [&](int32_t role, int32_t layer) {
      add(role, layer, HD_F32, 1, kDim);
      auto* weight = reinterpret_cast<float*>(tensors.back().data.data());
      for (int32_t i = 0; i < kDim; ++i) weight[i] = random.uniform(0.5f, 1.5f);
    };
    add(HD_EMBED, -1, format, kVocab, kDim);
    norm(HD_FINAL_NORM, -1);
    for (int32_t i = 0; i < static_cast<int32_t>(shape.layers.size()); ++i) {
      norm(HD_ATTN_NORM, i);
      norm(HD_FFN_NORM, i);
      add(HD_WQ, i, format, kHeads * kHeadDim, kDim);
      add(HD_WK, i, format, kKvHeads * kHeadDim, kDim);
      add(HD_WV, i, format, kKvHeads * kHeadDim, kDim);
      add(HD_WO, i, format, kDim, kHeads * kHeadDim);
      if (i == 1) add(HD_BQ, i, HD_F32, 1, kHeads * kHeadDim);
      if (!shape.layers[static_cast<size_t>(i)].experts) {
        add(HD_W_GATE, i, format, shape.ffn, kDim);
        add(HD_W_UP, i, format, shape.ffn, kDim);
        add(HD_W_DOWN, i, format, kDim, shape.ffn);
        continue;
      }
      add(HD_ROUTER, i, HD_F32, shape.experts, kDim);
      for (int32_t e = 0; e < shape.experts; ++e) {
        add(HD_EXPERT_GATE, i, format, shape.expert_ffn, kDim, e);
        add(HD_EXPERT_UP, i, format, shape.expert_ffn, kDim, e);
        add(HD_EXPERT_DOWN, i, format, kDim, shape.expert_ffn, e);
      }
      if (!shape.shared_ffn) continue;
      add(HD_SHARED_GATE, i, format, shape.shared_ffn, kDim);
      add(HD_SHARED_UP, i, format, shape.shared_ffn, kDim);
      add(HD_SHARED_DOWN, i, format, kDim, shape.shared_ffn);
    }
  }

  // Whether a layer has matrices that products may read as bfloat16 or not.
  bool quantized() const {
    return std::any_of(tensors.begin(), tensors.end(),
                       [](const Tensor& t) { return t.layer >= 0 && format_info(t.format)->block > 1; });
  }

  struct Free {
    void operator()(hd_model* model) const { hd_model_free(model); }
  };
  using Model = std::unique_ptr<hd_model, Free>;

  hd_config config(int32_t compute, int32_t threads) const {
    hd_config c{};
    c.n_layers = static_cast<int32_t>(shape.layers.size());
    c.dim = kDim;
    c.n_heads = kHeads;
    c.n_kv_heads = kKvHeads;
    c.head_dim = kHeadDim;
    c.ffn_dim = shape.ffn;
    c.vocab = kVocab;
    c.norm_eps = 1e-5f;
    c.context = kContext;
    c.rope_inv_freq = frequencies.data();
    c.rope_attention_factor = 1;
    c.layers = shape.layers.data();
    c.compute = compute;
    c.threads = threads;
    c.kv_pages = kPages;
    c.kv_local_pages = shape.local_pages;
    c.temperature_floor = shape.temperature_floor;
    c.temperature_scale = 0.1f;
    c.n_experts = shape.experts;
    c.n_experts_used = shape.active;
    c.expert_ffn_dim = shape.expert_ffn;
    c.shared_ffn_dim = shape.shared_ffn;
    c.router = shape.router;
    return c;
  }

  // hand(tensor): where a tensor is given otherwise than as it is.
  template <class Hand>
  Model build(const char* isa, const hd_config& config, Hand hand) const {
    hd_error err{};
    hd_model* raw = nullptr;
    bool ok = hd_model_create(&config, isa, &raw, &err) == HD_OK;
    Model model(raw);
    for (const Tensor& t : tensors) {
      hd_tensor tensor{};
      tensor.role = t.role;
      tensor.layer = t.layer;
      tensor.expert = t.expert;
      tensor.format = t.format;
      tensor.rows = t.rows;
      tensor.cols = t.cols;
      tensor.data = t.data.data();
      tensor.bytes = t.data.size();
      hand(tensor);
      ok = ok && hd_model_tensor(raw, &tensor, &err) == HD_OK;
    }
    ok = ok && hd_model_finish(raw, &err) == HD_OK;
    if (!ok) fail(__FILE__, __LINE__, err.message);
    return model;
  }

  Model build(const char* isa, int32_t threads, int32_t compute = HD_DTYPE_AUTO) const {
    return build(isa, config(compute, threads), [](hd_tensor&) {});
  }
};

// Some tokens of a sequence that lives in given pages, and the logits of each of them once run.
struct Piece {
  std::vector<int32_t> tokens, pages;
  int32_t start = 0;
  std::vector<int32_t> local_pages;
  int32_t bf16 = 0;
  std::vector<float> logits;
};

inline hd_status run(hd_model* model, const std::vector<Piece*>& batch, hd_error* err) {
  std::vector<hd_chunk> chunks;
  for (Piece* p : batch) {
    const auto n = static_cast<int32_t>(p->tokens.size());
    p->logits.assign(static_cast<size_t>(n * TinyWeights::kVocab), -1.0f);
    hd_chunk c{};
    c.tokens = p->tokens.data();
    c.n_tokens = c.n_outputs = n;
    c.start = p->start;
    c.pages = p->pages.data();
    c.local_pages = p->local_pages.empty() ? nullptr : p->local_pages.data();
    c.n_pages = static_cast<int32_t>(p->pages.size());
    c.want = HD_WANT_LOGITS;
    c.bf16 = p->bf16;
    c.out_logits = p->logits.data();
    chunks.push_back(c);
  }
  return hd_forward(model, chunks.data(), static_cast<int32_t>(chunks.size()), err);
}

}  // namespace herder::test
