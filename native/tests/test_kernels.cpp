// Every table of kernels that this CPU can run gives the same bits as the portable one: norms, quantization, rotation,
// attention. Products have a file of their own.
#include <algorithm>
#include <array>

#include "arena.h"
#include "formats/block.h"
#include "model.h"
#include "tables.h"

using namespace herder;
using namespace herder::test;

TEST(quantized_rows) {
  Random random{21};
  for (const int64_t n : {1, 15, 16, 17, 31, 32, 33, 64, 100, 576}) {
    for (int round = 0; round < 20; ++round) {
      std::vector<float> x = normals(random, n);
      for (float& value : x) value *= std::ldexp(1.0f, 8 * round - 100);
      if (round % 4 == 1)
        for (float& value : x) value = 0.5f * static_cast<float>(random.below(509) - 254);  // ties
      if (round % 4 == 3) x[random.next() % x.size()] = kEdges[random.next() % std::size(kEdges)];
      check_tables("quantize", [&](const Kernels& kernels) {
        QuantizedBuffer buffer;
        buffer.reserve(kernels, 1, n, kQuantized);
        buffer.prepare(kernels, x.data(), 0, n, 0, kQuantized);
        const Activations a = buffer.view();
        const auto units = pad_to(n, kUnit) / kUnit;
        std::vector<float> all(a.q, a.q + units * kUnit);
        all.insert(all.end(), a.fields, a.fields + units * kActivationFields);
        return all;
      });
    }
  }
}

TEST(rounded_rows) {
  Random random{26};
  for (const int64_t n : {1, 31, 32, 33, 64, 576}) {
    for (int round = 0; round < 20; ++round) {
      std::vector<float> x = normals(random, n);
      for (float& value : x) value *= std::ldexp(1.0f, 8 * round - 100);
      if (round % 2)
        for (float& value : x) value = std::bit_cast<float>(static_cast<uint32_t>(random.next()));
      if (round % 4 == 2)  // ties
        for (float& value : x) value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff8000u);
      x[random.next() % x.size()] = kEdges[random.next() % std::size(kEdges)];
      const int64_t padded = pad_to(n, kRoundedBlock);
      std::vector<float> expected(static_cast<size_t>(padded));
      for (size_t i = 0; i < x.size(); ++i) {
        const float value = bf16_to_f32(f32_to_bf16(x[i]));
        expected[i] = std::fabs(value) < 0x1p-56f ? 0.0f : value;
      }
      for (const Kernels* kernels : usable_kernels()) {
        QuantizedBuffer buffer;
        buffer.reserve(*kernels, 1, n, kRounded);
        buffer.prepare(*kernels, x.data(), 0, n, 0, kRounded);
        std::vector<float> actual;
        for (int64_t i = 0; i < padded; ++i)
          actual.push_back(kernels->rounded_bytes == 4 ? std::bit_cast<float>(load_u32(buffer.rounded + 4 * i))
                                                       : bf16_to_f32(load_u16(buffer.rounded + 2 * i)));
        check_same(*kernels, "round_bf16", expected, actual);
      }
    }
  }
}

TEST(elementwise) {
  Random random{22};
  for (const int64_t n : {1, 7, 16, 17, 63, 64, 576}) {
    for (int round = 0; round < 8; ++round) {
      std::vector<float> x = normals(random, n), y = normals(random, n);
      for (float& value : x) value *= std::ldexp(1.0f, 6 * round - 24);
      if (round == 7) x[static_cast<size_t>(n / 2)] = kInfinity;
      if (round == 6) y[static_cast<size_t>(n / 3)] = kNan;
      check_tables("rms_norm", [&](const Kernels& kernels) {
        std::vector<float> out(x.size() + 1, -7.0f);
        kernels.rms_norm(x.data(), y.data(), n, 1e-5f, out.data());
        return out;
      });
      check_tables("add", [&](const Kernels& kernels) {
        std::vector<float> out = x;
        kernels.add(out.data(), y.data(), n);
        return out;
      });
      check_tables("add_scaled", [&](const Kernels& kernels) {
        std::vector<float> out = x;
        kernels.add_scaled(out.data(), y.data(), 0.3f, n);
        return out;
      });
    }
  }
}

