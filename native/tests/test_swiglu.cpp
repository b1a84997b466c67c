// Kernels::swiglu against what it stands for: two products, silu_mul and round_bf16 of the same table.
#include <algorithm>

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

// Matrices that may differ in what their layout leaves open: zero, table, row scales.
struct Kind {
  int32_t gate, up;
};
constexpr Kind kKinds[] = {{HD_Q4_0, HD_Q4_0},     {HD_BF16, HD_BF16}, {HD_Q5_1, HD_Q5_1}, {HD_Q2_K, HD_Q2_K},
                           {HD_IQ4_NL, HD_MXFP4},  {HD_Q8_0, HD_Q5_0}, {HD_Q4_1, HD_Q4_K}, {HD_Q3_K, HD_Q3_K},
                           {HD_IQ4_XS, HD_IQ4_XS}, {HD_Q6_K, HD_Q6_K}};

class Network {
 public:
  Network(const Kind& kind, int64_t rows, int64_t cols, int64_t tokens) {
    Random random{static_cast<uint64_t>(kind.gate * 1000 + rows)};
    gate_ = matrix(random, kind.gate, rows, cols);
    up_ = matrix(random, kind.up, rows, cols);
    bias_ = normals(random, rows);
    for (size_t row = 3; row < bias_.size(); row += 7)
      bias_[row] = -30 - static_cast<float>(row % 5) * 10;  // tiny silu
    bias_.resize(static_cast<size_t>(gate_.panels * kLanes));
    gate_.bias = bias_.data();
    x_ = normals(random, tokens * cols);
    if (rows % kLanes == 0 && tokens > 3) x_[0] = kInfinity, x_[static_cast<size_t>(3 * cols - 1)] = kNan;
    std::snprintf(name_, sizeof name_, "%s and %s", format_info(kind.gate)->name, format_info(kind.up)->name);
  }

  int64_t panels() const { return gate_.panels; }

