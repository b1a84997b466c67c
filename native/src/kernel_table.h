// Fills the Kernels table of one instruction set. Included by isa/*.cpp, each compiled with its own flags.
#pragma once

#include <algorithm>
#include <chrono>

#include "attention.h"
#include "bf16_panel.h"
#include "elementwise.h"
#include "matmul_bf16.h"
#include "matmul_float.h"
#include "matmul_integer.h"
#include "routing.h"
#if defined(HD_AMX)
#include "matmul_bf16_tiles.h"
#include "matmul_tiles.h"
#endif

namespace herder::HD_ISA_NAMESPACE {

static void matmul(const Matrix& w, const Activations& a, int64_t tokens, int64_t begin, int64_t end, Store store,
                   float* out, int64_t stride, uint8_t* scratch) {
  switch (w.layout) {
    case Layout::kF32:
      return FloatProduct<FloatKernel<Layout::kF32>>::matmul(w, a, tokens, begin, end, store, out, stride);
    case Layout::kF16:
      return FloatProduct<FloatKernel<Layout::kF16>>::matmul(w, a, tokens, begin, end, store, out, stride);
    case Layout::kBF16:
#if defined(HD_AMX)
      return matmul_bf16<Bf16Panels>(w, a, tokens, begin, end, store, out, stride, scratch);
#else
      return FloatProduct<Bf16Kernel>::matmul(w, a, tokens, begin, end, store, out, stride);
#endif
    default:
      break;
  }
  with_panel_kernel(w, [&](auto kernel) {
    if (a.round) return matmul_rounded(kernel, w, a, tokens, begin, end, store, out, stride, scratch);
#if defined(HD_AMX)
    if (tokens >= kTileMinimum) return matmul_tiles(kernel, w, a, tokens, begin, end, store, out, stride);
#endif
    decltype(kernel)::matmul(w, a, tokens, begin, end, store, out, stride, scratch);
  });
}

static size_t matmul_scratch(const Matrix& w) {
#if defined(HD_AMX)
  return w.integer() || w.layout == Layout::kBF16 ? kBf16Scratch : 64;
#else
  return w.integer() ? rounded_panel_bytes(w) : 64;
#endif
}

// Independent sums of a peak measurement: enough to hide latency, few enough to stay in registers.
constexpr int kPeakAccumulators = kTileRegisters >= 12 ? 12 : 6;

// N vectors as fields, which the compiler keeps in registers; the elements of an array it stored again and again. They
// begin with different values, or it would see that one stands for all.
template <class V, int N>
struct Accumulators {
  V first;
  Accumulators<V, N - 1> rest;

  template <class Fn>
  HD_INLINE explicit Accumulators(Fn start) : first(start(N)), rest(start) {}
  template <class Fn>
  HD_INLINE void each(Fn f) {
    first = f(first);
    rest.each(f);
  }
};
template <class V>
struct Accumulators<V, 0> {
  template <class Fn>
  HD_INLINE explicit Accumulators(Fn) {}
  template <class Fn>
  HD_INLINE void each(Fn) {}
};

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
  Accumulators<I, kPeakAccumulators> sums([](int i) { return i_set1(i); });
  const B weights = b_code8(b_load(w));
  do {
    for (int i = 0; i < 4000; ++i) {
      asm volatile("" : "+m"(a));  // other activations, for all that the compiler knows
      sums.each([&](I x) { return dot4_byte(x, weights, a); });
    }
    operations += 4000.0 * kPeakAccumulators * 2 * 64;
  } while (seconds_since(start) < seconds);
  volatile int32_t sink = 0;
  sums.each([&](I x) {
    sink = sink + i_sum(x);
    return x;
  });
#endif
  return operations / seconds_since(start);
}

static double f32_peak(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  double operations = 0;
  float one = 0.5f;
  Accumulators<F, kPeakAccumulators> sums([](int i) { return f_set1(static_cast<float>(i)); });
  do {
    for (int i = 0; i < 4000; ++i) {
      asm volatile("" : "+m"(one));
      const F y = f_set1(one);
      sums.each([&](F x) { return f_fma(x, y, y); });
    }
    operations += 4000.0 * kPeakAccumulators * 2 * 16;
  } while (seconds_since(start) < seconds);
  volatile float sink = 0;
  sums.each([&](F x) {
    sink = sink + lanes_sum(x);
    return x;
  });
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
#if defined(HD_AMX)
      .swiglu = swiglu,
#else
      .swiglu = nullptr,
#endif
      .quantize = quantize,
      .round_bf16 = round_bf16,
      .rounded_bytes = sizeof(Rounded),
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
