// The phases of a layer: products, rotation and KV write, attention.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "pass.h"

namespace herder {
// Activations of a product: normed (norm given) or as they are, and what else is read (layout.h).
Activations Pass::input(int thread, const float* x, int64_t stride, int64_t width, const float* norm, uint32_t reads,
                        QuantizedBuffer& shared, QuantizedBuffer& own, const Done& done) {
  FloatBuffer& normed = single_ ? m.own_normed[static_cast<size_t>(thread)] : m.normed;
  QuantizedBuffer& buffer = single_ ? own : shared;
  const Inputs mine = single_ ? Inputs{0, 1, 0, width} : inputs(thread, tokens_, width);
  for (int64_t t = mine.first; t < mine.last; ++t) {
    if (t < rounded_ ? done.rounded : done.rest) continue;
    const float* row = x + t * stride;
    if (norm) row = norm_part(thread, row, norm, width, mine, normed.row(t));
    buffer.prepare(*m.kernels, row, mine.begin, mine.end, t, prepared(t, reads));
  }
  const bool idle = (done.rounded || rounded_ == 0) && (done.rest || rounded_ == tokens_);
  if (!single_ && !idle) wait();
  Activations a = buffer.view();
  a.x = norm ? normed.data : x;
  a.stride = norm ? normed.stride : stride;
  return a;
}

// Norms a row and leaves in `out` the inputs that the thread prepares, which the returned row has, too.
const float* Pass::norm_part(int thread, const float* x, const float* norm, int64_t width, const Inputs& part,
                             float* out) {
  const bool whole = part.begin == 0 && part.end == width;
  float* row = whole ? out : m.own_normed[static_cast<size_t>(thread)].data;
  m.kernels->rms_norm(x, norm, width, m.config.norm_eps, row);
  if (!whole) std::copy(row + part.begin, row + part.end, out + part.begin);
  return row;
}

// Calls run(first token, tokens, rounded, panel_begin, panel_end) until the phase's panels are done, for tokens
// [0, rounded) apart from the others, in `shares` parts that have threads of their own.
template <class Run>
void Pass::panels(int thread, int64_t total, int64_t tokens, int64_t rounded, int64_t shares, const Matrix& like,
                  Run run) {
  const int64_t n = m.team->size();
  if (tokens <= kStreamTokens) {
    // one contiguous run of weights a thread: memory streams best undisturbed
    const int64_t begin = total * thread / n, end = total * (thread + 1) / n;
    if (rounded > 0) run(0, rounded, true, begin, end);
    if (rounded < tokens) run(rounded, tokens - rounded, false, begin, end);
    return;
  }
  const auto take = [&](const TokenRun& r, int64_t item) {
    const int64_t token = item / r.steps * r.block, panel = item % r.steps * r.step;
    run(r.first + token, std::min(r.block, r.count - token), r.rounded, panel, std::min(panel + r.step, total));
  };
  Counter* next = next_counters(thread, shares + 1);
  const TokenRun first(0, rounded, true, like, total, total, n, shares);
  const int64_t items = first.items();
  for (int64_t i = 0; i < shares; ++i) {  // a thread's own share, then what is left of the others'
    const int64_t share = (thread * shares / n + i) % shares;
    const int64_t begin = items * share / shares, end = items * (share + 1) / shares;
    for (int64_t item; (item = begin + next[share].take(1)) < end;) take(first, item);
  }
  const TokenRun rest(rounded, tokens, false, like, total, total, n);
  for (int64_t item; (item = next[shares].take(1)) < rest.items();) take(rest, item);
}

void Pass::products(int thread, const Activations& a, int64_t tokens, int64_t rounded,
                    std::initializer_list<Product> list, Store store) {
  int64_t total = 0;
  for (const Product& p : list) total += p.w->panels;
  const int64_t shares = token_shares(rounded, m.team->size(), m.config.dim);
  panels(thread, total, tokens, rounded, shares, *list.begin()->w,
         [&](int64_t token, int64_t n, bool round, int64_t begin, int64_t end) {
           const Activations block = from_token(a, token, round);
           int64_t first = 0;
           for (const Product& p : list) {
             const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, p.w->panels);
             if (from < to)
               m.kernels->matmul(*p.w, block, n, from, to, store, p.out + token * p.stride, p.stride, scratch(thread));
             first += p.w->panels;
           }
         });
}