TEST(silu) {
  Random random{23};
  std::vector<float> gate(std::begin(kEdges), std::end(kEdges));
  while (gate.size() < 8192) gate.push_back(random.uniform(-110, 110));
  while (gate.size() < 16384) gate.push_back(random.normal());
  while (gate.size() < 32768) gate.push_back(std::bit_cast<float>(static_cast<uint32_t>(random.next())));
  const std::vector<float> up = normals(random, static_cast<int64_t>(gate.size()));
  check_tables("silu_mul", [&](const Kernels& kernels) {
    std::vector<float> out = gate;
    kernels.silu_mul(out.data(), up.data(), static_cast<int64_t>(out.size()));
    return out;
  });
}

TEST(rope) {
  Random random{24};
  for (const int32_t half : {1, 4, 8, 15, 16, 20, 32, 40, 64}) {
    const std::vector<float> head = normals(random, 2 * half), cosine = normals(random, half),
                             sine = normals(random, half);
    check_tables("rope", [&](const Kernels& kernels) {
      std::vector<float> out = head;
      kernels.rope(out.data(), cosine.data(), sine.data(), half);
      return out;
    });
  }
}

TEST(reading) {
  Random random{25};
  const std::vector<uint8_t> data = random.bytes<uint8_t>(4096);
  check_tables("read_pass", [&](const Kernels& kernels) {
    CHECK(kernels.int8_peak(1e-5) > 0 && kernels.f32_peak(1e-5) > 0);
    return std::vector<float>{static_cast<float>(kernels.read_pass(data.data(), data.size()))};
  });
}

// Attention -----------------------------------------------------------------------------------------------------------

namespace {

// Keys and values of one sequence in pages of two heads, of which the second is used.
struct Cache {
  int32_t head_dim;
  bool half;
  size_t head_bytes;
  std::vector<int32_t> pages;
  std::vector<uint8_t> memory;

  Cache(const Kernels& kernels, int32_t dim, bool is_half, int32_t length, const std::vector<float>& k,
        const std::vector<float>& v)
      : head_dim(dim), half(is_half) {
    head_bytes = kv_head_bytes(dim, half);
    const int32_t n = (length + HD_PAGE_TOKENS - 1) / HD_PAGE_TOKENS;
    for (int32_t i = 0; i < n; ++i) pages.push_back((i * 7 + 3) % n);  // n is never a multiple of 7
    memory.resize(static_cast<size_t>(n) * 2 * head_bytes);
    for (int32_t i = 0; i < length; ++i) {
      const auto page = static_cast<size_t>(pages[static_cast<size_t>(i / HD_PAGE_TOKENS)]);
      const auto at = static_cast<size_t>(i) * static_cast<size_t>(dim);
      kernels.kv_write(memory.data() + (2 * page + 1) * head_bytes, dim, half, i % HD_PAGE_TOKENS, 1, k.data() + at,
                       v.data() + at, dim);
    }
  }

  // Fills with NaN what lies behind position `length` in the last page.
  void forget(int32_t length) {
    uint8_t* values = memory.data() + (2 * static_cast<size_t>(pages.back()) + 1) * head_bytes;
    values += static_cast<size_t>(head_dim) * HD_PAGE_TOKENS * 2;
    const size_t pair = static_cast<size_t>(pad_to(head_dim, kLanes)) * 4;
    const auto used = static_cast<size_t>((length - 1) % HD_PAGE_TOKENS + 1);
    for (size_t slot = used; slot < HD_PAGE_TOKENS; ++slot)
      for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d)
        std::memset(values + slot / 2 * pair + d * 4 + slot % 2 * 2, 0xff, 2);
  }

  KvView view() const { return {memory.data(), 2 * head_bytes, head_bytes, pages.data(), head_dim, half}; }
};

}  // namespace

// A row's attention in float64.
static std::vector<double> plain_attention(const AttentionRow& row, int32_t dim, bool half, const std::vector<float>& k,
                                           const std::vector<float>& v) {
  const auto n = static_cast<size_t>(dim);
  const auto entry = [&](float x) {
    return double{half ? bf16_to_f32(static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + 0x8000u) >> 16)) : x};
  };
  std::vector<double> out(n);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  double sum = 0, peak = -HUGE_VAL;
  for (int pass = 0; pass < 2; ++pass) {
    for (auto key = static_cast<size_t>(row.first); key <= static_cast<size_t>(row.position); ++key) {
      double score = 0;
      for (size_t d = 0; d < n; ++d) score += entry(row.q[d] * scale) * entry(k[key * n + d]);
      peak = std::max(peak, score);
      if (pass == 0) continue;
      const double weight = std::exp(score - peak);
      sum += weight;
      for (size_t d = 0; d < n; ++d) out[d] += weight * entry(v[key * n + d]);
    }
  }
  for (double& value : out) value /= sum;
  return out;
}

