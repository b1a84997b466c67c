// Storage formats: 16-bit floats exhaustively, every format against the formula of block.h, any bytes whatever.
// Values are compared with the gguf package in tests/native/test_formats.py; here memory and arithmetic are on trial.
#include <bit>
#include <cmath>
#include <memory>

#include "formats/block.h"
#include "formats/registry.h"
#include "test.h"

using namespace herder;
using herder::test::Random;

namespace {

constexpr int32_t kIds[] = {HD_F32,  HD_F16,  HD_BF16, HD_Q4_0, HD_Q4_1, HD_Q5_0,   HD_Q5_1,   HD_Q8_0,
                            HD_Q2_K, HD_Q3_K, HD_Q4_K, HD_Q5_K, HD_Q6_K, HD_IQ4_NL, HD_IQ4_XS, HD_MXFP4};

bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

// A copy of exactly n bytes on the heap, so that AddressSanitizer sees a read of one more.
std::unique_ptr<uint8_t[]> exactly(const uint8_t* data, size_t n) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[n]);
  std::memcpy(copy.get(), data, n);
  return copy;
}

}  // namespace

TEST(f16_round_trip) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(value)) {
      CHECK((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0);
      CHECK(f32_to_f16(value) == (h | 0x200));
    } else {
      CHECK(f32_to_f16(value) == h);
      const int exponent = static_cast<int>(h >> 10 & 31);
      const double magnitude = exponent == 0    ? std::ldexp(h & 0x3ff, -24)
                               : exponent == 31 ? INFINITY
                                                : std::ldexp((h & 0x3ff) | 0x400, exponent - 25);
      CHECK(static_cast<double>(value) == (h & 0x8000 ? -magnitude : magnitude));
    }
  }
}

TEST(f16_rounds_to_nearest_even) {
  Random random{1};
  for (int i = 0; i < 2'000'000; ++i) {
    // Half of them around the range of binary16, where rounding, overflow and subnormals are.
    uint32_t word = static_cast<uint32_t>(random.next());
    if (i % 2) word = (word & 0x80ffffffu) | (0x30000000u + (static_cast<uint32_t>(i) % 24 << 24));
    if (i % 5 == 0) word &= 0xfffff000u;  // ties
    const float value = std::bit_cast<float>(word);
    if (std::isnan(value)) continue;
    const uint16_t half = f32_to_f16(value);
    const double exact = std::fabs(static_cast<double>(value)), ours = std::fabs(static_cast<double>(f16_to_f32(half)));
    CHECK((half >> 15) == (word >> 31));
    if (exact >= 65520) {
      CHECK(std::isinf(ours));
      continue;
    }
    const uint16_t magnitude = half & 0x7fff;
    const double error = std::fabs(ours - exact);
    for (const int step : {-1, 1}) {  // no neighbour is nearer, and one as near is odd
      if (magnitude + step < 0 || magnitude + step >= 0x7c00) continue;
      const double other = std::fabs(f16_to_f32(static_cast<uint16_t>(magnitude + step)) - exact);
      CHECK(error < other || (error == other && magnitude % 2 == 0));
    }
  }
}

TEST(bf16) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float value = bf16_to_f32(static_cast<uint16_t>(b));
    CHECK(f32_to_bf16(value) == (std::isnan(value) ? (b | 0x40) : b));
  }
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // a tie falls to even
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f818000u)) == 0x3f82);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x7f7fffffu)) == 0x7f80);  // overflow
}

TEST(unpack_gives_what_expand_gives) {
  Random random{2};
  for (const int32_t id : kIds) {
    const FormatInfo& format = *format_info(id);
    CHECK(format.id == id);
    if (!format.unpack) continue;
    const int groups = format.block / format.group;
    for (int round = 0; round < 2000; ++round) {
      auto bytes = random.bytes<uint8_t>(static_cast<size_t>(format.bytes));
      if (round < 256) std::fill(bytes.begin(), bytes.end(), static_cast<uint8_t>(round));
      const auto source = exactly(bytes.data(), bytes.size());
      const std::unique_ptr<uint8_t[]> code(new uint8_t[static_cast<size_t>(format.block)]);
      const std::unique_ptr<float[]> scale(new float[static_cast<size_t>(groups)]);
      const std::unique_ptr<float[]> minimum(format.has_min ? new float[static_cast<size_t>(groups)] : nullptr);
      const std::unique_ptr<float[]> out(new float[static_cast<size_t>(format.block)]);
      format.unpack(source.get(), code.get(), scale.get(), minimum.get());
      format.expand(source.get(), 1, out.get());
      for (int i = 0; i < format.block; ++i) {
        CHECK(format.bits == 8 || code[i] < 16);
        float value = scale[i / format.group] * static_cast<float>(level_of(code[i], format.zero, format.table));
        if (format.has_min) value += minimum[i / format.group];
        CHECK(same(value, out[i]));
      }
    }
  }
}

TEST(unpack_whole_tensors) {
  Random random{3};
  for (const int32_t id : kIds) {
    const FormatInfo& format = *format_info(id);
    for (int round = 0; round < 50; ++round) {
      const int64_t rows = 1 + random.below(5), blocks = 1 + random.below(5), cols = blocks * format.block;
      const auto bytes = random.bytes<uint8_t>(static_cast<size_t>(rows) * row_bytes(format, cols));
      const auto source = exactly(bytes.data(), bytes.size());
      const std::unique_ptr<float[]> out(new float[static_cast<size_t>(rows * cols)]);
      hd_error err;
      CHECK(hd_unpack(id, source.get(), bytes.size(), rows, cols, out.get(), &err) == HD_OK);
      std::vector<float> block(static_cast<size_t>(format.block));
      for (int64_t b = 0; b < rows * blocks; ++b) {
        format.expand(source.get() + b * format.bytes, 1, block.data());
        for (int i = 0; i < format.block; ++i)
          CHECK(same(out[static_cast<size_t>(b * format.block + i)], block[static_cast<size_t>(i)]));
      }
    }
  }
}

TEST(lying_shapes_are_refused) {
  Random random{4};
  float out[1];
  hd_error err;
  for (int i = 0; i < 200'000; ++i) {
    const int32_t id = i % 2 ? kIds[random.below(16)] : random.below(64) - 8;
    const int64_t rows = static_cast<int64_t>(random.next()) >> random.below(64);
    const int64_t cols = static_cast<int64_t>(random.next()) >> random.below(64);
    // No data: any shape that is let through must need no bytes, and none does.
    err = {};
    const hd_status status = hd_unpack(id, nullptr, 0, rows, cols, out, &err);
    CHECK(status == HD_ERR_FORMAT || status == HD_ERR_ARGUMENT);
    CHECK(err.code == status && err.message[0] != 0 && std::strchr(err.message, '\n') == nullptr);
    CHECK(hd_unpack(id, nullptr, 0, rows, cols, out, nullptr) == status);
  }
  uint8_t data[18] = {};
  CHECK(hd_unpack(HD_Q4_0, nullptr, 18, 1, 32, out, &err) == HD_ERR_ARGUMENT);
  CHECK(hd_unpack(HD_Q4_0, data, 18, 1, 32, nullptr, &err) == HD_ERR_ARGUMENT);
}

TEST_MAIN
