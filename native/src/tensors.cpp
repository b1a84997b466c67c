// What tensors a model takes: each one's place and shape, packed as it comes, and the check that none is missing.
#include <algorithm>
#include <cstring>

#include "error.h"
#include "formats/registry.h"
#include "model.h"
#include "pack.h"

namespace herder {
namespace {

constexpr const char* kRoleNames[] = {
    "embed",  "head",   "final_norm",  "attn_norm", "wq",          "wk",          "wv",        "wo",         "bq",
    "bk",     "bv",     "bo",          "ffn_norm",  "w_gate",      "w_up",        "w_down",    "b_gate",     "b_up",
    "b_down", "router", "expert_gate", "expert_up", "expert_down", "shared_gate", "shared_up", "shared_down"};
constexpr int32_t kRoles = HD_SHARED_DOWN + 1;
static_assert(std::size(kRoleNames) == kRoles);

bool per_layer(int32_t role) { return role >= HD_ATTN_NORM; }
bool of_expert(int32_t role) { return role >= HD_EXPERT_GATE && role <= HD_EXPERT_DOWN; }

struct Slot {  // where a tensor goes: exactly one of matrix, vector, bias_of, expert is set; none: it has no place
  Matrix* matrix = nullptr;
  const float** vector = nullptr;
  Matrix* bias_of = nullptr;
  Expert* expert = nullptr;
  ExpertPart part{};
  int64_t rows = 0, cols = 0;
};

Slot feed_forward_slot(hd_model& m, int32_t role, Layer& l) {
  const Config& c = m.config;
  if (l.plan.experts) {
    switch (role) {
      case HD_ROUTER:
        return {.matrix = &l.router, .rows = c.n_experts, .cols = c.dim};
      case HD_SHARED_GATE:
        return {.matrix = &l.shared_gate, .rows = c.shared_ffn_dim, .cols = c.dim};
      case HD_SHARED_UP:
        return {.matrix = &l.shared_up, .rows = c.shared_ffn_dim, .cols = c.dim};
      case HD_SHARED_DOWN:
        return {.matrix = &l.shared_down, .rows = c.dim, .cols = c.shared_ffn_dim};
      default:
        return {};
    }
  }
  switch (role) {
    case HD_W_GATE:
      return {.matrix = &l.gate, .rows = c.ffn_dim, .cols = c.dim};
    case HD_W_UP:
      return {.matrix = &l.up, .rows = c.ffn_dim, .cols = c.dim};
    case HD_W_DOWN:
      return {.matrix = &l.down, .rows = c.dim, .cols = c.ffn_dim};
    case HD_B_GATE:
      return {.bias_of = &l.gate, .rows = 1, .cols = c.ffn_dim};
    case HD_B_UP:
      return {.bias_of = &l.up, .rows = 1, .cols = c.ffn_dim};
    case HD_B_DOWN:
      return {.bias_of = &l.down, .rows = 1, .cols = c.dim};
    default:
      return {};
  }
}

Slot find_slot(hd_model& m, const hd_tensor& t) {
  const Config& c = m.config;
  Layer* l = per_layer(t.role) ? &m.layers[static_cast<size_t>(t.layer)] : nullptr;
  switch (t.role) {
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
    case HD_BQ:
      return {.bias_of = &l->wq, .rows = 1, .cols = c.q_dim()};
    case HD_BK:
      return {.bias_of = &l->wk, .rows = 1, .cols = c.kv_dim()};
    case HD_BV:
      return {.bias_of = &l->wv, .rows = 1, .cols = c.kv_dim()};
    case HD_BO:
      return {.bias_of = &l->wo, .rows = 1, .cols = c.dim};
    default:
      break;
  }
  if (!of_expert(t.role)) return feed_forward_slot(m, t.role, *l);
  if (!l->plan.experts) return {};
  Slot slot{.expert = &m.experts.at(t.layer, t.expert), .part = static_cast<ExpertPart>(t.role - HD_EXPERT_GATE)};
  const bool down = slot.part == ExpertPart::kDown;
  slot.rows = down ? c.dim : c.expert_ffn_dim;
  slot.cols = down ? c.expert_ffn_dim : c.dim;
  return slot;
}

hd_status check_place(const hd_model& m, const hd_tensor& t, hd_error* err) {
  if (t.role < 0 || t.role >= kRoles) return fail(err, HD_ERR_ARGUMENT, "role %d is unknown", t.role);
  const char* name = kRoleNames[t.role];
  if (per_layer(t.role) && (t.layer < 0 || t.layer >= m.config.n_layers))
    return fail(err, HD_ERR_ARGUMENT, "%s: layer %d is outside 0..%d", name, t.layer, m.config.n_layers - 1);
  if (of_expert(t.role) && (t.expert < 0 || t.expert >= m.config.n_experts))
    return fail(err, HD_ERR_ARGUMENT, "%s of layer %d: expert %d is outside 0..%d", name, t.layer, t.expert,
                m.config.n_experts - 1);
  if (t.lazy && (!of_expert(t.role) || t.row_map))
    return fail(err, HD_ERR_ARGUMENT, "%s is lazy: only experts without a row_map may be", name);
  return HD_OK;
}

hd_status check_stored(const hd_tensor& t, const FormatInfo& format, hd_error* err) {
  const char* name = kRoleNames[t.role];
  if (t.data == nullptr) return fail(err, HD_ERR_ARGUMENT, "%s: data is null", name);
  if (t.turned != 0 && (format.bits != 0 || t.row_map || t.rows == 1 || t.turned < t.rows || t.turned > (1ll << 40)))
    return fail(err, HD_ERR_ARGUMENT,
                "%s: turned is %lld: must be 0, or for a float matrix without a row_map at least "
                "its %lld rows",
                name, static_cast<long long>(t.turned), static_cast<long long>(t.rows));
  if (!t.row_map) return HD_OK;
  const int64_t mapped = t.rows == 1 ? t.cols : t.rows;  // a bias's row_map permutes its elements
  for (int64_t i = 0; i < mapped; ++i)
    if (t.row_map[i] >= mapped)
      return fail(err, HD_ERR_ARGUMENT, "%s: row_map[%lld] is %u: the tensor has %lld rows", name,
                  static_cast<long long>(i), t.row_map[i], static_cast<long long>(mapped));
  return HD_OK;
}

// Bytes that are `w` packed already, or are to become it.
hd_status check_packed(const Matrix& w, const hd_tensor& t, const void* data, size_t bytes, hd_error* err) {
  const char* name = kRoleNames[t.role];
  if (t.rows == 1) return fail(err, HD_ERR_ARGUMENT, "%s has one row: only matrices are packed", name);
  if (bytes != packed_bytes(w))
    return fail(err, HD_ERR_ARGUMENT, "%s has %zu bytes: packed it takes %zu", name, bytes, packed_bytes(w));
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 64 != 0)
    return fail(err, HD_ERR_ARGUMENT, "%s: packed data must be given, aligned to 64 bytes", name);
  return HD_OK;
}

// A packed tensor is used where it lies.
hd_status take_packed(const hd_tensor& t, bool as_float, Matrix* w, hd_error* err) {
  if (t.row_map || t.turned || t.lazy)
    return fail(err, HD_ERR_ARGUMENT, "%s is packed: it takes no row_map, turned or lazy", kRoleNames[t.role]);
  Matrix planned;
  if (const hd_status s = plan_checked(t.format, t.rows, t.cols, as_float, &planned, err)) return s;
  if (const hd_status s = check_packed(planned, t, t.data, t.bytes, err)) return s;
  planned.bias = w->bias;
  place(planned, const_cast<uint8_t*>(static_cast<const uint8_t*>(t.data)));  // which nobody writes to from here on
  *w = planned;
  return HD_OK;
}

// Expanded to float32 and padded to whole panels.
const float* expand_vector(hd_model& m, const hd_tensor& t, const FormatInfo& format) {
  std::vector<float> values(static_cast<size_t>(t.cols));
  format.expand(static_cast<const uint8_t*>(t.data), t.cols / format.block, values.data());
  float* out = m.weights.allocate_array<float>(static_cast<size_t>(pad_to(t.cols, kLanes)));
  for (int64_t i = 0; i < t.cols; ++i) out[i] = values[t.row_map ? t.row_map[i] : static_cast<size_t>(i)];
  return out;
}

}  // namespace

