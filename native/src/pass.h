// One batch through the network: every thread runs Pass::body, phase by phase, meeting at the barrier.
//
// A token of a prompt may ask for bfloat16 products where the others take int8 (hd_chunk.bf16). Those tokens come first
// in a batch, and no item holds both kinds.
//
// A phase's work is cut into items that threads take as they come free, in narrow models beginning with tokens of their
// own (token_shares); an output is always computed whole, by one thread, in one order, so neither the cut nor the
// number of threads can change a bit of it. A lone token (plain decode) prepares its activations on every thread for
// itself instead of waiting at two more barriers a layer.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "herder.h"
#include "model.h"
#include "moe.h"

namespace herder {

constexpr int32_t kOutputRows = 32;           // output positions that go through the head together
constexpr size_t kTokenBlockBytes = 1 << 20;  // int8 activations that stay in a core's L2 while panels stream past
constexpr int64_t kTokenTile = 32;            // tokens that bfloat16 tiles take at a time
constexpr int64_t kShareTokens = 192;         // as few are a part of a prompt that threads of its own take
constexpr int64_t kShareDim = 1024;           // up to this width of a model they do (135M: 1.13 times, 1B: 0.97)
constexpr int64_t kStreamTokens = 12;         // up to this many tokens the weights' way from memory is what takes time
constexpr int32_t kQueryRows = 48;            // query rows that an attention item has at the most
constexpr int32_t kLeastQueryRows = 16;       // as many fit a tile: fewer are not cut further
constexpr int32_t kAttentionRows = 4;         // groups of query rows that a thread should have to choose from
constexpr int32_t kAttentionItems = 16;       // items a thread should have to choose from, so that none waits long

// A matrix product of a phase.
struct Product {
  const Matrix* w;
  float* out;
  int64_t stride;
};

// Query rows of a chunk that share a KV head: tokens first .. first + tokens - 1, all heads that kv_head serves.
struct AttentionRows {
  int32_t chunk, first, tokens, kv_head;
  int32_t parts;    // items that share the keys out
  int64_t partial;  // row of m.attention_partials where theirs begin, if there are several: [query row][part]
};

// One of the parts: splits [begin, end) of the keys.
struct AttentionItem {
  int32_t rows, part, begin, end;
};

// Inputs begin .. end - 1 of rows first .. last - 1; begin is a multiple of kUnit, as is end if it is not the last.
struct Inputs {
  int64_t first, last, begin, end;
};

struct OutputRow {
  int32_t chunk, index;  // output position `index` of the chunk
  int64_t token;         // row of the batch
};

// Whether a product of these tokens is one of bfloat16 numbers.
inline bool in_bf16(const Matrix& w, bool rounded) { return w.layout == Layout::kBF16 || (rounded && w.integer()); }

// Tokens whose int8 activations stay in a core's cache. bfloat16 products cut their inputs themselves.
inline int64_t token_block(const Matrix& w, bool rounded) {
  if (in_bf16(w, rounded)) return 512;
  return std::max<int64_t>(48,
                           static_cast<int64_t>(kTokenBlockBytes) / std::max<int64_t>(2 * w.padded_cols, 1) / 48 * 48);
}

// Parts of a phase's bfloat16 tokens, each with threads of its own: what a thread has written it then reads itself,
// instead of fetching it from another core. Each part takes the weights apart for itself, so it pays only where a
// token's activations are few for the products that it takes.
inline int64_t token_shares(int64_t rounded, int64_t threads, int64_t dim) {
  return dim > kShareDim ? 1 : std::clamp<int64_t>(rounded / kShareTokens, 1, threads);
}

// Panels of an item: the more, the more often a cached input is used.
inline int64_t panel_step(const Matrix& w, bool rounded) { return in_bf16(w, rounded) ? 16 : 8; }

// Tokens first .. first + count - 1 of a phase, all of one kind, cut into items: blocks of tokens x steps of panels.
struct TokenRun {
  int64_t first, count;
  bool rounded;
  int64_t block, step, steps;

  // panels: of this product; total: of the phase, which all threads share out; shares: parts of the tokens that have
  // threads of their own.
  TokenRun(int64_t begin, int64_t end, bool bf16, const Matrix& like, int64_t panels, int64_t total, int64_t threads,
           int64_t shares = 1)
      : first(begin), count(end - begin), rounded(bf16) {
    const int64_t share = pad_to((count + shares - 1) / shares, kTokenTile);
    block = std::clamp<int64_t>(std::min(share, count), 1, token_block(like, rounded));
    // even: kernels take panels in pairs
    step = std::clamp<int64_t>(total * shares / (threads * 8) / 2 * 2, 2, panel_step(like, rounded));
    steps = (panels + step - 1) / step;
  }
  int64_t items() const { return (count + block - 1) / block * steps; }
};

// The first position that a query at `position` sees.
inline int32_t first_visible(const hd_layer_plan& plan, int32_t position) {
  if (plan.chunk > 0) return position / plan.chunk * plan.chunk;
  return plan.window > 0 ? std::max(0, position - plan.window + 1) : 0;
}

// The activations from one token of a block on, for integer panels as bfloat16 or not.
inline Activations from_token(Activations a, int64_t token, bool round) {
  a.x += token * a.stride;
  a.q += token * kUnit;
  a.fields += token;
  a.rounded += token * a.rounded_bytes;
  a.round = round;
  return a;
}

class Pass {
 public:
  Pass(hd_model& model, hd_chunk* chunks, int32_t n_chunks) : m(model), chunks_(chunks), n_chunks_(n_chunks) {}

