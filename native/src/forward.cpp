// One batch through the network: every thread runs Pass::body, phase by phase, meeting at the barrier.
//
// A phase's work is cut into items that threads take as they come free; an output is always computed whole, by one
// thread, in one order, so neither the cut nor the number of threads can change a bit of it. A lone token (plain decode)
// prepares its activations on every thread for itself instead of waiting at two more barriers a layer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "model.h"
#include "pack.h"
#include "softmax.h"

namespace herder {
namespace {

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

bool all_finite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

hd_status Pass::check(hd_error* err) {
  const Config& c = m.config;
  if (n_chunks_ < 1 || !chunks_) return fail(err, HD_ERR_ARGUMENT, "the batch is empty");
  for (int32_t i = 0; i < n_chunks_; ++i) {
    const hd_chunk& k = chunks_[i];
    if (k.n_tokens < 1 || !k.tokens) return fail(err, HD_ERR_ARGUMENT, "chunk %d: n_tokens is %d: must be 1 or more", i, k.n_tokens);
    if (k.start < 0 || int64_t{k.start} + k.n_tokens > c.context)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: positions %d..%lld are outside the context of %d", i, k.start,
                  static_cast<long long>(k.start) + k.n_tokens - 1, c.context);
    if (int64_t{k.n_pages} * HD_PAGE_TOKENS < int64_t{k.start} + k.n_tokens || !k.pages)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: %d pages cannot hold %lld positions", i, k.n_pages,
                  static_cast<long long>(k.start) + k.n_tokens);
    for (int32_t j = 0; j < k.n_pages; ++j)
      if (k.pages[j] < 0 || k.pages[j] >= c.kv_pages)
        return fail(err, HD_ERR_ARGUMENT, "chunk %d: page %d is outside 0..%d", i, k.pages[j], c.kv_pages - 1);
    for (int32_t j = 0; j < k.n_tokens; ++j)
      if (k.tokens[j] < 0 || k.tokens[j] >= c.vocab)
        return fail(err, HD_ERR_ARGUMENT, "chunk %d: token id %d is outside the vocabulary of %d", i, k.tokens[j], c.vocab);
    if (k.n_outputs < 0 || k.n_outputs > k.n_tokens)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: n_outputs is %d: must be between 0 and %d", i, k.n_outputs, k.n_tokens);
    if (k.n_outputs == 0) continue;
    if (k.want <= 0 || k.want > 15) return fail(err, HD_ERR_ARGUMENT, "chunk %d: want is %d", i, k.want);
    const bool ok = (!(k.want & HD_WANT_TOKEN) || (k.sampling && k.out_tokens)) &&
                    (!(k.want & HD_WANT_LOGITS) || k.out_logits) &&
                    (!(k.want & HD_WANT_SCORE) || (k.targets && k.out_scores)) &&
                    (!(k.want & HD_WANT_HIDDEN) || k.out_hidden);
    if (!ok) return fail(err, HD_ERR_ARGUMENT, "chunk %d: a result is wanted but its pointer is null", i);
    if (k.want & HD_WANT_TOKEN)
      if (const hd_status s = check_sampling(*k.sampling, c.vocab, err)) return s;
    if (k.want & HD_WANT_SCORE)
      for (int32_t j = 0; j < k.n_outputs; ++j)
        if (k.targets[j] < 0 || k.targets[j] >= c.vocab)
          return fail(err, HD_ERR_ARGUMENT, "chunk %d: target %d is outside the vocabulary of %d", i, k.targets[j], c.vocab);
  }
  return HD_OK;
}

