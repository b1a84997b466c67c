#include "model.h"

#include <cmath>
#include <span>

#include "error.h"

namespace herder {
namespace {

constexpr size_t kAlign = 64;

template <class T>
T* align(void* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + kAlign - 1) & ~(kAlign - 1));
}

struct Limit {
  const char* name;
  int64_t value, low, high;
};

hd_status check_limits(std::span<const Limit> limits, hd_error* err) {
  for (const Limit& l : limits)
    if (l.value < l.low || l.value > l.high)
      return fail(err, HD_ERR_ARGUMENT, "%s is %lld: must be between %lld and %lld", l.name,
                  static_cast<long long>(l.value), static_cast<long long>(l.low), static_cast<long long>(l.high));
  return HD_OK;
}

hd_status check_plan(const hd_config& c, int32_t index, hd_error* err) {
  const hd_layer_plan& p = c.layers[index];
  if (p.window < 0 || p.chunk < 0 || (p.window > 0 && p.chunk > 0))
    return fail(err, HD_ERR_ARGUMENT, "layer %d: window is %d and chunk %d: one may be set, to 1 or more", index,
                p.window, p.chunk);
  if (p.local && p.window == 0 && p.chunk == 0)
    return fail(err, HD_ERR_ARGUMENT, "layer %d is local without window or chunk: all its keys stay visible", index);
  if (p.local && c.kv_local_pages == 0)
    return fail(err, HD_ERR_ARGUMENT, "layer %d is local: kv_local_pages must be 1 or more", index);
  if (p.temperature && (c.temperature_floor < 1 || !std::isfinite(c.temperature_scale)))
    return fail(err, HD_ERR_ARGUMENT, "temperature_floor is %d and temperature_scale %g: at least 1, and finite",
                c.temperature_floor, static_cast<double>(c.temperature_scale));
  const Limit dense[] = {{"ffn_dim", c.ffn_dim, 8, 1 << 22}};
  if (!p.experts) return check_limits(dense, err);
  const Limit limits[] = {
      {"n_experts", c.n_experts, 1, 4096},
      {"n_experts_used", c.n_experts_used, 1, c.n_experts},
      {"expert_ffn_dim", c.expert_ffn_dim, 8, 1 << 22},
      {"shared_ffn_dim", c.shared_ffn_dim, 0, 1 << 22},
      {"router", c.router, HD_ROUTER_SOFTMAX, HD_ROUTER_SIGMOID},
      {"expert_memory", c.expert_memory, 0, INT64_MAX},
  };
  return check_limits(limits, err);
}

hd_status check_config(const hd_config& c, hd_error* err) {
  const Limit limits[] = {
      {"n_layers", c.n_layers, 1, 4096},
      {"dim", c.dim, 8, 1 << 20},
      {"n_heads", c.n_heads, 1, 4096},
      {"n_kv_heads", c.n_kv_heads, 1, 4096},
      {"head_dim", c.head_dim, 8, kMaxHeadDim},
      {"vocab", c.vocab, 1, kMaxVocab},
      {"context", c.context, 1, 1 << 30},
      {"threads", c.threads, 0, 1024},
      {"kv_pages", c.kv_pages, 1, 1 << 28},
      {"kv_local_pages", c.kv_local_pages, 0, 1 << 28},
      {"compute", c.compute, 0, HD_DTYPE_FLOAT32},
  };
  if (const hd_status s = check_limits(limits, err)) return s;
  if (c.n_heads % c.n_kv_heads != 0)
    return fail(err, HD_ERR_ARGUMENT, "n_heads is %d: must be a multiple of n_kv_heads, %d", c.n_heads, c.n_kv_heads);
  if (c.head_dim % 8 != 0) return fail(err, HD_ERR_ARGUMENT, "head_dim is %d: must be a multiple of 8", c.head_dim);
  if (!(c.norm_eps >= 0) || !std::isfinite(c.norm_eps))
    return fail(err, HD_ERR_ARGUMENT, "norm_eps is %g: must be 0 or more", static_cast<double>(c.norm_eps));
  if (!c.rope_inv_freq || !c.layers) return fail(err, HD_ERR_ARGUMENT, "rope_inv_freq and layers must be given");
  for (int32_t i = 0; i < c.head_dim / 2; ++i)
    if (!std::isfinite(c.rope_inv_freq[i]))
      return fail(err, HD_ERR_ARGUMENT, "rope_inv_freq[%d] is not a finite number", i);
  for (int32_t i = 0; i < c.n_layers; ++i)
    if (const hd_status s = check_plan(c, i, err)) return s;
  return HD_OK;
}

