// hd_forward: checks a batch, makes room for it, runs the pass.
#include <algorithm>
#include <cmath>

#include "error.h"
#include "pack.h"
#include "pass.h"

namespace herder {

// Local pages: those that a token of the chunk sees must exist; the others are never looked at.
static hd_status check_local_pages(const hd_model& m, const hd_chunk& k, int32_t chunk, hd_error* err) {
  if (m.config.kv_local_pages == 0) return HD_OK;
  if (!k.local_pages) return fail(err, HD_ERR_ARGUMENT, "chunk %d: local_pages must be given", chunk);
  int32_t first = k.start;
  for (const Layer& l : m.layers)
    if (l.plan.local) first = std::min(first, first_visible(l.plan, k.start));
  for (int32_t j = 0; j < k.n_pages; ++j) {
    const bool seen = j >= first / HD_PAGE_TOKENS && j <= (k.start + k.n_tokens - 1) / HD_PAGE_TOKENS;
    const int32_t low = seen ? 0 : -1;
    if (k.local_pages[j] < low || k.local_pages[j] >= m.config.kv_local_pages)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: local page %d is outside %d..%d", chunk, k.local_pages[j], low,
                  m.config.kv_local_pages - 1);
  }
  return HD_OK;
}

hd_status Pass::check(hd_error* err) {
  const Config& c = m.config;
  if (n_chunks_ < 1 || !chunks_) return fail(err, HD_ERR_ARGUMENT, "the batch is empty");
  for (int32_t i = 0; i < n_chunks_; ++i) {
    const hd_chunk& k = chunks_[i];
    if (k.n_tokens < 1 || !k.tokens)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: n_tokens is %d: must be 1 or more", i, k.n_tokens);
    if (k.start < 0 || int64_t{k.start} + k.n_tokens > c.context)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: positions %d..%lld are outside the context of %d", i, k.start,
                  static_cast<long long>(k.start) + k.n_tokens - 1, c.context);
    if (int64_t{k.n_pages} * HD_PAGE_TOKENS < int64_t{k.start} + k.n_tokens || !k.pages)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: %d pages cannot hold %lld positions", i, k.n_pages,
                  static_cast<long long>(k.start) + k.n_tokens);
    for (int32_t j = 0; j < k.n_pages; ++j)
      if (k.pages[j] < 0 || k.pages[j] >= c.kv_pages)
        return fail(err, HD_ERR_ARGUMENT, "chunk %d: page %d is outside 0..%d", i, k.pages[j], c.kv_pages - 1);
    if (const hd_status s = check_local_pages(m, k, i, err)) return s;
    for (int32_t j = 0; j < k.n_tokens; ++j)
      if (k.tokens[j] < 0 || k.tokens[j] >= c.vocab)
        return fail(err, HD_ERR_ARGUMENT, "chunk %d: token id %d is outside the vocabulary of %d", i, k.tokens[j],
                    c.vocab);
    if (k.bf16 != 0 && k.bf16 != 1) return fail(err, HD_ERR_ARGUMENT, "chunk %d: bf16 is %d: 0 or 1", i, k.bf16);
    if (k.n_outputs < 0 || k.n_outputs > k.n_tokens)
      return fail(err, HD_ERR_ARGUMENT, "chunk %d: n_outputs is %d: must be between 0 and %d", i, k.n_outputs,
                  k.n_tokens);
    if (k.n_outputs == 0) continue;
    if (k.want <= 0 || k.want > 15) return fail(err, HD_ERR_ARGUMENT, "chunk %d: want is %d", i, k.want);
    const bool ok =
        (!(k.want & HD_WANT_TOKEN) || (k.sampling && k.out_tokens)) && (!(k.want & HD_WANT_LOGITS) || k.out_logits) &&
        (!(k.want & HD_WANT_SCORE) || (k.targets && k.out_scores)) && (!(k.want & HD_WANT_HIDDEN) || k.out_hidden);
    if (!ok) return fail(err, HD_ERR_ARGUMENT, "chunk %d: a result is wanted but its pointer is null", i);
    if (k.want & HD_WANT_TOKEN)
      if (const hd_status s = check_sampling(*k.sampling, c.vocab, err)) return s;
    if (k.want & HD_WANT_SCORE)
      for (int32_t j = 0; j < k.n_outputs; ++j)
        if (k.targets[j] < 0 || k.targets[j] >= c.vocab)
          return fail(err, HD_ERR_ARGUMENT, "chunk %d: target %d is outside the vocabulary of %d", i, k.targets[j],
                      c.vocab);
  }
  return HD_OK;
}

// What queries at a position are multiplied by: logarithm in float64, rounded once.
static float temperature(const Config& c, int32_t position) {
  if (c.temperature_floor < 1) return 1.0f;
  const double quotient = (int64_t{position} + 1) / c.temperature_floor;
  return static_cast<float>(1.0 + static_cast<double>(c.temperature_scale) * std::log(quotient + 1.0));
}