  hd_status check(hd_error* err);
  hd_status run(hd_error* err);

 private:
  void reserve();
  void reserve_experts(uint32_t reads);
  void plan_attention();
  void body(int thread);
  void layer(int thread, int32_t index);
  void rotate_and_store(int thread, int32_t index);
  void store(int32_t index, int64_t kv_head, int64_t t, int64_t end);
  void attend(int thread, int32_t index);
  void feed_forward(int thread, int32_t index);
  void outputs(int thread);
  hd_status output_row(int thread, const OutputRow& row, const float* logits, const float* hidden, hd_error* err);

  // A mixture of experts (moe.cpp)
  void mixture(int thread, int32_t index);
  void route(int thread, int32_t index);
  void gather(int thread, const Layer& l, const ExpertSlots& slots);
  size_t wave(int32_t index, const ExpertSlots& slots, size_t begin) const;
  bool hold(int thread, int32_t index, const ExpertSlots& slots, size_t begin, size_t end);
  void expert_up(int thread, const Layer& l, ExpertSlots& slots, size_t begin, size_t end);
  void expert_down(int thread, ExpertSlots& slots, size_t begin, size_t end);
  void add_up(const ExpertSlots& slots, int64_t token, int64_t begin, int64_t end);
  void combine(int thread, int32_t index, const ExpertSlots& slots);
  template <class Run>
  void expert_panels(int thread, ExpertSlots& slots, size_t begin, size_t end, ExpertPart part, Run run);

  // Kinds of tokens whose inputs a product has prepared already.
  struct Done {
    bool rounded = false, rest = false;
  };
  const float* norm_part(int thread, const float* x, const float* norm, int64_t width, const Inputs& part, float* out);
  Activations input(int thread, const float* x, int64_t stride, int64_t width, const float* norm, uint32_t reads,
                    QuantizedBuffer& shared, QuantizedBuffer& own, const Done& done);
  bool fuses_swiglu(const Layer& l, bool rounded) const;
  template <class Run>
  void panels(int thread, int64_t total, int64_t tokens, int64_t rounded, int64_t shares, const Matrix& like, Run run);
  void products(int thread, const Activations& a, int64_t tokens, int64_t rounded, std::initializer_list<Product> list,
                Store store);
  void residual(int thread, const Activations& a, const Matrix& w, const char* name, int32_t layer);
  void tap(int thread, const char* name, int32_t layer, const float* data, int64_t rows, int64_t cols, int64_t stride);
  void wait() { m.team->barrier().wait(); }
  uint8_t* scratch(int thread) { return m.matmul_scratch[static_cast<size_t>(thread)].data(); }  // of a product
  // What is prepared of a token whose products read `reads` (layout.h).
  uint32_t prepared(int64_t token, uint32_t reads) const {
    return token < rounded_ && (reads & kQuantized) ? (reads & ~uint32_t{kQuantized}) | kRounded : reads;
  }
  // Items first..last of `count` that a thread takes in a phase where each has its own share.
  std::pair<int64_t, int64_t> share(int thread, int64_t count) const {
    const int64_t n = m.team->size();
    return {count * thread / n, count * (thread + 1) / n};
  }
  // What a thread prepares of `rows` rows of activations. Where it would not have as many rows as share a cache line of
  // QuantizedBuffer::fields, it is a part of the inputs of all: those lines would travel between the cores.
  Inputs inputs(int thread, int64_t rows, int64_t width) const {
    const bool by_rows = rows >= kTokenPad * int64_t{m.team->size()};
    const auto [first, last] = by_rows ? share(thread, rows) : std::pair{int64_t{0}, rows};
    const auto [begin, end] = by_rows ? std::pair{int64_t{0}, width} : share(thread, (width + kUnit - 1) / kUnit);
    if (by_rows) return {first, last, begin, end};
    return {first, begin < end ? last : 0, begin * kUnit, std::min(end * kUnit, width)};
  }

  hd_model& m;
  hd_chunk* chunks_;
  int32_t n_chunks_;
  int64_t tokens_ = 0;
  int64_t rounded_ = 0;  // tokens [0, rounded_) take bfloat16 products
  bool single_ = false;
  bool failed_ = false;  // written by thread 0 between two barriers
  std::vector<int32_t> token_chunk_, position_, token_id_;
  std::vector<float> temperature_;  // of each token, what its queries are scaled by in layers that ask for it
  std::vector<int64_t> chunk_row_;  // batch row of each chunk's first token
  std::vector<AttentionRows> attention_rows_;
  std::vector<AttentionItem> items_;
  std::vector<std::atomic<int32_t>> parts_done_;  // of each of attention_rows_, over all layers
  std::vector<OutputRow> output_rows_;
  std::vector<Counter> counters_;
  std::vector<size_t> thread_phase_;       // per thread, padded: which counter its next shared phase uses
  std::vector<ExpertSlots> expert_slots_;  // per thread, each with the same contents
  std::vector<int32_t> routed_expert_, wanted_;
  std::vector<float> routed_weight_;
  Counter expert_counters_[3];
  bool stop_ = false;
  std::vector<hd_error> errors_;

  // The first of `count` counters of the thread's next shared phase.
  Counter* next_counters(int thread, int64_t count) {
    size_t& next = thread_phase_[static_cast<size_t>(thread) * 8];
    next += static_cast<size_t>(count);
    return &counters_[next - static_cast<size_t>(count)];
  }
};

bool all_finite(const float* x, int64_t n);

}  // namespace herder