void Pass::reserve() {
  const Config& c = m.config;
  for (int32_t i = 0; i < n_chunks_; ++i) {
    const hd_chunk& k = chunks_[i];
    chunk_row_.push_back(tokens_);
    for (int32_t j = 0; j < k.n_tokens; ++j) {
      token_chunk_.push_back(i);
      position_.push_back(k.start + j);
      token_id_.push_back(k.tokens[j]);
    }
    tokens_ += k.n_tokens;
    for (int32_t j = 0; j < k.n_outputs; ++j) output_rows_.push_back({i, j, tokens_ - k.n_outputs + j});
  }
  single_ = tokens_ == 1;
  m.fill_rope(*std::max_element(position_.begin(), position_.end()) + 1);
  m.x.reserve(tokens_, c.dim);
  m.normed.reserve(std::max<int64_t>(tokens_, kOutputRows), c.dim);
  m.q.reserve(tokens_, c.q_dim());
  m.k.reserve(tokens_, c.kv_dim());
  m.v.reserve(tokens_, c.kv_dim());
  m.attn.reserve(tokens_, c.q_dim());
  m.gate.reserve(tokens_, c.ffn_dim);
  m.up.reserve(tokens_, c.ffn_dim);
  const auto rows = std::min<int64_t>(kOutputRows, static_cast<int64_t>(output_rows_.size()));
  if (rows) {
    m.logits.reserve(rows, c.vocab);
    m.outputs.reserve(rows, c.dim);
  }
  m.q_dim_in.reserve(std::max<int64_t>(tokens_, rows), c.dim);
  if (!single_) {
    m.q_attn_in.reserve(tokens_, c.q_dim());
    m.q_ffn_in.reserve(tokens_, c.ffn_dim);
  }
  const size_t output_blocks = output_rows_.size() / kOutputRows + 1;
  counters_ = std::vector<Counter>(static_cast<size_t>(c.n_layers) * 6 + output_blocks * 3 + 4);
  thread_phase_.assign(static_cast<size_t>(m.team->size()) * 8, 0);
  errors_.assign(static_cast<size_t>(m.team->size()), hd_error{});
  plan_attention();
}

void Pass::plan_attention() {
  const Config& c = m.config;
  const int32_t repeat = c.n_heads / c.n_kv_heads;
  const int32_t tile = std::max(1, kQueryRows / repeat);
  const bool few = n_chunks_ * c.n_kv_heads < 4 * m.team->size();
  for (int32_t i = 0; i < n_chunks_; ++i) {
    const int32_t n = chunks_[i].n_tokens;
    for (int32_t first = (n - 1) / tile * tile; first >= 0; first -= tile) {  // the longest rows first
      const int32_t tokens = std::min(tile, n - first);
      // a few decoding sequences: one item a query head, or there would be too few items to share out
      const int32_t heads = n == 1 && few ? 1 : repeat;
      for (int32_t g = 0; g < c.n_kv_heads; ++g)
        for (int32_t h = 0; h < repeat; h += heads) items_.push_back({i, first, tokens, g, g * repeat + h, heads});
    }
  }
}

// Activations of a product: normed (norm given) or as they are, and int8 when `quantized`.
Activations Pass::input(int thread, const float* x, int64_t stride, int64_t width, const float* norm, bool quantized,
                        QuantizedBuffer& shared, QuantizedBuffer& own) {
  const Kernels& k = *m.kernels;
  FloatBuffer& normed = single_ ? m.own_normed[static_cast<size_t>(thread)] : m.normed;
  QuantizedBuffer& buffer = single_ ? own : shared;
  const int64_t n = m.team->size();
  const int64_t begin = single_ ? 0 : tokens_ * thread / n, end = single_ ? 1 : tokens_ * (thread + 1) / n;
  for (int64_t t = begin; t < end; ++t) {
    const float* row = x + t * stride;
    if (norm) {
      k.rms_norm(row, norm, width, m.config.norm_eps, normed.row(t));
      row = normed.row(t);
    }
    if (quantized) k.quantize(row, width, buffer.token(t), buffer.unit_stride);
  }
  if (!single_) wait();
  Activations a = buffer.view();
  a.x = norm ? normed.data : x;
  a.stride = norm ? normed.stride : stride;
  return a;
}

