// A loaded model: packed weights, KV pages, work space, threads. The opaque hd_model of the C ABI.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "arena.h"
#include "experts.h"
#include "herder.h"
#include "kernels.h"
#include "sample.h"
#include "threads.h"

namespace herder {

struct Layer {
  hd_layer_plan plan{};
  const float *attn_norm = nullptr, *ffn_norm = nullptr;
  Matrix wq, wk, wv, wo;
  Matrix gate, up, down;  // dense
  Matrix router;          // with experts, as the three below; always float32
  Matrix shared_gate, shared_up, shared_down;
  uint32_t expert_inputs = kFloat;  // what gate and up matrices of theirs read (layout.h)
  uint32_t down_inputs = kFloat;    // the same of down matrices
  size_t kv_offset = 0;             // of the layer in a page of its store
};

// Pages of the layers that share a store: [page][layer][kv head][K block, V block]. What a short conversation touches
// lies together.
struct KvStore {
  Arena memory;
  uint8_t* base = nullptr;
  size_t page_bytes = 0;
};

// Owned copy of hd_config.
struct Config {
  int32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab;
  float norm_eps;
  int32_t context;
  std::vector<float> rope_inv_freq;
  float rope_attention_factor;
  bool float32;
  int32_t kv_pages, kv_local_pages;
  int32_t temperature_floor;
  float temperature_scale;
  int32_t n_experts, n_experts_used, expert_ffn_dim, shared_ffn_dim;
  hd_router router;

  int64_t q_dim() const { return int64_t{n_heads} * head_dim; }
  int64_t kv_dim() const { return int64_t{n_kv_heads} * head_dim; }
  // Rows of a mixture's work space: one for each expert of each token, the shared one included.
  int64_t expert_slots(int64_t tokens) const { return tokens * (n_experts_used + (shared_ffn_dim > 0)); }
  int64_t expert_width() const { return std::max(expert_ffn_dim, shared_ffn_dim); }
};

// Prepared activations of a batch (layout.h); grown to the largest seen.
struct QuantizedBuffer {
  Mapping memory;
  int8_t* q = nullptr;
  float* fields = nullptr;
  uint8_t* rounded = nullptr;
  int64_t rounded_bytes = 0, tokens = 0;

  void reserve(const Kernels& k, int64_t count, int64_t cols, uint32_t prepared);
  // Inputs begin .. end - 1 of a token at x; begin is a multiple of kUnit, as is end if it is not the last.
  void prepare(const Kernels& k, const float* x, int64_t begin, int64_t end, int64_t token, uint32_t prepared) const {
    const int64_t unit = begin / kUnit * tokens, block = begin / kRoundedBlock * tokens;
    if (prepared & kQuantized)
      k.quantize(x + begin, end - begin, q + (unit + token) * kUnit, fields + unit * kActivationFields + token, tokens);
    if (prepared & kRounded) k.round_bf16(x + begin, end - begin, rounded + (block + token) * rounded_bytes, tokens);
  }
  Activations view() const;
  size_t bytes() const { return memory.bytes(); }
};

// Float rows, 64-byte aligned, an odd number of cache lines apart: a column of rows that are a power of two apart falls
// into one set of the cache.
struct FloatBuffer {
  Mapping memory;
  float* data = nullptr;
  int64_t stride = 0;

  void reserve(int64_t tokens, int64_t width);
  float* row(int64_t token) const { return data + token * stride; }
  size_t bytes() const { return memory.bytes(); }
};

}  // namespace herder

struct hd_model {
  herder::Config config;
  const herder::Kernels* kernels = nullptr;
  std::unique_ptr<herder::ThreadTeam> team;
  herder::Arena weights;
  herder::KvStore kv, kv_local;
  size_t kv_head_bytes = 0;

  herder::Matrix embed, head;  // head.data null: tied
  const float* final_norm = nullptr;
  std::vector<herder::Layer> layers;
  herder::ExpertStore experts;
  bool has_experts = false, has_dense = false;  // layers of the kind
  uint32_t inputs = herder::kFloat;             // what its matrices read (layout.h)
  bool finished = false;

  std::vector<float> ones;                // head_dim of them: the weight of the norm that has none
  std::vector<float> rope_cos, rope_sin;  // [positions filled][head_dim / 2]
  int32_t rope_filled = 0;

  // Work space of one forward pass.
  herder::FloatBuffer x, normed, q, k, v, attn, gate, up, logits, outputs;
  herder::QuantizedBuffer q_dim_in, q_attn_in, q_ffn_in;                     // batches: shared by the threads
  std::vector<herder::QuantizedBuffer> own_dim_in, own_attn_in, own_ffn_in;  // single token: one per thread
  std::vector<herder::FloatBuffer> own_normed;
  // The same for mixtures of experts, a row for each slot (moe.h).
  herder::FloatBuffer router_logits, expert_in, expert_gate, expert_up, expert_out;
  herder::QuantizedBuffer q_expert_in, q_expert_hidden;
  std::vector<herder::FloatBuffer> own_expert_in;
  std::vector<herder::QuantizedBuffer> own_q_expert_in, own_q_expert_hidden;
  std::vector<herder::FloatBuffer> attention_scratch, own_partials;  // own_partials: of rows that one thread finishes
  herder::FloatBuffer attention_partials;                            // of rows whose keys are shared out
  std::vector<herder::Mapping> matmul_scratch;
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
// hd_pack: the matrix alone, into the caller's memory.
hd_status pack_tensor(const hd_tensor& tensor, bool float32, int threads, uint8_t* out, size_t bytes, hd_error* err);
hd_status finish_model(hd_model& model, hd_error* err);
hd_status forward(hd_model& model, hd_chunk* chunks, int32_t n_chunks, hd_error* err);

}  // namespace herder