// x += w a. With a tap the product goes to a buffer of its own first, so that it can be shown; the sums are the same.
void Pass::residual(int thread, const Activations& a, const Matrix& w, const char* name, int32_t layer) {
  if (!m.tap) {
    products(thread, a, tokens_, rounded_, {{&w, m.x.data, m.x.stride}}, Store::kAdd);
    wait();
    return;
  }
  products(thread, a, tokens_, rounded_, {{&w, m.normed.data, m.normed.stride}}, Store::kSet);
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
  const int64_t end = total * (thread + 1) / n;
  const int32_t hd = c.head_dim, half = hd / 2;
  const hd_layer_plan& plan = m.layers[static_cast<size_t>(index)].plan;
  for (int64_t item = total * thread / n, run; item < end; item += run) {
    // head by head, tokens of a page's number together: neighbouring tokens' keys share cache lines
    const int64_t first = item / (per_token * HD_PAGE_TOKENS) * HD_PAGE_TOKENS, i = item - first * per_token;
    const int64_t count = std::min<int64_t>(tokens_ - first, HD_PAGE_TOKENS), t = first + i % count, head = i / count;
    run = std::min(count - i % count, end - item);
    const bool query = head < c.n_heads;
    for (int64_t j = t; j < t + run; ++j) {
      float* x = query ? m.q.row(j) + head * hd : m.k.row(j) + (head - c.n_heads) * hd;
      const auto angle = static_cast<size_t>(position_[static_cast<size_t>(j)]) * static_cast<size_t>(half);
      if (plan.rope) k.rope(x, m.rope_cos.data() + angle, m.rope_sin.data() + angle, half);
      if (plan.qk_norm) k.rms_norm(x, m.ones.data(), hd, c.norm_eps, x);
      if (query && plan.temperature)
        for (int32_t d = 0; d < hd; ++d) x[d] *= temperature_[static_cast<size_t>(j)];
    }
    if (!query) store(index, head - c.n_heads, t, t + run);
  }
  wait();
  tap(thread, "attn.q", index, m.q.data, tokens_, c.q_dim(), m.q.stride);
  tap(thread, "attn.k", index, m.k.data, tokens_, c.kv_dim(), m.k.stride);
  tap(thread, "attn.v", index, m.v.data, tokens_, c.kv_dim(), m.v.stride);
}

// Writes keys and values of tokens [t, end) to their pages, those that share a page together.
void Pass::store(int32_t index, int64_t kv_head, int64_t t, int64_t end) {
  const Layer& layer = m.layers[static_cast<size_t>(index)];
  const KvStore& to = layer.plan.local ? m.kv_local : m.kv;
  const int32_t hd = m.config.head_dim;
  for (int64_t next; t < end; t = next) {
    const int32_t position = position_[static_cast<size_t>(t)], in_chunk = token_chunk_[static_cast<size_t>(t)];
    const int32_t slot = position % HD_PAGE_TOKENS;
    for (next = t + 1; next < end && next - t < HD_PAGE_TOKENS - slot; ++next)
      if (token_chunk_[static_cast<size_t>(next)] != in_chunk) break;
    const hd_chunk& chunk = chunks_[in_chunk];
    const int32_t page = (layer.plan.local ? chunk.local_pages : chunk.pages)[position / HD_PAGE_TOKENS];
    uint8_t* block = to.base + layer.kv_offset + static_cast<size_t>(page) * to.page_bytes +
                     static_cast<size_t>(kv_head) * m.kv_head_bytes;
    m.kernels->kv_write(block, hd, !m.config.float32, slot, static_cast<int32_t>(next - t), m.k.row(t) + kv_head * hd,
                        m.v.row(t) + kv_head * hd, m.k.stride);
  }
}

void Pass::attend(int thread, int32_t index) {
  const Config& c = m.config;
  const Layer& layer = m.layers[static_cast<size_t>(index)];
  const KvStore& store = layer.plan.local ? m.kv_local : m.kv;
  const int32_t hd = c.head_dim, repeat = c.n_heads / c.n_kv_heads;
  const FloatBuffer& own = m.own_partials[static_cast<size_t>(thread)];
  std::vector<AttentionRow> rows;
  const int64_t n = m.team->size(), count = static_cast<int64_t>(items_.size());
  // Threads that have the first tokens begin at the end, which has those (plan_attention).
  const bool backwards = 2 * thread < n && token_shares(rounded_, n, c.dim) > 1;
  Counter* const all = next_counters(thread, 3);
  Counter& side = all[1 + backwards];
  KvView kv{};
  kv.base = store.base + layer.kv_offset;
  kv.page_stride = store.page_bytes;
  kv.head_dim = hd;
  kv.half = !c.float32;
  while (all->take(1) < count) {
    const int64_t taken = side.take(1);
    const AttentionItem& item = items_[static_cast<size_t>(backwards ? count - 1 - taken : taken)];
    const AttentionRows& group = attention_rows_[static_cast<size_t>(item.rows)];
    const hd_chunk& chunk = chunks_[group.chunk];
    const int64_t base = chunk_row_[static_cast<size_t>(group.chunk)];
    const bool alone = group.parts == 1;
    const auto partial = [&](int64_t row) {  // the first of a row
      return alone ? own.row(row) : m.attention_partials.row(group.partial + row * group.parts);
    };
    kv.pages = layer.plan.local ? chunk.local_pages : chunk.pages;
    kv.head_offset = static_cast<size_t>(group.kv_head) * m.kv_head_bytes;
    rows.clear();
    for (int32_t t = group.first; t < group.first + group.tokens; ++t) {
      const int32_t position = chunk.start + t;
      for (int32_t h = group.kv_head * repeat; h < (group.kv_head + 1) * repeat; ++h)
        rows.push_back({m.q.row(base + t) + int64_t{h} * hd, position, first_visible(layer.plan, position),
                        partial(static_cast<int64_t>(rows.size())) + item.part * own.stride});
    }
    m.kernels->attention(rows.data(), static_cast<int32_t>(rows.size()), kv, item.begin, item.end,
                         m.attention_scratch[static_cast<size_t>(thread)].data);
    if (!alone) {  // whoever finishes the last part of these rows merges them
      const int32_t done = parts_done_[static_cast<size_t>(item.rows)].fetch_add(1, std::memory_order_acq_rel);
      if (done % group.parts != group.parts - 1) continue;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto at = static_cast<int64_t>(r);
      const int64_t token = base + group.first + at / repeat, head = group.kv_head * repeat + at % repeat;
      m.kernels->attention_merge(partial(at), group.parts, static_cast<size_t>(own.stride), hd,
                                 m.attn.row(token) + head * hd);
    }
  }
  wait();
}