// Where each layer's keys and values lie, and the memory of both stores.
void create_stores(hd_model& m) {
  const Config& c = m.config;
  m.kv_head_bytes = kv_head_bytes(c.head_dim, !c.float32);
  for (Layer& l : m.layers) {
    KvStore& store = l.plan.local ? m.kv_local : m.kv;
    l.kv_offset = store.page_bytes;
    store.page_bytes += m.kv_head_bytes * static_cast<size_t>(c.n_kv_heads);
  }
  m.kv.base = m.kv.memory.allocate(m.kv.page_bytes * static_cast<size_t>(c.kv_pages));
  m.kv_local.base = m.kv_local.memory.allocate(m.kv_local.page_bytes * static_cast<size_t>(c.kv_local_pages));
}

void create_work_space(hd_model& m, size_t threads) {
  const Config& c = m.config;
  m.attention_scratch.resize(threads);
  m.own_partials.resize(threads);
  m.matmul_scratch.resize(threads);
  m.sample_scratch.resize(threads);
  for (auto* list : {&m.own_dim_in, &m.own_attn_in, &m.own_ffn_in, &m.own_q_expert_in, &m.own_q_expert_hidden})
    list->resize(threads);
  for (auto* list : {&m.own_normed, &m.own_expert_in}) list->resize(threads);
  const int64_t slots = c.expert_slots(1);
  const Kernels& k = *m.kernels;
  constexpr uint32_t kAny = kQuantized | kRounded;  // tensors are still to come
  for (size_t i = 0; i < threads; ++i) {
    m.own_dim_in[i].reserve(k, 1, c.dim, kAny);
    m.own_attn_in[i].reserve(k, 1, c.q_dim(), kAny);
    m.own_normed[i].reserve(1, c.dim);
    m.attention_scratch[i].reserve(1, static_cast<int64_t>(attention_scratch(c.head_dim)));
    if (m.has_dense) m.own_ffn_in[i].reserve(k, 1, c.ffn_dim, kAny);
    if (!m.has_experts) continue;
    m.own_expert_in[i].reserve(slots, c.dim);
    m.own_q_expert_in[i].reserve(k, slots, c.dim, kAny);
    m.own_q_expert_hidden[i].reserve(k, slots, c.expert_width(), kAny);
  }
}

}  // namespace

void FloatBuffer::reserve(int64_t tokens, int64_t width) {
  stride = (pad_to(width, kLanes) / kLanes | 1) * kLanes;
  const auto need = static_cast<size_t>(pad_to(tokens, kTokenPad) * stride) * sizeof(float);
  if (memory.bytes() < need) memory = Mapping(need);
  data = reinterpret_cast<float*>(memory.data());
}

void QuantizedBuffer::reserve(const Kernels& k, int64_t count, int64_t cols, uint32_t prepared) {
  // Tiles read whole rows of 16 tokens, and only for many. An odd number of rows keeps units of the same tokens from
  // falling into the same cache sets.
  const int64_t rows = pad_to(count, kTokenPad) / kTokenPad;
  tokens = count <= 8 ? count : (rows | 1) * kTokenPad;
  const auto units = static_cast<size_t>(pad_to(cols, kUnit) / kUnit), n = static_cast<size_t>(tokens);
  rounded_bytes = kRoundedBlock * k.rounded_bytes;
  const size_t bytes = prepared & kQuantized ? units * n * (kUnit + kActivationFields * sizeof(float)) : 0;
  // tiles read 16 tokens from wherever a run of tokens begins, so from the last block on past the end
  const size_t words = (units * n * 2 + kTokenPad) * static_cast<size_t>(rounded_bytes);
  const size_t need = bytes + (prepared & kRounded ? words : 0) + 3 * kAlign;
  if (memory.bytes() < need) memory = Mapping(need);
  q = align<int8_t>(memory.data());
  fields = align<float>(q + (prepared & kQuantized ? units * n * kUnit : 0));
  rounded = align<uint8_t>(memory.data() + bytes + kAlign);
}