// Calls run(token_begin, tokens, panel_begin, panel_end) until the phase's panels are done.
template <class Run>
void Pass::panels(int thread, int64_t total, int64_t tokens, int64_t padded, Run run) {
  const int64_t n = m.team->size();
  Counter& next = next_counter(thread);
  if (tokens <= kStreamTokens) {
    // one contiguous run of weights a thread: memory streams best undisturbed
    run(0, tokens, total * thread / n, total * (thread + 1) / n);
    return;
  }
  int64_t block = std::max<int64_t>(48, static_cast<int64_t>(kTokenBlockBytes) / std::max<int64_t>(2 * padded, 1) / 48 * 48);
  if (block > tokens) block = tokens;
  const int64_t blocks = (tokens + block - 1) / block;
  const int64_t step = std::clamp<int64_t>(total / (n * 8), 1, 8);
  const int64_t steps = (total + step - 1) / step;
  for (int64_t item; (item = next.take(1)) < blocks * steps;) {
    const int64_t token = item / steps * block, panel = item % steps * step;
    run(token, std::min(block, tokens - token), panel, std::min(panel + step, total));
  }
}

Activations from_token(Activations a, int64_t token) {
  a.x += token * a.stride;
  a.units += token;
  return a;
}

void Pass::products(int thread, const Activations& a, int64_t tokens, std::initializer_list<Product> list, Store store) {
  int64_t total = 0;
  for (const Product& p : list) total += p.w->panels;
  panels(thread, total, tokens, list.begin()->w->padded_cols, [&](int64_t token, int64_t n, int64_t begin, int64_t end) {
    const Activations block = from_token(a, token);
    uint8_t* scratch = m.matmul_scratch[static_cast<size_t>(thread)].data();
    scratch += (64 - reinterpret_cast<uintptr_t>(scratch) % 64) % 64;
    int64_t first = 0;
    for (const Product& p : list) {
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, p.w->panels);
      if (from < to) m.kernels->matmul(*p.w, block, n, from, to, store, p.out + token * p.stride, p.stride, scratch);
      first += p.w->panels;
    }
  });
}

// x += w a. With a tap the product goes to a buffer of its own first, so that it can be shown; the sums are the same.
void Pass::residual(int thread, const Activations& a, const Matrix& w, const char* name, int32_t layer) {
  if (!m.tap) {
    products(thread, a, tokens_, {{&w, m.x.data, m.x.stride}}, Store::kAdd);
    wait();
    return;
  }
  products(thread, a, tokens_, {{&w, m.normed.data, m.normed.stride}}, Store::kSet);
  wait();
  tap(thread, name, layer, m.normed.data, tokens_, m.config.dim, m.normed.stride);
  if (thread == 0)
    for (int64_t t = 0; t < tokens_; ++t) m.kernels->add(m.x.row(t), m.normed.row(t), m.config.dim);
  wait();
}

void Pass::tap(int thread, const char* name, int32_t layer, const float* data, int64_t rows, int64_t cols,
               int64_t stride) {
  if (!m.tap) return;
  wait();
  if (thread == 0) {
    char full[64];
    if (layer < 0) {
      std::snprintf(full, sizeof full, "%s", name);
    } else {
      std::snprintf(full, sizeof full, "layers.%d.%s", layer, name);
    }
    std::vector<float> dense(static_cast<size_t>(rows * cols));
    for (int64_t r = 0; r < rows; ++r) std::copy_n(data + r * stride, cols, dense.data() + r * cols);
    m.tap(m.tap_context, full, rows, cols, dense.data());
  }
  wait();
}