hd_status add_tensor(hd_model& m, const hd_tensor& t, hd_error* err) {
  if (m.finished) return fail(err, HD_ERR_ARGUMENT, "the model is finished: no tensor can be added");
  if (const hd_status s = check_place(m, t, err)) return s;
  const char* name = kRoleNames[t.role];
  const Slot slot = find_slot(m, t);
  if (slot.rows == 0) return fail(err, HD_ERR_ARGUMENT, "layer %d has no %s: its plan says otherwise", t.layer, name);
  if (t.rows != slot.rows || t.cols != slot.cols)
    return fail(err, HD_ERR_FORMAT, "%s of layer %d is %lld x %lld: must be %lld x %lld", name, t.layer,
                static_cast<long long>(t.rows), static_cast<long long>(t.cols), static_cast<long long>(slot.rows),
                static_cast<long long>(slot.cols));
  const auto twice = [&] { return fail(err, HD_ERR_ARGUMENT, "%s of layer %d was given twice", name, t.layer); };
  const bool as_float = m.config.float32 || t.role == HD_ROUTER;
  if (t.packed) {
    if (slot.expert && slot.expert->known(static_cast<size_t>(slot.part))) return twice();
    Matrix* w = slot.expert ? &slot.expert->part[static_cast<size_t>(slot.part)] : slot.matrix;
    if (!w) return fail(err, HD_ERR_ARGUMENT, "%s is no matrix: it cannot be packed", name);
    return w->data ? twice() : take_packed(t, as_float, w, err);
  }
  const FormatInfo* format = nullptr;
  if (const hd_status s = check_storage(t.format, t.rows, t.cols, t.bytes, &format, err)) return s;
  if (const hd_status s = check_stored(t, *format, err)) return s;
  const Stored stored{format, static_cast<const uint8_t*>(t.data), t.row_map, t.turned};
  if (slot.expert) {
    const auto part = static_cast<size_t>(slot.part);
    if (slot.expert->known(part)) return twice();
    if (t.lazy) {
      m.experts.add_lazy(*slot.expert, slot.part, plan_matrix(*format, t.rows, t.cols, m.config.float32), stored);
    } else {
      slot.expert->part[part] = pack_matrix(stored, t.rows, t.cols, m.config.float32, m.weights, *m.team);
    }
    return HD_OK;
  }
  if (slot.matrix) {
    if (slot.matrix->data) return twice();
    const float* bias = slot.matrix->bias;
    *slot.matrix = pack_matrix(stored, t.rows, t.cols, as_float, m.weights, *m.team);
    slot.matrix->bias = bias;
    return HD_OK;
  }
  const float** target = slot.vector ? slot.vector : &slot.bias_of->bias;
  if (*target) return twice();
  *target = expand_vector(m, t, *format);
  return HD_OK;
}

