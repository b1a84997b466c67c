// Matrix products of every table of kernels that this CPU can run, against a scalar twin written from the formulas of
// matmul_integer.h, matmul_bf16.h and bf16_panel.h.
#include <algorithm>

#include "arena.h"
#include "formats/block.h"
#include "guarded.h"
#include "model.h"
#include "pack.h"
#include "pass.h"
#include "tables.h"
#include "tiny_model.h"

using namespace herder;
using namespace herder::test;

namespace {

constexpr int64_t kMostTokens = 67;

struct Kind {
  const char* name;
  Layout layout;
  int32_t group;
  bool has_min;
  int32_t zero, top;  // codes are 0..top; code - zero fits int8
};
constexpr Kind kKinds[] = {
    {"4-bit, 32", Layout::kNibble, 32, false, 8, 15},
    {"4-bit, 32, minima", Layout::kNibble, 32, true, 0, 15},
    {"4-bit, 16", Layout::kNibble, 16, false, 4, 15},
    {"4-bit, 16, minima", Layout::kNibble, 16, true, 0, 15},
    {"table", Layout::kNibbleTable, 32, false, 128, 15},
    {"8-bit, 32", Layout::kByte, 32, false, 128, 255},
    {"8-bit, 32, zero 16", Layout::kByte, 32, false, 16, 31},
    {"8-bit, 32, minima", Layout::kByte, 32, true, 0, 127},
    {"float32", Layout::kF32, 0, false, 0, 0},
    {"float16", Layout::kF16, 0, false, 0, 0},
    {"bfloat16", Layout::kBF16, 0, false, 0, 0},
};

struct Product {
  static constexpr int64_t kPanels = 7;

  Arena arena;
  Guarded memory;
  Matrix w;
  bool round;  // integer panels as bfloat16
  std::vector<float> bias;
  std::vector<float> x, before, expected_set, expected_add;  // of kMostTokens tokens

  Product(const Kind& kind, int64_t cols, uint64_t seed, bool scaled, bool rounded) : round(rounded) {
    Random random{seed};
    w.layout = kind.layout;
    w.group = kind.group;
    w.has_min = kind.has_min;
    w.zero = kind.zero;
    for (auto& level : w.table) level = static_cast<int8_t>(random.next());
    w.table[0] = -128;
    w.table[15] = 127;
    w.rows = kPanels * kLanes - 5;
    w.cols = cols;
    w.panels = kPanels;
    w.padded_cols = w.integer() ? pad_to(cols, kUnit) : brain() ? pad_to(cols, kRoundedBlock) : cols;
    const size_t float_bytes = static_cast<size_t>(w.padded_cols) * kLanes * (w.layout == Layout::kF32 ? 4 : 2);
    w.panel_bytes = w.integer() ? static_cast<size_t>(w.padded_cols / kUnit) * w.unit_bytes() : float_bytes;
    memory = Guarded(kPanels * w.panel_bytes);
    w.data = memory.data();
    w.integer() ? fill_integer(random, kind.top) : fill_float(random);
    if (w.integer() && scaled) {
      w.row_scale = arena.allocate_array<float>(kPanels * kLanes);
      for (int i = 0; i < kPanels * kLanes; ++i) w.row_scale[i] = std::ldexp(1.0f, random.below(20) - 10);
    }
    bias = normals(random, kPanels * kLanes);
    if (scaled) w.bias = bias.data();
    x = normals(random, kMostTokens * cols);
    for (int64_t t = 0; t < kMostTokens; ++t) {
      float* row = x.data() + t * cols;
      if (t % 5 == 1)  // as large as bytes get, and ties of the rounding
        for (int64_t k = 0; k < cols; ++k)
          row[k] = random.below(3) ? std::copysign(127.0f, row[k]) : std::floor(row[k] * 40) + 0.5f;
      if (t % 5 == 2) std::fill(row, row + std::min<int64_t>(cols, 32), t % 2 ? 1e-35f : 0.0f);
      if (t % 5 == 3)
        for (int64_t k = 0; k < cols; ++k) row[k] *= 0x1p-50f;
      if (t == 8) row[cols - 1] = kNan;
      if (t == 13) row[0] = -kInfinity;
    }
    before = normals(random, kMostTokens * kPanels * kLanes);
    for (int64_t t = 0; t < kMostTokens; ++t) expect(t);
  }

