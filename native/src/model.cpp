#include "model.h"

#include <cmath>
#include <cstring>

#include "error.h"
#include "formats/registry.h"
#include "pack.h"

namespace herder {
namespace {

constexpr size_t kAlign = 64;

template <class T>
T* align(void* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + kAlign - 1) & ~(kAlign - 1));
}

const char* role_name(int32_t role) {
  static const char* const names[] = {"embed", "head",   "final_norm", "attn_norm", "wq",    "wk",       "wv",
                                      "wo",    "bq",     "bk",         "bv",        "bo",    "ffn_norm", "w_gate",
                                      "w_up",  "w_down", "b_gate",     "b_up",      "b_down"};
  return role >= 0 && role <= HD_B_DOWN ? names[role] : "unknown";
}

bool per_layer(int32_t role) { return role >= HD_ATTN_NORM; }

struct Slot {  // where a tensor goes: exactly one of matrix, vector, bias_of is set
  Matrix* matrix = nullptr;
  const float** vector = nullptr;
  Matrix* bias_of = nullptr;
  int64_t rows = 0, cols = 0;
};

Slot find_slot(hd_model& m, int32_t role, int32_t layer) {
  const Config& c = m.config;
  Layer* l = per_layer(role) ? &m.layers[static_cast<size_t>(layer)] : nullptr;
  switch (role) {
    case HD_EMBED:
      return {.matrix = &m.embed, .rows = c.vocab, .cols = c.dim};
    case HD_HEAD:
      return {.matrix = &m.head, .rows = c.vocab, .cols = c.dim};
    case HD_FINAL_NORM:
      return {.vector = &m.final_norm, .rows = 1, .cols = c.dim};
    case HD_ATTN_NORM:
      return {.vector = &l->attn_norm, .rows = 1, .cols = c.dim};
    case HD_FFN_NORM:
      return {.vector = &l->ffn_norm, .rows = 1, .cols = c.dim};
    case HD_WQ:
      return {.matrix = &l->wq, .rows = c.q_dim(), .cols = c.dim};
    case HD_WK:
      return {.matrix = &l->wk, .rows = c.kv_dim(), .cols = c.dim};
    case HD_WV:
      return {.matrix = &l->wv, .rows = c.kv_dim(), .cols = c.dim};
    case HD_WO:
      return {.matrix = &l->wo, .rows = c.dim, .cols = c.q_dim()};
    case HD_W_GATE:
      return {.matrix = &l->gate, .rows = c.ffn_dim, .cols = c.dim};
    case HD_W_UP:
      return {.matrix = &l->up, .rows = c.ffn_dim, .cols = c.dim};
    case HD_W_DOWN:
      return {.matrix = &l->down, .rows = c.dim, .cols = c.ffn_dim};
    case HD_BQ:
      return {.bias_of = &l->wq, .rows = 1, .cols = c.q_dim()};
    case HD_BK:
      return {.bias_of = &l->wk, .rows = 1, .cols = c.kv_dim()};
    case HD_BV:
      return {.bias_of = &l->wv, .rows = 1, .cols = c.kv_dim()};
    case HD_BO:
      return {.bias_of = &l->wo, .rows = 1, .cols = c.dim};
    case HD_B_GATE:
      return {.bias_of = &l->gate, .rows = 1, .cols = c.ffn_dim};
    case HD_B_UP:
      return {.bias_of = &l->up, .rows = 1, .cols = c.ffn_dim};
    case HD_B_DOWN:
      return {.bias_of = &l->down, .rows = 1, .cols = c.dim};
    default:
      return {};
  }
}

