// A mixture of experts in place of the feed-forward network: route, gather, the experts' products, combine.
//
// A token's result is a function of its own row alone: its router logits add up in the order of every product, its
// experts' products do not depend on who else is routed to them, and their outputs are added best expert first, then
// the shared one. Experts that are not in memory are packed before they are used; where memory for them is limited, the
// groups go in waves that fit it.
#include "moe.h"

#include <algorithm>
#include <array>
#include <new>

#include "error.h"
#include "pass.h"

namespace herder {

void ExpertSlots::reserve(int64_t tokens, int32_t active, int32_t experts) {
  const auto n = static_cast<size_t>(tokens) * static_cast<size_t>(active);
  groups.reserve(std::min<size_t>(n, static_cast<size_t>(experts)) + 1);
  token.resize(n + static_cast<size_t>(tokens));
  scale.resize(token.size());
  slot.resize(n);
  weight.resize(n);
  next.resize(static_cast<size_t>(experts));
}

void ExpertSlots::fill(const int32_t* experts, const float* weights, int64_t tokens, int32_t active, int64_t rounded,
                       bool scale_inputs) {
  std::fill(next.begin(), next.end(), 0);
  routed = tokens * active;
  for (int64_t i = 0; i < routed; ++i) ++next[static_cast<size_t>(experts[i])];
  groups.clear();
  int64_t first = 0;
  for (size_t e = 0; e < next.size(); ++e) {
    if (next[e]) groups.push_back({static_cast<int32_t>(e), first, next[e], 0, {}});
    first += std::exchange(next[e], first);
  }
  for (int64_t i = 0; i < routed; ++i) {
    const auto at = static_cast<size_t>(i), place = static_cast<size_t>(next[static_cast<size_t>(experts[i])]++);
    slot[at] = static_cast<int64_t>(place);
    weight[at] = scale_inputs ? 1.0f : weights[i];
    token[place] = static_cast<int32_t>(i / active);
    scale[place] = scale_inputs ? weights[i] : 1.0f;
  }
  // the slots of a group are in the order of tokens, so those of rounded ones come first
  for (ExpertGroup& g : groups)
    while (g.rounded < g.count && token[static_cast<size_t>(g.first + g.rounded)] < rounded) ++g.rounded;
  for (int64_t t = 0; t < tokens; ++t) {
    token[static_cast<size_t>(routed + t)] = static_cast<int32_t>(t);
    scale[static_cast<size_t>(routed + t)] = 1.0f;
  }
}

void Pass::reserve_experts(uint32_t reads) {
  const Config& c = m.config;
  const int64_t slots = c.expert_slots(tokens_), rows = single_ ? m.team->size() : tokens_;
  m.router_logits.reserve(rows, c.n_experts);
  m.expert_gate.reserve(slots, c.expert_width());
  m.expert_up.reserve(slots, c.expert_width());
  m.expert_out.reserve(slots, c.dim);
  if (!single_) {
    m.expert_in.reserve(slots, c.dim);
    // a group may begin anywhere, and tiles read 16 rows at a time
    m.q_expert_in.reserve(*m.kernels, slots + kTokenPad, c.dim, reads);
    m.q_expert_hidden.reserve(*m.kernels, slots + kTokenPad, c.expert_width(), reads);
  }
  routed_expert_.resize(static_cast<size_t>(rows * c.n_experts_used));
  routed_weight_.resize(routed_expert_.size());
  wanted_.reserve(static_cast<size_t>(c.n_experts));
  expert_slots_.resize(static_cast<size_t>(m.team->size()));
  for (ExpertSlots& s : expert_slots_) s.reserve(tokens_, c.n_experts_used, c.n_experts);
}

void Pass::mixture(int thread, int32_t index) {
  const Config& c = m.config;
  const Layer& l = m.layers[static_cast<size_t>(index)];
  route(thread, index);
  ExpertSlots& slots = expert_slots_[static_cast<size_t>(thread)];
  const int64_t row = single_ ? int64_t{thread} * c.n_experts_used : 0;
  slots.fill(routed_expert_.data() + row, routed_weight_.data() + row, tokens_, c.n_experts_used, rounded_,
             c.router == HD_ROUTER_SIGMOID);
  for (ExpertGroup& g : slots.groups)
    for (size_t p = 0; p < 3; ++p) g.part[p] = &m.experts.at(index, g.expert).part[p];
  if (c.shared_ffn_dim)
    slots.groups.push_back({-1, slots.routed, tokens_, rounded_, {&l.shared_gate, &l.shared_up, &l.shared_down}});
  gather(thread, l, slots);
  for (size_t begin = 0, end; begin < slots.groups.size(); begin = end) {
    end = wave(index, slots, begin);
    if (!hold(thread, index, slots, begin, end)) return;
    expert_up(thread, l, slots, begin, end);
    expert_down(thread, slots, begin, end);
  }
  combine(thread, index, slots);
}

// Norm, router logits, and each token's experts. A lone token is routed by every thread for itself.
void Pass::route(int thread, int32_t index) {
  const Config& c = m.config;
  const Kernels& k = *m.kernels;
  const Layer& l = m.layers[static_cast<size_t>(index)];
  FloatBuffer& normed = single_ ? m.own_normed[static_cast<size_t>(thread)] : m.normed;
  const auto [begin, end] = single_ ? std::pair<int64_t, int64_t>{0, 1} : share(thread, tokens_);
  const int64_t row = single_ ? thread : begin;  // of what is computed here
  for (int64_t t = begin; t < end; ++t) k.rms_norm(m.x.row(t), l.ffn_norm, c.dim, c.norm_eps, normed.row(t));
  if (begin < end) {
    Activations a;
    a.x = normed.row(begin);
    a.stride = normed.stride;
    k.matmul(l.router, a, end - begin, 0, l.router.panels, Store::kSet, m.router_logits.row(row),
             m.router_logits.stride, scratch(thread));
  }
  for (int64_t i = 0; i < end - begin; ++i) {
    const auto at = static_cast<size_t>((row + i) * c.n_experts_used);
    k.route(m.router_logits.row(row + i), c.n_experts, c.n_experts_used, c.router, routed_expert_.data() + at,
            routed_weight_.data() + at);
  }
  if (!single_) wait();
  tap(thread, "ffn_norm", index, single_ ? m.own_normed[0].data : m.normed.data, tokens_, c.dim, m.normed.stride);
  tap(thread, "router", index, m.router_logits.data, tokens_, c.n_experts, m.router_logits.stride);
}

// Each slot's input in a row of its own, scaled, and prepared as the experts read it.
void Pass::gather(int thread, const Layer& l, const ExpertSlots& slots) {
  const int64_t dim = m.config.dim;
  const auto self = static_cast<size_t>(thread);
  const FloatBuffer& normed = single_ ? m.own_normed[self] : m.normed;
  const FloatBuffer& in = single_ ? m.own_expert_in[self] : m.expert_in;
  const QuantizedBuffer& q = single_ ? m.own_q_expert_in[self] : m.q_expert_in;
  const int64_t count = m.config.expert_slots(tokens_);
  const Inputs mine = single_ ? Inputs{0, count, 0, dim} : inputs(thread, count, dim);
  for (int64_t slot = mine.first; slot < mine.last; ++slot) {
    const float* x = normed.row(slots.token[static_cast<size_t>(slot)]);
    const float scale = slots.scale[static_cast<size_t>(slot)];
    float* row = in.row(slot);
    for (int64_t i = mine.begin; i < mine.end; ++i) row[i] = x[i] * scale;
    q.prepare(*m.kernels, row, mine.begin, mine.end, slot,
              prepared(slots.token[static_cast<size_t>(slot)], l.expert_inputs));
  }
  if (!single_) wait();
}

// The groups from `begin` on that are computed together: as many as the memory for lazy experts holds, at least one.
size_t Pass::wave(int32_t index, const ExpertSlots& slots, size_t begin) const {
  if (m.experts.limit() == 0) return slots.groups.size();
  size_t bytes = 0, end = begin;
  for (; end < slots.groups.size(); ++end) {
    const int32_t e = slots.groups[end].expert;
    if (e >= 0) bytes += m.experts.at(index, e).lazy_bytes;
    if (bytes > m.experts.limit() && end > begin) break;
  }
  return end;
}

// Sees that the experts of a wave are packed. False: there was no memory for them. All threads reach the same answer
// about what is missing: it changes between the two barriers only.
bool Pass::hold(int thread, int32_t index, const ExpertSlots& slots, size_t begin, size_t end) {
  if (!m.experts.lazy()) return true;
  bool missing = false;
  for (size_t g = begin; g < end; ++g)
    missing |= slots.groups[g].expert >= 0 && !m.experts.at(index, slots.groups[g].expert).packed();
  if (thread == 0) {
    wanted_.clear();
    for (size_t g = begin; g < end; ++g)
      if (slots.groups[g].expert >= 0) wanted_.push_back(slots.groups[g].expert);
    m.experts.use(index, wanted_);
  }
  if (!missing) return true;
  wait();
  if (thread == 0) {
    try {
      m.experts.make_room(index, wanted_);
    } catch (const std::bad_alloc&) {
      fail(errors_.data(), HD_ERR_MEMORY, "there is no memory for the experts of layer %d", index);
      failed_ = true;
    }
  }
  wait();
  if (failed_) return false;
  m.experts.pack(thread);
  wait();
  if (thread == 0) m.experts.release();
  return true;
}

// Calls run(group, token of the group, tokens, rounded, panel_begin, panel_end) until the wave's panels of a part are
// done.
template <class Run>
void Pass::expert_panels(int thread, ExpertSlots& slots, size_t begin, size_t end, ExpertPart part, Run run) {
  const int64_t n = m.team->size();
  const auto whole = [&](const ExpertGroup& g, int64_t from, int64_t to) {  // all tokens of a group
    if (g.rounded > 0) run(g, 0, g.rounded, true, from, to);
    if (g.rounded < g.count) run(g, g.rounded, g.count - g.rounded, false, from, to);
  };
  if (single_ &&
      part == ExpertPart::kDown) {  // all experts' share of the same columns, so that combine() needs no wait
    for (size_t g = begin; g < end; ++g) {
      const auto [from, to] = share(thread, slots.groups[g][part].panels);
      whole(slots.groups[g], from, to);
    }
    return;
  }
  int64_t total = 0;
  for (size_t g = begin; g < end; ++g) total += slots.groups[g][part].panels;
  if (tokens_ <= kStreamTokens) {
    const auto [from, to] = share(thread, total);
    int64_t first = 0;
    for (size_t g = begin; g < end; ++g) {
      const ExpertGroup& group = slots.groups[g];
      const int64_t b = std::max(from - first, int64_t{0}), e = std::min(to - first, group[part].panels);
      if (b < e) whole(group, b, e);
      first += group[part].panels;
    }
    return;
  }
  // Three counters in turn: the next phase's was last used two barriers ago.
  Counter& next = expert_counters_[slots.phase % 3];
  if (thread == 0) expert_counters_[(slots.phase + 1) % 3].reset();
  ++slots.phase;
  const auto runs_of = [&](const ExpertGroup& g) {
    const Matrix& w = g[part];
    return std::array{TokenRun(0, g.rounded, true, w, w.panels, total, n),
                      TokenRun(g.rounded, g.count, false, w, w.panels, total, n)};
  };
  size_t g = begin;
  int64_t first = 0;  // item of group g
  for (;;) {
    int64_t item = next.take(1) - first;
    for (; g < end; ++g) {
      const auto runs = runs_of(slots.groups[g]);
      const int64_t items = runs[0].items() + runs[1].items();
      if (item < items) break;
      item -= items;
      first += items;
    }
    if (g == end) return;
    const ExpertGroup& group = slots.groups[g];
    const auto runs = runs_of(group);
    const bool second = item >= runs[0].items();
    const TokenRun& r = runs[second];
    if (second) item -= runs[0].items();
    const int64_t token = item / r.steps * r.block, panel = item % r.steps * r.step;
    run(group, r.first + token, std::min(r.block, r.count - token), r.rounded, panel,
        std::min(panel + r.step, group[part].panels));
  }
}

void Pass::expert_up(int thread, const Layer& l, ExpertSlots& slots, size_t begin, size_t end) {
  const auto self = static_cast<size_t>(thread);
  const FloatBuffer& in = single_ ? m.own_expert_in[self] : m.expert_in;
  Activations a = (single_ ? m.own_q_expert_in[self] : m.q_expert_in).view();
  a.x = in.data;
  a.stride = in.stride;
  const Kernels& k = *m.kernels;
  expert_panels(thread, slots, begin, end, ExpertPart::kGate,
                [&](const ExpertGroup& g, int64_t token, int64_t n, bool round, int64_t from, int64_t to) {
                  const int64_t slot = g.first + token, stride = m.expert_gate.stride;
                  const Activations block = from_token(a, slot, round);
                  float *gate = m.expert_gate.row(slot), *up = m.expert_up.row(slot);
                  k.matmul(g[ExpertPart::kGate], block, n, from, to, Store::kSet, gate, stride, scratch(thread));
                  k.matmul(g[ExpertPart::kUp], block, n, from, to, Store::kSet, up, stride, scratch(thread));
                  for (int64_t t = 0; t < n; ++t)
                    k.silu_mul(gate + t * stride + from * kLanes, up + t * stride + from * kLanes,
                               (to - from) * kLanes);
                });
  wait();
  if (l.down_inputs == kFloat) return;
  const QuantizedBuffer& q = single_ ? m.own_q_expert_hidden[self] : m.q_expert_hidden;
  const int64_t first = slots.groups[begin].first, last = slots.groups[end - 1].first + slots.groups[end - 1].count;
  const int64_t width = m.config.expert_width();
  const Inputs mine = single_ ? Inputs{0, last - first, 0, width} : inputs(thread, last - first, width);
  size_t g = begin;
  for (int64_t slot = first + mine.first; slot < first + mine.last; ++slot) {
    while (slot >= slots.groups[g].first + slots.groups[g].count) ++g;
    const int64_t there = std::min(mine.end, slots.groups[g][ExpertPart::kDown].cols);
    if (mine.begin < there)
      q.prepare(k, m.expert_gate.row(slot), mine.begin, there, slot,
                prepared(slots.token[static_cast<size_t>(slot)], l.down_inputs));
  }
  if (!single_) wait();
}

void Pass::expert_down(int thread, ExpertSlots& slots, size_t begin, size_t end) {
  Activations a = (single_ ? m.own_q_expert_hidden[static_cast<size_t>(thread)] : m.q_expert_hidden).view();
  a.x = m.expert_gate.data;
  a.stride = m.expert_gate.stride;
  expert_panels(thread, slots, begin, end, ExpertPart::kDown,
                [&](const ExpertGroup& g, int64_t token, int64_t n, bool round, int64_t from, int64_t to) {
                  const int64_t slot = g.first + token;
                  m.kernels->matmul(g[ExpertPart::kDown], from_token(a, slot, round), n, from, to, Store::kSet,
                                    m.expert_out.row(slot), m.expert_out.stride, scratch(thread));
                });
  if (!single_) wait();
}

// What a token's experts gave, columns begin..end, into its row of m.normed.
void Pass::add_up(const ExpertSlots& slots, int64_t token, int64_t begin, int64_t end) {
  float* sum = m.normed.row(token) + begin;
  std::fill_n(sum, end - begin, 0.0f);
  for (int64_t i = token * m.config.n_experts_used; i < (token + 1) * m.config.n_experts_used; ++i)
    m.kernels->add_scaled(sum, m.expert_out.row(slots.slot[static_cast<size_t>(i)]) + begin,
                          slots.weight[static_cast<size_t>(i)], end - begin);
}

// x += the experts' outputs, weighted. With a tap the parts are shown as they come; the sums are the same.
void Pass::combine(int thread, int32_t index, const ExpertSlots& slots) {
  const Config& c = m.config;
  const Kernels& k = *m.kernels;
  const bool shared = c.shared_ffn_dim > 0;
  if (m.tap) {
    wait();
    if (thread == 0)
      for (int64_t t = 0; t < tokens_; ++t) add_up(slots, t, 0, c.dim);
    tap(thread, "experts.out", index, m.normed.data, tokens_, c.dim, m.normed.stride);
    if (shared) tap(thread, "shared.out", index, m.expert_out.row(slots.routed), tokens_, c.dim, m.expert_out.stride);
    if (thread == 0 && shared)
      for (int64_t t = 0; t < tokens_; ++t) k.add(m.normed.row(t), m.expert_out.row(slots.routed + t), c.dim);
    tap(thread, "ffn.out", index, m.normed.data, tokens_, c.dim, m.normed.stride);
    if (thread == 0)
      for (int64_t t = 0; t < tokens_; ++t) k.add(m.x.row(t), m.normed.row(t), c.dim);
    wait();
    return;
  }
  std::pair<int64_t, int64_t> tokens = {0, 1}, columns = {0, c.dim};
  if (single_) {
    const auto [from, to] = share(thread, slots.groups[0][ExpertPart::kDown].panels);
    columns = {from * kLanes, std::min<int64_t>(to * kLanes, c.dim)};
  } else {
    tokens = share(thread, tokens_);
  }
  const auto [begin, end] = columns;
  for (int64_t t = tokens.first; t < tokens.second; ++t) {
    add_up(slots, t, begin, end);
    if (shared) k.add(m.normed.row(t) + begin, m.expert_out.row(slots.routed + t) + begin, end - begin);
    k.add(m.x.row(t) + begin, m.normed.row(t) + begin, end - begin);
  }
  wait();
}

}  // namespace herder