  void fill_integer(Random& random, int32_t top) {
    const size_t scales = w.unit_scale_bytes() / 2;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      for (int64_t u = 0; u < w.padded_cols / kUnit; ++u) {
        uint8_t* unit = w.data + static_cast<size_t>(panel) * w.panel_bytes + static_cast<size_t>(u) * w.unit_bytes();
        for (size_t i = 0; i < scales; ++i) {
          uint16_t scale = f32_to_f16(random.uniform(-0.02f, 0.02f));
          if (random.below(16) == 0) scale &= 0x83ff;  // subnormal
          if (panel == 5 && i % kLanes == 3) scale = random.below(2) ? uint16_t{0x7c00} : uint16_t{0x7e01};  // damaged
          std::memcpy(unit + 2 * i, &scale, 2);
        }
        const auto code = [&] { return panel == 1 ? top : panel == 2 ? 0 : random.below(top + 1); };
        for (size_t i = 0; i < w.unit_code_bytes(); ++i)
          unit[2 * scales + i] = static_cast<uint8_t>(w.layout == Layout::kByte ? code() : code() | code() << 4);
      }
    }
  }

  bool brain() const { return w.layout == Layout::kBF16; }

  // Where the weight lies: bfloat16 in pairs of inputs.
  uint8_t* weight_of(int64_t row, int64_t k) const {
    const int64_t lane = row % kLanes, at = brain() ? (k / 2 * kLanes + lane) * 2 + k % 2 : k * kLanes + lane;
    return w.data + static_cast<size_t>(row / kLanes) * w.panel_bytes + at * (w.layout == Layout::kF32 ? 4 : 2);
  }

  void fill_float(Random& random) {
    for (int64_t row = 0; row < kPanels * kLanes; ++row) {
      for (int64_t k = 0; k < w.cols; ++k) {
        float value = random.normal() * (random.below(9) ? 0.1f : 1e-6f);
        if (brain() && row == 9) value *= 0x1p-50f;  // as small as weights get: sums on the way to subnormal numbers
        if (row == 3 && k == 4) value = kInfinity;
        const uint16_t word = w.layout == Layout::kF16 ? f32_to_f16(value) : keep_bf16(f32_to_bf16(value));
        w.layout == Layout::kF32 ? std::memcpy(weight_of(row, k), &value, 4) : std::memcpy(weight_of(row, k), &word, 2);
      }
    }
  }

  int level(int64_t row, int64_t k) const {
    const int64_t g = k % kUnit / w.group, quad = k % w.group / 4, quads = w.group / 4, lane = row % kLanes;
    const uint8_t* codes = unit_of(row, k) + w.unit_scale_bytes();
    if (w.layout == Layout::kByte) return codes[(g * quads + quad) * 64 + lane * 4 + k % 4] - w.zero;
    const uint8_t both = codes[(g * quads / 2 + quad % (quads / 2)) * 64 + lane * 4 + k % 4];
    const int code = quad < quads / 2 ? both & 15 : both >> 4;
    return w.layout == Layout::kNibbleTable ? w.table[code] : code - w.zero;
  }

  const uint8_t* unit_of(int64_t row, int64_t k) const {
    return w.data + static_cast<size_t>(row / kLanes) * w.panel_bytes + static_cast<size_t>(k / kUnit) * w.unit_bytes();
  }

  float integer_result(int64_t row, const std::vector<int32_t>& q, const std::vector<float>& scales) const {
    float result = 0;
    for (int64_t k = 0; k < w.padded_cols; k += w.group) {
      int32_t dot = 0, sum = 0;
      for (int64_t i = k; i < k + w.group; ++i) {
        dot += level(row, i) * q[static_cast<size_t>(i)];
        sum += q[static_cast<size_t>(i)];
      }
      const float activation_scale = scales[static_cast<size_t>(k / kActivationGroup)];
      const uint8_t* scale = unit_of(row, k) + (k % kUnit / w.group * kLanes + row % kLanes) * 2;
      result = std::fma(static_cast<float>(dot) * activation_scale, load_f16(scale), result);
      const uint8_t* minimum = scale + w.groups_per_unit() * kLanes * 2;
      if (w.has_min) result = std::fma(static_cast<float>(sum) * activation_scale, load_f16(minimum), result);
    }
    return result;
  }

  float float_result(int64_t row, const float* token) const {
    float result = 0;
    for (int64_t k = 0; k < w.cols; ++k) {
      const uint8_t* at = weight_of(row, k);
      const float weight = w.layout == Layout::kF32 ? std::bit_cast<float>(load_u32(at)) : load_f16(at);
      result = std::fma(weight, token[k], result);
    }
    return result;
  }