  // The outputs go behind `first` tokens of a buffer, as the inputs lie in theirs.
  void check(const Kernels& kernels, int64_t first, int64_t tokens, int64_t begin, int64_t end) const {
    QuantizedBuffer buffer, plain, fused;
    buffer.reserve(kernels, first + tokens, gate_.cols, kRounded);
    for (int64_t t = 0; t < tokens; ++t)
      buffer.prepare(kernels, x_.data() + t * gate_.cols, 0, gate_.cols, first + t, kRounded);
    const GuardedCopy inputs(buffer);
    const Activations a = from_token(inputs.view(), first, true);
    const Guarded scratch(std::max(kernels.matmul_scratch(gate_), kernels.matmul_scratch(up_)));

    const int64_t width = gate_.panels * kLanes;
    std::vector<float> gate(static_cast<size_t>(tokens * width)), up(gate.size());
    kernels.matmul(gate_, a, tokens, 0, gate_.panels, Store::kSet, gate.data(), width, scratch.data());
    kernels.matmul(up_, a, tokens, 0, gate_.panels, Store::kSet, up.data(), width, scratch.data());
    kernels.silu_mul(gate.data(), up.data(), tokens * width);
    for (QuantizedBuffer* out : {&plain, &fused}) out->reserve(kernels, first + tokens, gate_.rows, kRounded);
    for (int64_t t = 0; t < tokens; ++t)
      plain.prepare(kernels, gate.data() + t * width, 0, gate_.rows, first + t, kRounded);

    // Panels outside begin .. end keep what was there; the last brings what fills up the unit.
    const int64_t filled = pad_to(gate_.rows, kUnit) / kLanes, last = end == gate_.panels ? filled : end;
    std::memset(fused.memory.data(), 0x3f, fused.bytes());
    kernels.swiglu(gate_, up_, a, tokens, begin, end, fused.rounded + first * fused.rounded_bytes, fused.tokens,
                   scratch.data());
    std::vector<float> expected, actual;
    for (int64_t panel = 0; panel < filled; ++panel) {
      for (int64_t t = 0; t < fused.tokens; ++t) {
        const bool written = panel >= begin && panel < last && t >= first && t < first + tokens;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          expected.push_back(written ? value(plain, panel, t, lane) : untouched(fused));
          actual.push_back(value(fused, panel, t, lane));
        }
      }
    }
    char what[160];
    std::snprintf(what, sizeof what, "%s, %d rows, %d tokens from %d on, panels %d..%d", name_,
                  static_cast<int>(gate_.rows), static_cast<int>(tokens), static_cast<int>(first),
                  static_cast<int>(begin), static_cast<int>(end));
    check_same(kernels, what, expected, actual);
    const uint8_t *from = fused.memory.data(), *behind = place(fused, filled, 0);
    CHECK(std::all_of(from, const_cast<const uint8_t*>(fused.rounded), [](uint8_t b) { return b == 0x3f; }));
    CHECK(std::all_of(behind, from + fused.bytes(), [](uint8_t b) { return b == 0x3f; }));
  }

 private:
  Matrix matrix(Random& random, int32_t format, int64_t rows, int64_t cols) {
    const std::vector<uint8_t> data = random_tensor(random, *format_info(format), rows, cols);
    ThreadTeam team(1);
    return pack_matrix({format_info(format), data.data(), nullptr, 0}, rows, cols, false, arena_, team);
  }

  static const uint8_t* place(const QuantizedBuffer& buffer, int64_t panel, int64_t token) {
    const int64_t block = panel * kLanes / kRoundedBlock, half = panel % 2;
    return buffer.rounded + (block * buffer.tokens + token) * buffer.rounded_bytes + half * buffer.rounded_bytes / 2;
  }
  static float load(const uint8_t* at, int64_t bytes) {
    return bytes == 2 ? bf16_to_f32(load_u16(at)) : std::bit_cast<float>(load_u32(at));
  }
  static float value(const QuantizedBuffer& buffer, int64_t panel, int64_t token, int64_t lane) {
    const int64_t bytes = buffer.rounded_bytes / kRoundedBlock;
    return load(place(buffer, panel, token) + lane * bytes, bytes);
  }
  static float untouched(const QuantizedBuffer& buffer) {
    constexpr uint8_t kBytes[4] = {0x3f, 0x3f, 0x3f, 0x3f};
    return load(kBytes, buffer.rounded_bytes / kRoundedBlock);
  }

  Arena arena_;
  Matrix gate_, up_;
  std::vector<float> bias_, x_;
  char name_[64];
};

template <class Body>
void each_table(Body body) {
  bool any = false;
  for (const Kernels* kernels : usable_kernels()) {
    if (!kernels->swiglu) continue;
    any = true;
    body(*kernels);
  }
  if (!any) std::puts("     (skipped: only AMX has this)");
}

}  // namespace

TEST(swiglu) {
  each_table([](const Kernels& kernels) {
    for (const Kind& kind : kKinds) {
      for (const int64_t rows : {192, 200, 129}) {  // whole units; 3 panels fill up the last; 3, and a lone row
        const Network network(kind, rows, 256, 67);
        for (int64_t tokens = 1; tokens <= 67; tokens += kAll || tokens == 66 ? 1 : 13) {
          network.check(kernels, 0, tokens, 0, network.panels());
          if (tokens % 4 == 1) network.check(kernels, tokens % 8 * 3, tokens, tokens % 3, network.panels() - 1);
          if (tokens % 4 == 3) network.check(kernels, 1, tokens, network.panels() - 1, network.panels());
        }
      }
      if (!kAll && kind.gate == HD_Q2_K) break;
    }
  });
}

// More tokens, panels and inputs than tiles take at a time.
TEST(large_swiglu) {
  each_table([](const Kernels& kernels) {
    for (const Kind& kind : {Kind{HD_Q4_0, HD_Q4_0}, {HD_BF16, HD_BF16}, {HD_Q8_0, HD_Q5_0}}) {
      const Network network(kind, 330, 1376, 530);
      network.check(kernels, 0, 530, 0, network.panels());
      network.check(kernels, 7, 523, 2, 19);
      if (!kAll) break;
    }
  });
}

TEST_MAIN