hd_status check_config(const hd_config& c, hd_error* err) {
  const struct {
    const char* name;
    int64_t value, low, high;
  } limits[] = {
      {"n_layers", c.n_layers, 1, 4096},
      {"dim", c.dim, 8, 1 << 20},
      {"n_heads", c.n_heads, 1, 4096},
      {"n_kv_heads", c.n_kv_heads, 1, 4096},
      {"head_dim", c.head_dim, 8, 1024},
      {"ffn_dim", c.ffn_dim, 8, 1 << 22},
      {"vocab", c.vocab, 1, kMaxVocab},
      {"context", c.context, 1, 1 << 30},
      {"threads", c.threads, 0, 1024},
      {"kv_pages", c.kv_pages, 1, 1 << 28},
      {"compute", c.compute, 0, HD_DTYPE_FLOAT32},
  };
  for (const auto& l : limits)
    if (l.value < l.low || l.value > l.high)
      return fail(err, HD_ERR_ARGUMENT, "%s is %lld: must be between %lld and %lld", l.name,
                  static_cast<long long>(l.value), static_cast<long long>(l.low), static_cast<long long>(l.high));
  if (c.n_heads % c.n_kv_heads != 0)
    return fail(err, HD_ERR_ARGUMENT, "n_heads is %d: must be a multiple of n_kv_heads, %d", c.n_heads, c.n_kv_heads);
  if (c.head_dim % 8 != 0) return fail(err, HD_ERR_ARGUMENT, "head_dim is %d: must be a multiple of 8", c.head_dim);
  if (!(c.norm_eps >= 0) || !std::isfinite(c.norm_eps))
    return fail(err, HD_ERR_ARGUMENT, "norm_eps is %g: must be 0 or more", static_cast<double>(c.norm_eps));
  if (!c.rope_inv_freq || !c.layers) return fail(err, HD_ERR_ARGUMENT, "rope_inv_freq and layers must be given");
  for (int32_t i = 0; i < c.head_dim / 2; ++i)
    if (!std::isfinite(c.rope_inv_freq[i]))
      return fail(err, HD_ERR_ARGUMENT, "rope_inv_freq[%d] is not a finite number", i);
  return HD_OK;
}

}  // namespace

void FloatBuffer::reserve(int64_t tokens, int64_t width) {
  stride = pad_to(width, kLanes);
  const size_t need = static_cast<size_t>(pad_to(tokens, kTokenPad) * stride) + kAlign / sizeof(float);
  if (memory.size() < need) memory.assign(need, 0.0f);
  data = align<float>(memory.data());
}

void QuantizedBuffer::reserve(int64_t count, int64_t cols) {
  // Tiles read whole rows of 16 tokens, and only for many. An odd number of rows keeps units of the same tokens from
  // falling into the same cache sets.
  const int64_t rows = pad_to(count, kTokenPad) / kTokenPad;
  tokens = count <= 8 ? count : (rows | 1) * kTokenPad;
  const auto units = static_cast<size_t>(pad_to(cols, kUnit) / kUnit), n = static_cast<size_t>(tokens);
  const size_t need = units * n * (kUnit + kActivationFields * sizeof(float)) + 2 * kAlign;
  if (memory.size() < need) memory.assign(need, 0);
  q = align<int8_t>(memory.data());
  fields = align<float>(q + units * n * kUnit);
}

Activations QuantizedBuffer::view() const {
  Activations a;
  a.q = q;
  a.fields = fields;
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
               .layers = {c.layers, c.layers + c.n_layers},
               .float32 = c.compute == HD_DTYPE_FLOAT32,
               .kv_pages = c.kv_pages};
  m->kernels = kernels;
  m->layers.resize(static_cast<size_t>(c.n_layers));
  const int threads = c.threads;
  m->team = std::make_unique<ThreadTeam>(threads);
  m->kv_head_bytes = size_t{2} * static_cast<size_t>(c.head_dim) * HD_PAGE_TOKENS * (m->config.float32 ? 4 : 2);
  m->kv_layer_bytes = m->kv_head_bytes * static_cast<size_t>(c.n_kv_heads);
  m->kv_page_bytes = m->kv_layer_bytes * static_cast<size_t>(c.n_layers);
  m->kv_base = m->kv.allocate(m->kv_page_bytes * static_cast<size_t>(c.kv_pages));
  const auto n = static_cast<size_t>(threads);
  m->own_dim_in.resize(n);
  m->own_attn_in.resize(n);
  m->own_ffn_in.resize(n);
  m->own_normed.resize(n);
  m->attention_scratch.resize(n);
  m->matmul_scratch.resize(n);
  m->sample_scratch.resize(n);
  for (size_t i = 0; i < n; ++i) {
    m->own_dim_in[i].reserve(1, c.dim);
    m->own_attn_in[i].reserve(1, m->config.q_dim());
    m->own_ffn_in[i].reserve(1, c.ffn_dim);
    m->own_normed[i].reserve(1, c.dim);
    m->attention_scratch[i].reserve(1, static_cast<int64_t>(attention_scratch(c.head_dim)));
  }
  *out = m.release();
  return HD_OK;
}