// The results of rows whose splits are shared out to `parts` calls, and one number behind them.
static std::vector<float> attention_of(const Kernels& kernels, const Cache& cache, std::vector<AttentionRow> rows,
                                       int32_t splits, int32_t parts) {
  const auto dim = static_cast<size_t>(cache.head_dim);
  const size_t floats = attention_partial(cache.head_dim), all = floats * static_cast<size_t>(parts);
  std::vector<float> out(rows.size() * dim + 1, -7.0f), partials(all * rows.size()),
      memory(attention_scratch(cache.head_dim) + 16);
  float* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / 4;
  for (int32_t part = parts - 1; part >= 0; --part) {
    for (size_t r = 0; r < rows.size(); ++r)
      rows[r].partial = partials.data() + r * all + static_cast<size_t>(part) * floats;
    kernels.attention(rows.data(), static_cast<int32_t>(rows.size()), cache.view(), splits * part / parts,
                      splits * (part + 1) / parts, scratch);
  }
  for (size_t r = 0; r < rows.size(); ++r)
    kernels.attention_merge(partials.data() + r * all, parts, floats, cache.head_dim, out.data() + r * dim);
  return out;
}

// Under a sanitizer memory is on trial, and everything takes thirty times as long: one head size of each kind of tail.
#ifdef HERDER_SANITIZED
constexpr std::array kDims = {24, 64};
constexpr std::array kRows = {1, 7, 16, 35};
#else
constexpr std::array kDims = {8, 24, 32, 64, 80, 96, 128};
constexpr std::array kRows = {1, 2, 3, 4, 7, 12, 16, 35};
#endif

TEST(tokens_are_written_alike_together_and_one_by_one) {
  Random random{29};
  for (const int32_t dim : kDims) {
    for (const bool half : {true, false}) {
      const int64_t stride = dim + 5;
      const std::vector<float> k = normals(random, HD_PAGE_TOKENS * stride),
                               v = normals(random, HD_PAGE_TOKENS * stride);
      for (const Kernels* kernels : usable_kernels()) {
        std::vector<uint8_t> page(kv_head_bytes(dim, half));
        const auto write = [&](std::vector<uint8_t>& to, int32_t slot, int32_t count) {
          kernels->kv_write(to.data(), dim, half, slot, count, k.data() + slot * stride, v.data() + slot * stride,
                            stride);
        };
        for (int32_t slot = 0; slot < HD_PAGE_TOKENS; ++slot) write(page, slot, 1);
        for (int round = 0; round < 40; ++round) {
          const int32_t slot = random.below(HD_PAGE_TOKENS), count = 1 + random.below(HD_PAGE_TOKENS - slot);
          std::vector<uint8_t> together(page.size(), 0x55), singly = together, again = page;
          write(together, slot, count);
          for (int32_t t = slot; t < slot + count; ++t) write(singly, t, 1);
          write(again, slot, count);
          check_same(*kernels, "kv_write", singly, together);
          check_same(*kernels, "kv_write among others", page, again);
        }
      }
    }
  }
}

TEST(attention) {
  Random random{26};
  for (const int32_t dim : kDims) {
    for (const bool half : {true, false}) {
      for (const int32_t length : {1, 31, 33, 530, 1061}) {  // 1061 keys: three splits
        std::vector<float> k = normals(random, int64_t{length} * dim), v = normals(random, int64_t{length} * dim);
        check_tables("kv_write",
                     [&](const Kernels& kernels) { return Cache(kernels, dim, half, length, k, v).memory; });
        Cache cache(*kernels_portable(), dim, half, length, k, v);
        // what lies behind the last token may be anything
        if (half && length % 2 == 1) cache.forget(length);
        for (const int32_t n : kRows) {
          std::vector<float> q = normals(random, int64_t{n} * dim);
          if (n == 7) q[static_cast<size_t>(3 * dim)] = kNan;
          if (n == 16)
            for (float& value : q) value *= 100;  // one key takes all, the rest underflows
          std::vector<AttentionRow> rows;
          for (int32_t r = 0; r < n; ++r) {
            const int32_t position = n == 1 ? length - 1 : random.below(length);
            const int32_t first = r % 3 == 2 ? random.below(position + 1) : 0;
            rows.push_back({q.data() + int64_t{r} * dim, position, first, nullptr});
          }
          const int32_t splits = (length - 1) / (kSplitPages * HD_PAGE_TOKENS) + 1;
          const auto run = [&](const Kernels& kernels, int32_t parts) {
            return attention_of(kernels, cache, rows, splits, parts);
          };
          check_tables("attention", [&](const Kernels& kernels) { return run(kernels, 1); });
          check_tables("attention in parts", [&](const Kernels& kernels) { return run(kernels, splits); });
          check_same(*kernels_portable(), "parts", run(*kernels_portable(), 1), run(*kernels_portable(), splits));
          if (n != 1 && n != 12) continue;
          const std::vector<float> out = run(*kernels_portable(), 1);
          for (size_t r = 0; r < rows.size(); ++r) {
            const std::vector<double> plain = plain_attention(rows[r], dim, half, k, v);
            for (size_t d = 0; d < plain.size(); ++d)
              CHECK(std::fabs(double{out[r * plain.size() + d]} - plain[d]) < (half ? 0.03 : 1e-4));
          }
        }
      }
    }
  }
}

