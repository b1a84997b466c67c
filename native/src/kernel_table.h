// Fills the Kernels table of one instruction set. Included by isa/*.cpp, each compiled with its own flags.
#pragma once

#include <chrono>

#include "attention.h"
#include "elementwise.h"
#include "matmul_float.h"
#include "matmul_integer.h"
#include "routing.h"
#if defined(HD_AMX)
#include "matmul_tiles.h"
#endif

namespace herder::HD_ISA_NAMESPACE {

static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                   float* out, int64_t stride, uint8_t* scratch) {
  switch (w.layout) {
    case Layout::kF32:
      return FloatPanelKernel<Layout::kF32>::matmul(w, a, tokens, begin, end, store, out, stride, scratch);
    case Layout::kF16:
      return FloatPanelKernel<Layout::kF16>::matmul(w, a, tokens, begin, end, store, out, stride, scratch);
    case Layout::kBF16:
      return FloatPanelKernel<Layout::kBF16>::matmul(w, a, tokens, begin, end, store, out, stride, scratch);
    default:
      break;
  }
  with_panel_kernel(w, [&](auto kernel) {
#if defined(HD_AMX)
    if (tokens >= kTileMinimum) return matmul_tiles(kernel, w, a, tokens, begin, end, store, out, stride, scratch);
#endif
    decltype(kernel)::matmul(w, a, tokens, begin, end, store, out, stride, scratch);
  });
}

static size_t matmul_scratch([[maybe_unused]] const Matrix& w) {
#if defined(HD_AMX)
  if (w.integer())
    return static_cast<size_t>(w.padded_cols) * kLanes + static_cast<size_t>(w.padded_cols / w.group) * kLanes * 8;
#endif
  return 64;
}

// Independent sums of a peak measurement: enough to hide latency, few enough to stay in registers.
constexpr int kPeakAccumulators = kTileRegisters >= 12 ? 12 : 6;

static double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Operations per second of this instruction set's own dot product, operands in registers: what a matrix product can
// reach.
static double int8_peak(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  double operations = 0;
#if defined(HD_AMX)
  alignas(64) static const int8_t zeros[1024] = {};
  configure_tiles<64>();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  do {
    for (int i = 0; i < 20000; ++i) {
      _tile_dpbssd(0, 4, 5);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 6, 5);
      _tile_dpbssd(3, 6, 7);
    }
    operations += 20000.0 * 4 * 2 * 16 * 16 * 64;
  } while (seconds_since(start) < seconds);
  _tile_release();
#else
  alignas(64) uint8_t w[64];
  alignas(4) int8_t a[4] = {1, 2, 3, 4};
  std::memset(w, 1, sizeof w);
  I acc[kPeakAccumulators];
  for (auto& x : acc) x = i_set1(0);
  const B weights = b_code8(b_load(w));
  do {
    for (int i = 0; i < 4000; ++i) {
      asm volatile("" ::: "memory");
      for (auto& x : acc) x = dot4_byte(x, weights, a);
    }
    operations += 4000.0 * kPeakAccumulators * 2 * 64;
  } while (seconds_since(start) < seconds);
  volatile int32_t sink = 0;
  for (auto& x : acc) sink = sink + i_sum(x);
#endif
  return operations / seconds_since(start);
}

static double f32_peak(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  double operations = 0;
  float one = 0.5f;
  F acc[kPeakAccumulators];
  for (auto& x : acc) x = f_zero();
  do {
    for (int i = 0; i < 4000; ++i) {
      asm volatile("" ::: "memory");
      const F y = f_set1(one);
      for (auto& x : acc) x = f_fma(x, y, y);
    }
    operations += 4000.0 * kPeakAccumulators * 2 * 16;
  } while (seconds_since(start) < seconds);
  volatile float sink = 0;
  for (auto& x : acc) sink = sink + lanes_sum(x);
  return operations / seconds_since(start);
}

static double read_pass(const uint8_t* data, size_t bytes) {
  I sum[4] = {i_set1(0), i_set1(0), i_set1(0), i_set1(0)};
  const auto* words = reinterpret_cast<const int32_t*>(data);
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) sum[j] = i_add(sum[j], i_load(words + i / 4 + 16 * j));
  }
  return static_cast<double>(i_sum(sum[0])) + i_sum(sum[1]) + i_sum(sum[2]) + i_sum(sum[3]);
}

static const Kernels* table(const char* isa) {
  static const Kernels kernels = {
      .isa = isa,
#if defined(HD_AMX)
      .amx = 1,
#else
      .amx = 0,
#endif
      .matmul = matmul,
      .matmul_scratch = matmul_scratch,
      .quantize = quantize,
      .rms_norm = rms_norm,
      .silu_mul = silu_mul,
      .add = add,
      .add_scaled = add_scaled,
      .route = route,
      .rope = rope,
      .kv_write = kv_write,
      .attention = attention,
      .attention_merge = attention_merge,
      .int8_peak = int8_peak,
      .f32_peak = f32_peak,
      .read_pass = read_pass,
  };
  return &kernels;
}

}  // namespace herder::HD_ISA_NAMESPACE
