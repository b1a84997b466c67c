// A loaded model: packed weights, KV pages, work space, threads. The opaque hd_model of the C ABI.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "arena.h"
#include "herder.h"
#include "kernels.h"
#include "sample.h"
#include "threads.h"

namespace herder {

struct Layer {
  const float *attn_norm = nullptr, *ffn_norm = nullptr;
  Matrix wq, wk, wv, wo, gate, up, down;
};

// Owned copy of hd_config.
struct Config {
  int32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab;
  float norm_eps;
  int32_t context;
  std::vector<float> rope_inv_freq;
  float rope_attention_factor;
  std::vector<hd_layer_plan> layers;
  bool float32;
  int32_t kv_pages;

  int64_t q_dim() const { return int64_t{n_heads} * head_dim; }
  int64_t kv_dim() const { return int64_t{n_kv_heads} * head_dim; }
};

// Quantized activations of a batch (layout.h); grown to the largest seen.
struct QuantizedBuffer {
  std::vector<uint8_t> memory;
  int8_t* q = nullptr;
  float* fields = nullptr;
  int64_t tokens = 0;

  void reserve(int64_t count, int64_t cols);
  void quantize(const Kernels& k, const float* x, int64_t n, int64_t token) const {
    k.quantize(x, n, q + token * kUnit, fields + token, tokens);
  }
  Activations view() const;
  size_t bytes() const { return memory.size(); }
};

// Float rows, 64-byte aligned.
struct FloatBuffer {
  std::vector<float> memory;
  float* data = nullptr;
  int64_t stride = 0;

  void reserve(int64_t tokens, int64_t width);
  float* row(int64_t token) const { return data + token * stride; }
  size_t bytes() const { return memory.size() * sizeof(float); }
};

}  // namespace herder

struct hd_model {
  herder::Config config;
  const herder::Kernels* kernels = nullptr;
  std::unique_ptr<herder::ThreadTeam> team;
  herder::Arena weights, kv;

  herder::Matrix embed, head;  // head.data null: tied
  const float* final_norm = nullptr;
  std::vector<herder::Layer> layers;
  bool finished = false;

  // [page][layer][kv head][K block, V block]: what a short conversation touches lies together
  uint8_t* kv_base = nullptr;
  size_t kv_head_bytes = 0, kv_layer_bytes = 0, kv_page_bytes = 0;

  std::vector<float> rope_cos, rope_sin;  // [positions filled][head_dim / 2]
  int32_t rope_filled = 0;

  // Work space of one forward pass.
  herder::FloatBuffer x, normed, q, k, v, attn, gate, up, logits, outputs;
  herder::QuantizedBuffer q_dim_in, q_attn_in, q_ffn_in;                     // batches: shared by the threads
  std::vector<herder::QuantizedBuffer> own_dim_in, own_attn_in, own_ffn_in;  // single token: one per thread
  std::vector<herder::FloatBuffer> own_normed;
  std::vector<herder::FloatBuffer> attention_scratch;
  std::vector<std::vector<uint8_t>> matmul_scratch;
  std::vector<herder::SampleScratch> sample_scratch;

  std::atomic<bool> interrupt{false};
  hd_tap tap = nullptr;
  void* tap_context = nullptr;

  const herder::Matrix& head_matrix() const { return head.data ? head : embed; }
  void fill_rope(int32_t positions);
  size_t work_bytes() const;
};

namespace herder {

hd_status create_model(const hd_config& config, const Kernels* kernels, hd_model** out, hd_error* err);
hd_status add_tensor(hd_model& model, const hd_tensor& tensor, hd_error* err);
hd_status finish_model(hd_model& model, hd_error* err);
hd_status forward(hd_model& model, hd_chunk* chunks, int32_t n_chunks, hd_error* err);

}  // namespace herder
