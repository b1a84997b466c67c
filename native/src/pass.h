// One batch through the network: every thread runs Pass::body, phase by phase, meeting at the barrier.
//
// A phase's work is cut into items that threads take as they come free; an output is always computed whole, by one
// thread, in one order, so neither the cut nor the number of threads can change a bit of it. A lone token (plain
// decode) prepares its activations on every thread for itself instead of waiting at two more barriers a layer.
#pragma once

#include <initializer_list>
#include <vector>

#include "herder.h"
#include "model.h"

namespace herder {

constexpr int32_t kOutputRows = 32;           // output positions that go through the head together
constexpr size_t kTokenBlockBytes = 1 << 20;  // int8 activations that stay in a core's L2 while panels stream past
constexpr int64_t kStreamTokens = 12;         // up to this many tokens the weights' way from memory is what takes time
constexpr int32_t kQueryRows = 24;            // query rows of an attention item

// A matrix product of a phase.
struct Product {
  const Matrix* w;
  float* out;
  int64_t stride;
};

struct AttentionItem {
  int32_t chunk, first, tokens;  // tokens of the chunk
  int32_t kv_head, head, heads;  // query heads head .. head + heads - 1, all served by kv_head
};

struct OutputRow {
  int32_t chunk, index;  // output position `index` of the chunk
  int64_t token;         // row of the batch
};

class Pass {
 public:
  Pass(hd_model& model, hd_chunk* chunks, int32_t n_chunks) : m(model), chunks_(chunks), n_chunks_(n_chunks) {}

  hd_status check(hd_error* err);
  hd_status run(hd_error* err);

 private:
  void reserve();
  void plan_attention();
  void body(int thread);
  void layer(int thread, int32_t index);
  void rotate_and_store(int thread, int32_t index);
  void attend(int thread, int32_t index);
  void outputs(int thread);
  hd_status output_row(int thread, const OutputRow& row, const float* logits, const float* hidden, hd_error* err);

  Activations input(int thread, const float* x, int64_t stride, int64_t width, const float* norm, bool quantized,
                    QuantizedBuffer& shared, QuantizedBuffer& own);
  template <class Run>
  void panels(int thread, int64_t total, int64_t tokens, int64_t padded, Run run);
  void products(int thread, const Activations& a, int64_t tokens, std::initializer_list<Product> list, Store store);
  void residual(int thread, const Activations& a, const Matrix& w, const char* name, int32_t layer);
  void tap(int thread, const char* name, int32_t layer, const float* data, int64_t rows, int64_t cols, int64_t stride);
  void wait() { m.team->barrier().wait(); }

  hd_model& m;
  hd_chunk* chunks_;
  int32_t n_chunks_;
  int64_t tokens_ = 0;
  bool single_ = false;
  std::vector<int32_t> token_chunk_, position_, token_id_;
  std::vector<int64_t> chunk_row_;  // batch row of each chunk's first token
  std::vector<AttentionItem> items_;
  std::vector<OutputRow> output_rows_;
  std::vector<Counter> counters_;
  std::vector<size_t> thread_phase_;  // per thread, padded: which counter its next shared phase uses
  bool stop_ = false;
  std::vector<hd_error> errors_;

  Counter& next_counter(int thread) { return counters_[thread_phase_[static_cast<size_t>(thread) * 8]++]; }
};

bool all_finite(const float* x, int64_t n);

}  // namespace herder