void Pass::layer(int thread, int32_t index) {
  const Config& c = m.config;
  const Layer& l = m.layers[static_cast<size_t>(index)];
  const auto self = static_cast<size_t>(thread);
  const float* normed = single_ ? m.own_normed[0].data : m.normed.data;

  const uint32_t reads = l.wq.prepared() | l.wk.prepared() | l.wv.prepared();
  Activations a = input(thread, m.x.data, m.x.stride, c.dim, l.attn_norm, reads, m.q_dim_in, m.own_dim_in[self], {});
  tap(thread, "attn_norm", index, normed, tokens_, c.dim, m.normed.stride);
  products(thread, a, tokens_, rounded_,
           {{&l.wq, m.q.data, m.q.stride}, {&l.wk, m.k.data, m.k.stride}, {&l.wv, m.v.data, m.v.stride}}, Store::kSet);
  wait();
  rotate_and_store(thread, index);
  attend(thread, index);
  a = input(thread, m.attn.data, m.attn.stride, c.q_dim(), nullptr, l.wo.prepared(), m.q_attn_in, m.own_attn_in[self],
            {});
  residual(thread, a, l.wo, "attn.out", index);

  l.plan.experts ? mixture(thread, index) : feed_forward(thread, index);
}

// Whether the rounded tokens, or the others, take gate, up and what follows in one go.
bool Pass::fuses_swiglu(const Layer& l, bool rounded) const {
  const int64_t tokens = rounded ? rounded_ : tokens_ - rounded_;
  const bool alike = l.gate.layout == l.up.layout && l.gate.group == l.up.group && l.gate.has_min == l.up.has_min;
  return m.kernels->swiglu && !single_ && alike && in_bf16(l.gate, rounded) && in_bf16(l.down, rounded) &&
         (tokens > kStreamTokens || l.gate.integer());
}

void Pass::feed_forward(int thread, int32_t index) {
  const Config& c = m.config;
  const Layer& l = m.layers[static_cast<size_t>(index)];
  const auto self = static_cast<size_t>(thread);
  const uint32_t reads = l.gate.prepared() | l.up.prepared();
  Activations a = input(thread, m.x.data, m.x.stride, c.dim, l.ffn_norm, reads, m.q_dim_in, m.own_dim_in[self], {});
  tap(thread, "ffn_norm", index, single_ ? m.own_normed[0].data : m.normed.data, tokens_, c.dim, m.normed.stride);
  const Done done{fuses_swiglu(l, true), fuses_swiglu(l, false)};
  // In one part: two matrices taken apart, and few bytes that go to another core.
  panels(thread, l.gate.panels, tokens_, rounded_, 1, l.gate,
         [&](int64_t token, int64_t n, bool round, int64_t begin, int64_t end) {
           const Activations block = from_token(a, token, round);
           if (round ? done.rounded : done.rest)
             return m.kernels->swiglu(l.gate, l.up, block, n, begin, end,
                                      m.q_ffn_in.rounded + token * m.q_ffn_in.rounded_bytes, m.q_ffn_in.tokens,
                                      scratch(thread));
           float *gate = m.gate.row(token), *up = m.up.row(token);
           m.kernels->matmul(l.gate, block, n, begin, end, Store::kSet, gate, m.gate.stride, scratch(thread));
           m.kernels->matmul(l.up, block, n, begin, end, Store::kSet, up, m.up.stride, scratch(thread));
           for (int64_t t = 0; t < n; ++t)
             m.kernels->silu_mul(gate + t * m.gate.stride + begin * kLanes, up + t * m.up.stride + begin * kLanes,
                                 (end - begin) * kLanes);
         });
  wait();
  a = input(thread, m.gate.data, m.gate.stride, c.ffn_dim, nullptr, l.down.prepared(), m.q_ffn_in, m.own_ffn_in[self],
            done);
  residual(thread, a, l.down, "ffn.out", index);
}

}  // namespace herder