// Values that are unit vectors show the weights of a split's keys, whose scores are those of key 0 less x.
TEST(weights_are_exponentials_rounded_to_bfloat16) {
  constexpr int32_t kKeys = kSplitPages * HD_PAGE_TOKENS, kDim = 1024;
  constexpr size_t kSide = kKeys;
  Random random{28};
  std::vector<float> q(kDim), k(kSide * kDim), v(kSide * kDim);
  for (size_t i = 0; i < 3; ++i) q[i] = 32;  // sqrt(kDim)
  for (size_t i = 0; i < kSide; ++i) v[i * kDim + i] = 1;
  for (int round = 0; round < (kAll ? 40 : 4); ++round) {
    std::vector<double> x(kSide);
    for (size_t i = 1; i < kSide; ++i) {
      x[i] = std::ldexp(random.below(1 << 23), -18 - round % 8);  // below 32, or a power of two less
      double rest = -x[i];
      for (size_t d = 0; d < 3; ++d) {  // 24 bits as three bfloat16, the sum of which is exact
        k[i * kDim + d] = std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(rest)) & 0xffff0000u);
        rest -= double{k[i * kDim + d]};
      }
    }
    if (round == 3) k[7 * kDim] = kNan;
    const Cache cache(*kernels_portable(), kDim, true, kKeys, k, v);
    const auto run = [&](const Kernels& kernels) {
      return attention_of(kernels, cache, {{q.data(), kKeys - 1, 0, nullptr}}, 1, 1);
    };
    check_tables("weights", run);
    const std::vector<float> out = run(*kernels_portable());
    for (size_t i = 0; i < kSide; ++i) {
      const double weight = double{out[i]} / double{out[0]}, exact = std::exp(-x[i]);
      const bool near = std::fabs(weight - exact) < exact * (0x1p-8 + 0x1p-13), none = exact < 0x1p-39 && weight == 0;
      CHECK(round == 3 ? out[i] != out[i] : near || none);
    }
    k[7 * kDim] = 0;
  }
}

// bfloat16 as kv_write makes it: the nearest multiple of 2^-40, then the upper part of a split at 16 bits.
TEST(every_kind_of_float_becomes_bfloat16) {
  Random random{27};
  std::vector<float> values(std::begin(kEdges), std::end(kEdges));
  for (uint32_t i = 0; i < 65536; ++i) {  // every bfloat16, and what lies just beside the middle of it and the next
    const float middle = std::bit_cast<float>(i << 16 | 0x8000u);
    values.push_back(std::bit_cast<float>(i << 16));
    values.push_back(middle);
    values.push_back(std::nextafter(middle, 0.0f));
    values.push_back(std::nextafter(middle, kInfinity));
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(random.next())));
  }
  values.resize(values.size() / 128 * 128);
  for (const Kernels* kernels : usable_kernels()) {
    std::vector<uint8_t> block(kv_head_bytes(128, true));
    bool agree = true;
    for (size_t i = 0; i < values.size() && agree; i += 128) {
      kernels->kv_write(block.data(), 128, true, 0, 1, values.data() + i, values.data() + i, 128);
      const uint8_t* stored = block.data() + block.size() / 2;
      for (size_t d = 0; d < 128; ++d) {
        const uint16_t key = load_u16(block.data() + d / 2 * 128 + d % 2 * 2), value = load_u16(stored + 4 * d);
        const float x = values[i + d], y = bf16_to_f32(key);
        const double error = std::fabs(double{x} - double{y});
        const bool near = error <= std::fabs(double{x}) * 0x1p-8 + 0x1p-41, lost = !(std::fabs(x) < 0x1p111f) && y != y;
        agree = agree && key == value && (near || lost);
      }
    }
    if (!agree) fail(__FILE__, __LINE__, kernels->isa);
  }
}

TEST_MAIN