  // As matmul_bf16.h writes the sum and bf16_panel.h the weight.
  float bfloat_result(int64_t row, const float* token) const {
    const auto weight = [&](int64_t k) {
      if (!w.integer()) return bf16_to_f32(load_u16(weight_of(row, k)));
      const uint8_t* scale = unit_of(row, k) + (k % kUnit / w.group * kLanes + row % kLanes) * 2;
      float value = load_f16(scale) * static_cast<float>(level(row, k));
      if (w.has_min) value += load_f16(scale + w.groups_per_unit() * kLanes * 2);
      return bf16_to_f32(f32_to_bf16(value));
    };
    float result = 0;
    for (int64_t block = 0; block < w.padded_cols; block += kRoundedBlock) {
      float chain[2] = {};
      for (int64_t k = block; k < block + kRoundedBlock; ++k) {
        const float input = k < w.cols ? bf16_to_f32(keep_bf16(f32_to_bf16(token[k]))) : 0.0f;
        chain[k % 2] = std::fma(weight(k), input, chain[k % 2]);
      }
      result += chain[0] + chain[1];
    }
    return result;
  }

  // Symmetric int8, one scale for 32 inputs (elementwise.h), then the sum as matmul_integer.h writes it.
  void expect(int64_t t) {
    const float* token = x.data() + t * w.cols;
    std::vector<int32_t> q(static_cast<size_t>(w.padded_cols));
    std::vector<float> scales;
    for (int64_t k = 0; k < w.padded_cols && w.integer() && !round; k += kActivationGroup) {
      float largest = 0;
      bool finite = true;
      const int64_t end = std::min(k + kActivationGroup, w.cols);
      for (int64_t i = k; i < end; ++i) {
        largest = std::max(largest, std::fabs(token[i]));
        finite = finite && std::isfinite(token[i]);
      }
      const bool counts = finite && largest > 1e-30f;
      scales.push_back(!finite ? kNan : counts ? largest / 127.0f : 0.0f);
      for (int64_t i = k; i < end && counts; ++i)
        q[static_cast<size_t>(i)] = static_cast<int32_t>(std::nearbyint(token[i] * (127.0f / largest)));
    }
    for (int64_t row = 0; row < kPanels * kLanes; ++row) {
      float result = round || brain() ? bfloat_result(row, token)
                     : w.integer()    ? integer_result(row, q, scales)
                                      : float_result(row, token);
      if (w.row_scale) result *= w.row_scale[row];
      if (w.bias) result += w.bias[row];
      expected_set.push_back(result);
      expected_add.push_back(before[static_cast<size_t>(t * kPanels * kLanes + row)] + result);
    }
  }

  // The tokens lie behind `first` others, as those of a batch do that are not rounded.
  void check(const Kernels& kernels, const char* name, int64_t first, int64_t tokens, int64_t begin, int64_t end,
             Store store) const {
    const uint32_t reads = round ? uint32_t{kRounded} : w.prepared();
    QuantizedBuffer buffer;
    buffer.reserve(kernels, first + tokens, w.cols, reads);
    for (int64_t t = 0; t < tokens; ++t) buffer.prepare(kernels, x.data() + t * w.cols, 0, w.cols, first + t, reads);
    const GuardedCopy copy(buffer);
    Activations a = from_token(copy.view(), first, round);
    a.x = x.data();
    a.stride = w.cols;
    constexpr int64_t kRows = kPanels * kLanes;
    std::vector<float> out = before, expected = before;  // what lies outside is not touched
    const std::vector<float>& all = store == Store::kSet ? expected_set : expected_add;
    for (int64_t t = 0; t < tokens; ++t)
      std::copy(all.begin() + t * kRows + begin * kLanes, all.begin() + t * kRows + end * kLanes,
                expected.begin() + t * kRows + begin * kLanes);
    const Guarded scratch(kernels.matmul_scratch(w));
    kernels.matmul(w, a, tokens, begin, end, store, out.data(), kRows, scratch.data());
    char what[96];
    std::snprintf(what, sizeof what, "%s%s, %d inputs, %d tokens from %d on", name, round ? ", rounded" : "",
                  static_cast<int>(w.cols), static_cast<int>(tokens), static_cast<int>(first));
    check_same(kernels, what, expected, out);
  }
};