hd_status add_tensor(hd_model& m, const hd_tensor& t, hd_error* err) {
  if (m.finished) return fail(err, HD_ERR_ARGUMENT, "the model is finished: no tensor can be added");
  if (t.role < 0 || t.role > HD_B_DOWN) return fail(err, HD_ERR_ARGUMENT, "role %d is unknown", t.role);
  if (per_layer(t.role) && (t.layer < 0 || t.layer >= m.config.n_layers))
    return fail(err, HD_ERR_ARGUMENT, "%s: layer %d is outside 0..%d", role_name(t.role), t.layer,
                m.config.n_layers - 1);
  const Slot slot = find_slot(m, t.role, t.layer);
  if (t.rows != slot.rows || t.cols != slot.cols)
    return fail(err, HD_ERR_FORMAT, "%s of layer %d is %lld x %lld: must be %lld x %lld", role_name(t.role), t.layer,
                static_cast<long long>(t.rows), static_cast<long long>(t.cols), static_cast<long long>(slot.rows),
                static_cast<long long>(slot.cols));
  const FormatInfo* format = nullptr;
  if (const hd_status s = check_storage(t.format, t.rows, t.cols, t.bytes, &format, err)) return s;
  if (t.data == nullptr) return fail(err, HD_ERR_ARGUMENT, "%s: data is null", role_name(t.role));
  const auto* data = static_cast<const uint8_t*>(t.data);
  if (t.row_map) {
    const int64_t mapped = slot.matrix ? t.rows : t.cols;
    for (int64_t i = 0; i < mapped; ++i)
      if (t.row_map[i] >= mapped)
        return fail(err, HD_ERR_ARGUMENT, "%s: row_map[%lld] is %u: the tensor has %lld rows", role_name(t.role),
                    static_cast<long long>(i), t.row_map[i], static_cast<long long>(mapped));
  }
  if (slot.matrix) {
    if (slot.matrix->data)
      return fail(err, HD_ERR_ARGUMENT, "%s of layer %d was given twice", role_name(t.role), t.layer);
    const float* bias = slot.matrix->bias;
    *slot.matrix = pack_matrix(*format, t.rows, t.cols, data, t.row_map, m.config.float32, m.weights, *m.team);
    slot.matrix->bias = bias;
    return HD_OK;
  }
  // A vector: expanded to float32 and padded to whole panels. A bias's row_map permutes its elements.
  const float** target = slot.vector ? slot.vector : &slot.bias_of->bias;
  if (*target) return fail(err, HD_ERR_ARGUMENT, "%s of layer %d was given twice", role_name(t.role), t.layer);
  std::vector<float> values(static_cast<size_t>(t.cols));
  format->expand(data, t.cols / format->block, values.data());
  float* out = m.weights.allocate_array<float>(static_cast<size_t>(pad_to(t.cols, kLanes)));
  for (int64_t i = 0; i < t.cols; ++i) out[i] = values[t.row_map ? t.row_map[i] : static_cast<size_t>(i)];
  *target = out;
  return HD_OK;
}

hd_status finish_model(hd_model& m, hd_error* err) {
  const auto missing = [&](const char* what, int32_t layer) {
    return fail(err, HD_ERR_ARGUMENT, "the tensor %s of layer %d is missing", what, layer);
  };
  if (!m.embed.data) return missing("embed", -1);
  if (!m.final_norm) return missing("final_norm", -1);
  for (int32_t i = 0; i < m.config.n_layers; ++i) {
    const Layer& l = m.layers[static_cast<size_t>(i)];
    if (!l.attn_norm) return missing("attn_norm", i);
    if (!l.ffn_norm) return missing("ffn_norm", i);
    const Matrix* const matrices[] = {&l.wq, &l.wk, &l.wv, &l.wo, &l.gate, &l.up, &l.down};
    const int32_t roles[] = {HD_WQ, HD_WK, HD_WV, HD_WO, HD_W_GATE, HD_W_UP, HD_W_DOWN};
    for (int j = 0; j < 7; ++j)
      if (!matrices[j]->data) return missing(role_name(roles[j]), i);
  }
  size_t scratch = m.kernels->matmul_scratch(m.head_matrix());
  for (const Layer& l : m.layers)
    for (const Matrix* w : {&l.wq, &l.wk, &l.wv, &l.wo, &l.gate, &l.up, &l.down}) {
      const size_t need = m.kernels->matmul_scratch(*w);
      scratch = need > scratch ? need : scratch;
    }
  for (auto& s : m.matmul_scratch) s.assign(scratch + kAlign, 0);
  m.finished = true;
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
  for (const auto* b : {&x, &normed, &q, &k, &v, &attn, &gate, &up, &logits, &outputs}) n += b->bytes();
  for (const auto* b : {&q_dim_in, &q_attn_in, &q_ffn_in}) n += b->bytes();
  for (const auto* list : {&own_dim_in, &own_attn_in, &own_ffn_in})
    for (const auto& b : *list) n += b.bytes();
  for (const auto* list : {&own_normed, &attention_scratch})
    for (const auto& b : *list) n += b.bytes();
  for (const auto& b : matmul_scratch) n += b.size();
  return n;
}