void Pass::rotate_and_store(int thread, int32_t index) {
  const Config& c = m.config;
  const Kernels& k = *m.kernels;
  const int64_t per_token = c.n_heads + c.n_kv_heads, total = tokens_ * per_token, n = m.team->size();
  const int32_t hd = c.head_dim, half = hd / 2;
  const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
  const bool rope = c.layers[static_cast<size_t>(index)].rope != 0;
  uint8_t* layer_base = m.kv_base + static_cast<size_t>(index) * m.kv_layer_bytes;
  for (int64_t item = total * thread / n; item < total * (thread + 1) / n; ++item) {
    const int64_t t = item / per_token, head = item % per_token;
    const int32_t position = position_[static_cast<size_t>(t)];
    const float* cosine = m.rope_cos.data() + static_cast<size_t>(position) * static_cast<size_t>(half);
    const float* sine = m.rope_sin.data() + static_cast<size_t>(position) * static_cast<size_t>(half);
    if (head < c.n_heads) {
      float* q = m.q.row(t) + head * hd;
      if (rope) k.rope(q, cosine, sine, half);
      if (!m.tap)
        for (int32_t i = 0; i < hd; ++i) q[i] *= scale;
      continue;
    }
    const int64_t g = head - c.n_heads;
    float* key = m.k.row(t) + g * hd;
    if (rope) k.rope(key, cosine, sine, half);
    const hd_chunk& chunk = chunks_[token_chunk_[static_cast<size_t>(t)]];
    uint8_t* block = layer_base + static_cast<size_t>(chunk.pages[position / HD_PAGE_TOKENS]) * m.kv_page_bytes +
                     static_cast<size_t>(g) * m.kv_head_bytes;
    k.kv_write(block, hd, !c.float32, position % HD_PAGE_TOKENS, key, m.v.row(t) + g * hd);
  }
  wait();
  if (m.tap) {
    tap(thread, "attn.q", index, m.q.data, tokens_, c.q_dim(), m.q.stride);
    tap(thread, "attn.k", index, m.k.data, tokens_, c.kv_dim(), m.k.stride);
    tap(thread, "attn.v", index, m.v.data, tokens_, c.kv_dim(), m.v.stride);
    if (thread == 0)
      for (int64_t t = 0; t < tokens_; ++t)
        for (int64_t i = 0; i < c.q_dim(); ++i) m.q.row(t)[i] *= scale;
    wait();
  }
}

void Pass::attend(int thread, int32_t index) {
  const Config& c = m.config;
  const int32_t hd = c.head_dim, window = c.layers[static_cast<size_t>(index)].window;
  float* scratch = m.attention_scratch[static_cast<size_t>(thread)].data;
  AttentionRow rows[kQueryRows + 8];
  Counter& next = next_counter(thread);
  KvView kv{};
  kv.base = m.kv_base + static_cast<size_t>(index) * m.kv_layer_bytes;
  kv.page_stride = m.kv_page_bytes;
  kv.head_dim = hd;
  kv.half = !c.float32;
  for (int64_t i; (i = next.take(1)) < static_cast<int64_t>(items_.size());) {
    const AttentionItem& item = items_[static_cast<size_t>(i)];
    const hd_chunk& chunk = chunks_[item.chunk];
    const int64_t base = chunk_row_[static_cast<size_t>(item.chunk)];
    kv.pages = chunk.pages;
    kv.head_offset = static_cast<size_t>(item.kv_head) * m.kv_head_bytes;
    int32_t n = 0;
    const auto flush = [&] {
      m.kernels->attention(rows, n, kv, scratch);
      n = 0;
    };
    for (int32_t t = item.first; t < item.first + item.tokens; ++t) {
      for (int32_t h = item.head; h < item.head + item.heads; ++h) {
        AttentionRow& r = rows[n++];
        r.q = m.q.row(base + t) + int64_t{h} * hd;
        r.out = m.attn.row(base + t) + int64_t{h} * hd;
        r.position = chunk.start + t;
        r.first = window > 0 ? std::max(0, r.position - window + 1) : 0;
        if (n == kQueryRows) flush();
      }
    }
    if (n) flush();
  }
  wait();
}