Activations QuantizedBuffer::view() const {
  Activations a;
  a.q = q;
  a.fields = fields;
  a.rounded = rounded;
  a.rounded_bytes = rounded_bytes;
  a.tokens = tokens;
  return a;
}

hd_status create_model(const hd_config& c, const Kernels* kernels, hd_model** out, hd_error* err) {
  if (const hd_status s = check_config(c, err)) return s;
  auto m = std::make_unique<hd_model>();
  m->config = {.n_layers = c.n_layers,
               .dim = c.dim,
               .n_heads = c.n_heads,
               .n_kv_heads = c.n_kv_heads,
               .head_dim = c.head_dim,
               .ffn_dim = c.ffn_dim,
               .vocab = c.vocab,
               .norm_eps = c.norm_eps,
               .context = c.context,
               .rope_inv_freq = {c.rope_inv_freq, c.rope_inv_freq + c.head_dim / 2},
               .rope_attention_factor = c.rope_attention_factor,
               .float32 = c.compute == HD_DTYPE_FLOAT32,
               .kv_pages = c.kv_pages,
               .kv_local_pages = c.kv_local_pages,
               .temperature_floor = c.temperature_floor,
               .temperature_scale = c.temperature_scale,
               .n_experts = c.n_experts,
               .n_experts_used = c.n_experts_used,
               .expert_ffn_dim = c.expert_ffn_dim,
               .shared_ffn_dim = c.shared_ffn_dim,
               .router = static_cast<hd_router>(c.router)};
  m->kernels = kernels;
  m->layers.resize(static_cast<size_t>(c.n_layers));
  for (size_t i = 0; i < m->layers.size(); ++i) {
    m->layers[i].plan = c.layers[i];
    (c.layers[i].experts ? m->has_experts : m->has_dense) = true;
  }
  m->ones.assign(static_cast<size_t>(c.head_dim), 1.0f);
  m->team = std::make_unique<ThreadTeam>(c.threads);
  create_stores(*m);
  if (m->has_experts) m->experts.create(c.n_layers, c.n_experts, static_cast<size_t>(c.expert_memory));
  create_work_space(*m, static_cast<size_t>(c.threads));
  *out = m.release();
  return HD_OK;
}

}  // namespace herder

// Angles in float32 from integer positions, as the reference implementations compute them.
void hd_model::fill_rope(int32_t positions) {
  if (positions <= rope_filled) return;
  const int32_t target = std::min(config.context, std::max(positions, rope_filled + 1024));
  const auto half = config.rope_inv_freq.size();
  rope_cos.resize(static_cast<size_t>(target) * half);
  rope_sin.resize(static_cast<size_t>(target) * half);
  for (int32_t p = rope_filled; p < target; ++p) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * config.rope_inv_freq[i];
      const size_t at = static_cast<size_t>(p) * half + i;
      rope_cos[at] = static_cast<float>(std::cos(static_cast<double>(angle))) * config.rope_attention_factor;
      rope_sin[at] = static_cast<float>(std::sin(static_cast<double>(angle))) * config.rope_attention_factor;
    }
  }
  rope_filled = target;
}

size_t hd_model::work_bytes() const {
  size_t n = (rope_cos.size() + rope_sin.size()) * sizeof(float);
  for (const auto* b : {&x, &normed, &q, &k, &v, &attn, &gate, &up, &logits, &outputs, &router_logits, &expert_in,
                        &expert_gate, &expert_up, &expert_out, &attention_partials})
    n += b->bytes();
  for (const auto* b : {&q_dim_in, &q_attn_in, &q_ffn_in, &q_expert_in, &q_expert_hidden}) n += b->bytes();
  for (const auto* list : {&own_dim_in, &own_attn_in, &own_ffn_in, &own_q_expert_in, &own_q_expert_hidden})
    for (const auto& b : *list) n += b.bytes();
  for (const auto* list : {&own_normed, &attention_scratch, &own_partials, &own_expert_in})
    for (const auto& b : *list) n += b.bytes();
  for (const auto& b : matmul_scratch) n += b.bytes();
  return n;
}