hd_status pack_tensor(const hd_tensor& t, bool float32, int threads, uint8_t* out, size_t bytes, hd_error* err) {
  if (t.role < 0 || t.role >= kRoles) return fail(err, HD_ERR_ARGUMENT, "role %d is unknown", t.role);
  const FormatInfo* format = nullptr;
  if (const hd_status s = check_storage(t.format, t.rows, t.cols, t.bytes, &format, err)) return s;
  if (const hd_status s = check_stored(t, *format, err)) return s;
  Matrix w = plan_matrix(*format, t.rows, t.cols, float32 || t.role == HD_ROUTER);
  if (const hd_status s = check_packed(w, t, out, bytes, err)) return s;
  std::memset(out, 0, bytes);
  place(w, out);
  ThreadTeam team(threads);
  pack_panels({format, static_cast<const uint8_t*>(t.data), t.row_map, t.turned}, w, team);
  return HD_OK;
}

namespace {

// The matrices a layer must have, and what they are.
struct Required {
  const Matrix* w;
  int32_t role;
};

std::vector<Required> required_matrices(const Config& c, const Layer& l) {
  std::vector<Required> out = {{&l.wq, HD_WQ}, {&l.wk, HD_WK}, {&l.wv, HD_WV}, {&l.wo, HD_WO}};
  if (!l.plan.experts) {
    out.insert(out.end(), {{&l.gate, HD_W_GATE}, {&l.up, HD_W_UP}, {&l.down, HD_W_DOWN}});
  } else {
    out.push_back({&l.router, HD_ROUTER});
    if (c.shared_ffn_dim)
      out.insert(out.end(),
                 {{&l.shared_gate, HD_SHARED_GATE}, {&l.shared_up, HD_SHARED_UP}, {&l.shared_down, HD_SHARED_DOWN}});
  }
  return out;
}

}  // namespace

hd_status finish_model(hd_model& m, hd_error* err) {
  const auto missing = [&](int32_t role, int32_t layer) {
    return fail(err, HD_ERR_ARGUMENT, "the tensor %s of layer %d is missing", kRoleNames[role], layer);
  };
  if (!m.embed.data) return missing(HD_EMBED, -1);
  if (!m.final_norm) return missing(HD_FINAL_NORM, -1);
  size_t scratch = 0;
  const auto grow = [&](const Matrix& w) {
    scratch = std::max(scratch, m.kernels->matmul_scratch(w));
    m.inputs |= w.prepared();
  };
  grow(m.head_matrix());
  for (int32_t i = 0; i < m.config.n_layers; ++i) {
    Layer& l = m.layers[static_cast<size_t>(i)];
    if (!l.attn_norm) return missing(HD_ATTN_NORM, i);
    if (!l.ffn_norm) return missing(HD_FFN_NORM, i);
    for (const Required& r : required_matrices(m.config, l)) {
      if (!r.w->data) return missing(r.role, i);
      grow(*r.w);
    }
    if (!l.plan.experts) continue;
    l.expert_inputs = l.shared_gate.prepared() | l.shared_up.prepared();  // none, if there is no shared expert
    l.down_inputs = l.shared_down.prepared();
    for (int32_t e = 0; e < m.config.n_experts; ++e) {
      const Expert& expert = m.experts.at(i, e);
      for (size_t p = 0; p < 3; ++p) {
        if (!expert.known(p))
          return fail(err, HD_ERR_ARGUMENT, "the tensor %s of layer %d, expert %d, is missing",
                      kRoleNames[HD_EXPERT_GATE + static_cast<int32_t>(p)], i, e);
        grow(expert.part[p]);
      }
      l.expert_inputs |= expert[ExpertPart::kGate].prepared() | expert[ExpertPart::kUp].prepared();
      l.down_inputs |= expert[ExpertPart::kDown].prepared();
    }
  }
  for (auto& s : m.matmul_scratch) s = Mapping(scratch);
  m.experts.finish(m.team->size());
  m.finished = true;
  return HD_OK;
}

}  // namespace herder