void Pass::layer(int thread, int32_t index) {
  const Config& c = m.config;
  const Layer& l = m.layers[static_cast<size_t>(index)];
  const auto self = static_cast<size_t>(thread);
  const float* normed = single_ ? m.own_normed[0].data : m.normed.data;

  bool quantized = l.wq.integer() || l.wk.integer() || l.wv.integer();
  Activations a = input(thread, m.x.data, m.x.stride, c.dim, l.attn_norm, quantized, m.q_dim_in, m.own_dim_in[self]);
  tap(thread, "attn_norm", index, normed, tokens_, c.dim, m.normed.stride);
  products(thread, a, tokens_,
           {{&l.wq, m.q.data, m.q.stride}, {&l.wk, m.k.data, m.k.stride}, {&l.wv, m.v.data, m.v.stride}}, Store::kSet);
  wait();
  rotate_and_store(thread, index);
  attend(thread, index);
  a = input(thread, m.attn.data, m.attn.stride, c.q_dim(), nullptr, l.wo.integer(), m.q_attn_in, m.own_attn_in[self]);
  residual(thread, a, l.wo, "attn.out", index);

  quantized = l.gate.integer() || l.up.integer();
  a = input(thread, m.x.data, m.x.stride, c.dim, l.ffn_norm, quantized, m.q_dim_in, m.own_dim_in[self]);
  tap(thread, "ffn_norm", index, normed, tokens_, c.dim, m.normed.stride);
  panels(thread, l.gate.panels, tokens_, l.gate.padded_cols, [&](int64_t token, int64_t n, int64_t begin, int64_t end) {
    const Activations block = from_token(a, token);
    uint8_t* scratch = m.matmul_scratch[self].data();
    scratch += (64 - reinterpret_cast<uintptr_t>(scratch) % 64) % 64;
    float *gate = m.gate.row(token), *up = m.up.row(token);
    m.kernels->matmul(l.gate, block, n, begin, end, Store::kSet, gate, m.gate.stride, scratch);
    m.kernels->matmul(l.up, block, n, begin, end, Store::kSet, up, m.up.stride, scratch);
    for (int64_t t = 0; t < n; ++t)
      m.kernels->silu_mul(gate + t * m.gate.stride + begin * kLanes, up + t * m.up.stride + begin * kLanes,
                          (end - begin) * kLanes);
  });
  wait();
  a = input(thread, m.gate.data, m.gate.stride, c.ffn_dim, nullptr, l.down.integer(), m.q_ffn_in, m.own_ffn_in[self]);
  residual(thread, a, l.down, "ffn.out", index);
}

hd_status Pass::output_row(int thread, const OutputRow& row, const float* logits, const float* hidden, hd_error* err) {
  const Config& c = m.config;
  hd_chunk& k = chunks_[row.chunk];
  const auto i = static_cast<size_t>(row.index);
  if (!all_finite(hidden, c.dim))
    return fail(err, HD_ERR_NUMERIC, "the forward pass gave NaN or infinity: the weights are damaged");
  if (k.want & HD_WANT_HIDDEN) std::copy_n(hidden, c.dim, k.out_hidden + i * static_cast<size_t>(c.dim));
  if (k.want & HD_WANT_LOGITS) {
    if (!all_finite(logits, c.vocab))
      return fail(err, HD_ERR_NUMERIC, "the logits hold NaN or infinity: the weights are damaged");
    std::copy_n(logits, c.vocab, k.out_logits + i * static_cast<size_t>(c.vocab));
  }
  SampleScratch& scratch = m.sample_scratch[static_cast<size_t>(thread)];
  if (k.want & HD_WANT_SCORE) {
    if (!find_maxima(logits, c.vocab, &scratch.maxima)) return fail_non_finite(logits, c.vocab, err);
    k.out_scores[i] = log_softmax(logits, c.vocab, scratch.maxima)(logits[k.targets[i]]);
  }
  if (k.want & HD_WANT_TOKEN) {
    const size_t top = static_cast<size_t>(k.sampling->top_logprobs);
    SampleResult result{};
    result.token = k.out_tokens + i;
    result.logprob = k.out_logprobs ? k.out_logprobs + i : nullptr;
    result.top_ids = k.out_top_ids ? k.out_top_ids + i * top : nullptr;
    result.top_logprobs = k.out_top_logprobs ? k.out_top_logprobs + i * top : nullptr;
    const int32_t first_output = k.n_tokens - k.n_outputs;  // history ends with this token
    return sample(logits, c.vocab, *k.sampling, row.index, k.tokens + first_output + 1, row.index, &scratch, result, err);
  }
  return HD_OK;
}