void check_products(const Kind& kind, int64_t cols, uint64_t seed, bool round) {
  const Product product(kind, cols, seed, cols != 64, round);
  for (const Kernels* kernels : usable_kernels()) {
    for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 25, 32, 33, 67}) {
      if (!kAll && tokens % 4 != 1 && tokens != 67) continue;
      product.check(*kernels, kind.name, 0, tokens, 0, Product::kPanels, Store::kSet);
      product.check(*kernels, kind.name, tokens % 2 ? 15 : 3, tokens, 1, 6, Store::kAdd);
    }
  }
}

// More tokens, panels and inputs than tiles take at a time, rounded or not.
void check_large_products(bool round) {
  constexpr int64_t kTokens = 530, kPanels = 20, kRows = kPanels * kLanes - 7;
  for (const auto& [format, cols] : {std::pair{HD_BF16, 1370}, {HD_Q4_0, 1376}, {HD_Q5_1, 1312}, {HD_Q3_K, 1280}}) {
    if (format == (round ? HD_Q3_K : HD_BF16) || (!kAll && format != HD_Q4_0)) continue;
    Random random{27};
    const std::vector<uint8_t> data = random_tensor(random, *format_info(format), kRows, cols);
    Arena arena;
    ThreadTeam team(1);
    const Matrix w = pack_matrix({format_info(format), data.data(), nullptr, 0}, kRows, cols, false, arena, team);
    const std::vector<float> x = normals(random, kTokens * cols);
    const auto product = [&](const Kernels& kernels) {
      QuantizedBuffer buffer;
      const uint32_t reads = round ? kRounded : kQuantized;
      buffer.reserve(kernels, kTokens, cols, reads);
      for (int64_t t = 0; t < kTokens; ++t) buffer.prepare(kernels, x.data() + t * cols, 0, cols, t, reads);
      std::vector<float> out(kTokens * kPanels * kLanes);
      Arena memory;
      kernels.matmul(w, from_token(buffer.view(), 0, round), kTokens, 1, kPanels, Store::kSet, out.data(),
                     kPanels * kLanes, memory.allocate(kernels.matmul_scratch(w)));
      return out;
    };
    const auto tables = usable_kernels();
    const Kernels* twin = kAll ? kernels_portable() : tables.front();  // half a minute under a sanitizer
    const std::vector<float> expected = product(*twin);
    for (const Kernels* kernels : tables)
      if (kernels != twin && kernels != kernels_portable())
        check_same(*kernels, format_info(format)->name, expected, product(*kernels));
  }
}

}  // namespace

TEST(products) {
  uint64_t seed = 0;
  for (const Kind& kind : kKinds) {
    for (const int64_t cols : {64, 160, 37, 576}) {
      if (kind.group != 0 ? cols % kind.group != 0 : cols == 576 && kind.layout != Layout::kBF16) continue;
      if (!kAll && cols == 576) continue;
      check_products(kind, cols, ++seed, false);
      if (kind.group != 0) check_products(kind, cols, seed, true);
    }
  }
}

TEST(large_products) { check_large_products(false); }
TEST(large_rounded_products) { check_large_products(true); }

TEST(every_half_and_bfloat_weight) {
  for (const int32_t format : {HD_F16, HD_BF16}) {
    std::vector<uint16_t> words(65536);
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint16_t>(i);
    const Stored stored{format_info(format), reinterpret_cast<const uint8_t*>(words.data()), nullptr, 0};
    Arena arena;
    ThreadTeam team(1);
    const Matrix w = pack_matrix(stored, 65536, 1, false, arena, team);
    std::vector<float> expected;
    for (const uint16_t word : words) {
      const float value = format == HD_F16 ? f16_to_f32(word) : bf16_to_f32(word);
      expected.push_back(format == HD_BF16 && std::fabs(value) < 0x1p-56f ? 0.0f : value + 0.0f);
    }
    for (const Kernels* kernels : usable_kernels()) {
      const float one = 1;
      QuantizedBuffer buffer;
      buffer.reserve(*kernels, 1, 1, w.prepared());
      buffer.prepare(*kernels, &one, 0, 1, 0, w.prepared());
      Activations a = buffer.view();
      a.x = &one;
      a.stride = 1;
      std::vector<float> out(words.size());
      Arena memory;
      kernels->matmul(w, a, 1, 0, w.panels, Store::kSet, out.data(), 65536,
                      memory.allocate(kernels->matmul_scratch(w)));
      check_same(*kernels, format == HD_F16 ? "float16" : "bfloat16", expected, out);
    }
  }
}

TEST_MAIN