void Pass::reserve() {
  const Config& c = m.config;
  chunk_row_.resize(static_cast<size_t>(n_chunks_));
  for (const bool rounded : {true, false}) {
    for (int32_t i = 0; i < n_chunks_; ++i) {
      const hd_chunk& k = chunks_[i];
      if ((k.bf16 && !c.float32) != rounded) continue;
      chunk_row_[static_cast<size_t>(i)] = tokens_;
      for (int32_t j = 0; j < k.n_tokens; ++j) {
        token_chunk_.push_back(i);
        position_.push_back(k.start + j);
        token_id_.push_back(k.tokens[j]);
      }
      tokens_ += k.n_tokens;
      for (int32_t j = 0; j < k.n_outputs; ++j) output_rows_.push_back({i, j, tokens_ - k.n_outputs + j});
    }
    if (rounded) rounded_ = tokens_;
  }
  single_ = tokens_ == 1;
  const uint32_t reads = m.inputs | (rounded_ ? uint32_t{kRounded} : 0);
  m.fill_rope(*std::max_element(position_.begin(), position_.end()) + 1);
  m.x.reserve(tokens_, c.dim);
  m.normed.reserve(std::max<int64_t>(tokens_, kOutputRows), c.dim);
  m.q.reserve(tokens_, c.q_dim());
  m.k.reserve(tokens_, c.kv_dim());
  m.v.reserve(tokens_, c.kv_dim());
  m.attn.reserve(tokens_, c.q_dim());
  if (m.has_dense) {
    m.gate.reserve(tokens_, c.ffn_dim);
    m.up.reserve(tokens_, c.ffn_dim);
    if (!single_) m.q_ffn_in.reserve(*m.kernels, tokens_, c.ffn_dim, reads);
  }
  if (m.has_experts) reserve_experts(reads);
  for (const int32_t position : position_) temperature_.push_back(temperature(c, position));
  const auto rows = std::min<int64_t>(kOutputRows, static_cast<int64_t>(output_rows_.size()));
  if (rows) {
    m.logits.reserve(rows, c.vocab);
    m.outputs.reserve(rows, c.dim);
  }
  m.q_dim_in.reserve(*m.kernels, std::max<int64_t>(tokens_, rows), c.dim, reads);
  if (!single_) m.q_attn_in.reserve(*m.kernels, tokens_, c.q_dim(), reads);
  const size_t output_blocks = output_rows_.size() / kOutputRows + 1;
  const auto phases = static_cast<size_t>(c.n_layers) * 6 + output_blocks * 3 + 4;
  counters_ = std::vector<Counter>(phases * static_cast<size_t>(token_shares(rounded_, m.team->size(), c.dim) + 2));
  thread_phase_.assign(static_cast<size_t>(m.team->size()) * 8, 0);
  errors_.assign(static_cast<size_t>(m.team->size()), hd_error{});
  plan_attention();
}

void Pass::plan_attention() {
  const Config& c = m.config;
  const int32_t repeat = c.n_heads / c.n_kv_heads, threads = m.team->size();
  int32_t tile = std::max(1, kQueryRows / repeat);
  const auto groups = [&](int32_t of) {
    int32_t n = 0;
    for (int32_t i = 0; i < n_chunks_; ++i) n += (chunks_[i].n_tokens + of - 1) / of * c.n_kv_heads;
    return n;
  };
  while (tile > 1 && tile * repeat > kLeastQueryRows && groups(tile) < kAttentionRows * threads) tile = (tile + 1) / 2;
  for (int32_t i = 0; i < n_chunks_; ++i) {
    const int32_t n = chunks_[i].n_tokens;
    for (int32_t first = (n - 1) / tile * tile; first >= 0; first -= tile)  // the longest rows first
      for (int32_t g = 0; g < c.n_kv_heads; ++g)
        attention_rows_.push_back({i, first, std::min(tile, n - first), g, 1, 0});
  }
  // Where there are few rows their keys are shared out: neighbouring items then read neighbouring memory.
  const auto count = static_cast<int32_t>(attention_rows_.size());
  const int32_t wanted = threads == 1 ? 1 : (kAttentionItems * threads + count - 1) / count;
  int64_t partials = 0;
  for (int32_t part = 0; part < wanted; ++part) {
    for (int32_t j = 0; j < count; ++j) {
      AttentionRows& rows = attention_rows_[static_cast<size_t>(j)];
      const int32_t last = chunks_[rows.chunk].start + rows.first + rows.tokens - 1;
      const int32_t splits = last / (kSplitPages * HD_PAGE_TOKENS) + 1;
      if (part == 0) {
        rows.parts = std::min(splits, wanted);
        rows.partial = partials;
        partials += int64_t{rows.parts} * rows.tokens * repeat;
      }
      if (part < rows.parts) items_.push_back({j, part, splits * part / rows.parts, splits * (part + 1) / rows.parts});
    }
  }
  const auto floats = static_cast<int64_t>(attention_partial(c.head_dim));
  if (wanted > 1) m.attention_partials.reserve(partials, floats);
  for (FloatBuffer& own : m.own_partials) own.reserve(int64_t{tile} * repeat, floats);
  parts_done_ = std::vector<std::atomic<int32_t>>(attention_rows_.size());
}

void Pass::body(int thread) {
  const int64_t n = m.team->size();
  for (int64_t t = tokens_ * thread / n; t < tokens_ * (thread + 1) / n; ++t)
    unpack_row(m.embed, token_id_[static_cast<size_t>(t)], m.x.row(t));
  wait();
  tap(thread, "embed", -1, m.x.data, tokens_, m.config.dim, m.x.stride);
  for (int32_t i = 0; i < m.config.n_layers; ++i) {
    layer(thread, i);
    if (failed_) return;
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

hd_status forward(hd_model& model, hd_chunk* chunks, int32_t n_chunks, hd_error* err) {
  if (!model.finished) return fail(err, HD_ERR_ARGUMENT, "the model is not finished: call hd_model_finish first");
  model.interrupt.store(false, std::memory_order_relaxed);
  Pass pass(model, chunks, n_chunks);
  if (const hd_status s = pass.check(err)) return s;
  return pass.run(err);
}

}  // namespace herder