void Pass::outputs(int thread) {
  const Config& c = m.config;
  const Kernels& k = *m.kernels;
  const Matrix& head = m.head_matrix();
  const auto n = static_cast<int64_t>(output_rows_.size());
  hd_error& err = errors_[static_cast<size_t>(thread)];
  for (int64_t begin = 0; begin < n; begin += kOutputRows) {
    const int64_t rows = std::min<int64_t>(kOutputRows, n - begin);
    bool logits = false;
    for (int64_t r = 0; r < rows; ++r)
      logits |= (chunks_[output_rows_[static_cast<size_t>(begin + r)].chunk].want & ~HD_WANT_HIDDEN) != 0;
    for (int64_t r = thread; r < rows; r += m.team->size()) {
      k.rms_norm(m.x.row(output_rows_[static_cast<size_t>(begin + r)].token), m.final_norm, c.dim, c.norm_eps,
                 m.outputs.row(r));
      if (head.integer()) k.quantize(m.outputs.row(r), c.dim, m.q_dim_in.token(r), m.q_dim_in.unit_stride);
    }
    wait();
    tap(thread, "final_norm", -1, m.outputs.data, rows, c.dim, m.outputs.stride);
    if (logits) {
      Activations a = m.q_dim_in.view();
      a.x = m.outputs.data;
      a.stride = m.outputs.stride;
      products(thread, a, rows, {{&head, m.logits.data, m.logits.stride}}, Store::kSet);
      wait();
      tap(thread, "logits", -1, m.logits.data, rows, c.vocab, m.logits.stride);
    }
    for (int64_t r = thread; r < rows; r += m.team->size()) {
      hd_error now{};
      if (output_row(thread, output_rows_[static_cast<size_t>(begin + r)], m.logits.row(r), m.outputs.row(r), &now) &&
          err.code == HD_OK)
        err = now;
    }
    wait();
  }
}

void Pass::body(int thread) {
  const int64_t n = m.team->size();
  for (int64_t t = tokens_ * thread / n; t < tokens_ * (thread + 1) / n; ++t)
    unpack_row(m.embed, token_id_[static_cast<size_t>(t)], m.x.row(t));
  wait();
  tap(thread, "embed", -1, m.x.data, tokens_, m.config.dim, m.x.stride);
  for (int32_t i = 0; i < m.config.n_layers; ++i) {
    layer(thread, i);
    if (i % 4 == 3) {  // one thread looks, all see the same answer
      if (thread == 0) stop_ = m.interrupt.load(std::memory_order_relaxed);
      wait();
      if (stop_) return;
    }
  }
  outputs(thread);
}

hd_status Pass::run(hd_error* err) {
  reserve();
  m.team->run([this](int thread) { body(thread); });
  if (stop_) return fail(err, HD_ERR_INTERRUPTED, "the forward pass was interrupted");
  for (const hd_error& e : errors_) {
    if (e.code == HD_OK) continue;
    if (err) *err = e;
    return static_cast<hd_status>(e.code);
  }
  return HD_OK;
}

}  // namespace

hd_status forward(hd_model& model, hd_chunk* chunks, int32_t n_chunks, hd_error* err) {
  if (!model.finished) return fail(err, HD_ERR_ARGUMENT, "the model is not finished: call hd_model_finish first");
  model.interrupt.store(false, std::memory_order_relaxed);
  Pass pass(model, chunks, n_chunks);
  if (const hd_status s = pass.check(err)) return s;
  return pass.run(err);
}

}  // namespace herder
