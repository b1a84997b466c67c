// The table of kernels one instruction set provides. Chosen once when a model is created, never looked up per call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "herder.h"
#include "layout.h"

namespace herder {

enum class Store : int32_t { kSet, kAdd };  // kAdd: out += result (residual)

// One query row of attention: a head of a token.
struct AttentionRow {
  const float* q;    // [head_dim], already rotated; attention scales it by 1/sqrt(head_dim)
  int32_t position;  // keys 0..position are visible
  int32_t first;     // first visible key (sliding window, chunked attention)
  float* partial;    // attention_partial(head_dim) floats: values, then the maximum and the sum they are relative to
};

struct KvView {
  const uint8_t* base;   // pages of this layer
  size_t page_stride;    // bytes from a page of the layer to the next
  size_t head_offset;    // bytes from the page's start to this KV head's K block; its V block follows the K block
  const int32_t* pages;  // block table
  int32_t head_dim;
  bool half;  // bfloat16 entries, else float32

  [[gnu::always_inline]] const uint8_t* block(int32_t page) const {
    return base + static_cast<size_t>(pages[page]) * page_stride + head_offset;
  }
};

struct Kernels {
  const char* isa;
  int32_t amx;  // 1: matmul uses tiles for wide blocks

  // out[t * out_stride + 16 * panel + lane] for panels [panel_begin, panel_end) and tokens [0, tokens).
  // scratch: per-thread, matmul_scratch(matrix) bytes, 64-byte aligned.
  void (*matmul)(const Matrix&, const Activations&, int64_t tokens, int64_t panel_begin, int64_t panel_end, Store,
                 float* out, int64_t out_stride, uint8_t* scratch);
  size_t (*matmul_scratch)(const Matrix&);
  // Null, or two bfloat16 products (layouts, groups and minima alike, inputs as matmul's) at once: silu(gate) * up of
  // panels [panel_begin, panel_end), rounded as the inputs of the next product, among those of `distance` tokens. The
  // same bits as two products, silu_mul and round_bf16.
  void (*swiglu)(const Matrix& gate, const Matrix& up, const Activations&, int64_t tokens, int64_t panel_begin,
                 int64_t panel_end, uint8_t* rounded, int64_t distance, uint8_t* scratch);

  // x[n] of one token -> its bytes and fields among those of `tokens` tokens (layout.h), the last unit zero-filled. NaN
  // or infinity makes a scale NaN.
  void (*quantize)(const float* x, int64_t n, int8_t* q, float* fields, int64_t tokens);
  // The same, rounded to bfloat16 in elements of rounded_bytes.
  void (*round_bf16)(const float* x, int64_t n, uint8_t* rounded, int64_t tokens);
  int64_t rounded_bytes;
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*silu_mul)(float* gate, const float* up, int64_t n);  // gate = silu(gate) * up
  void (*add)(float* out, const float* x, int64_t n);
  void (*add_scaled)(float* out, const float* x, float scale, int64_t n);  // out += scale * x, fused
  // A token's experts, best first, and their weights (routing.h). active <= count.
  void (*route)(const float* logits, int32_t count, int32_t active, hd_router, int32_t* expert, float* weight);
  // Half-split rotation of one head: pairs (i, i + half).
  void (*rope)(float* head, const float* cos, const float* sin, int32_t half);
  // Writes k, v (one head of `count` tokens, rows `stride` floats apart) from slot `slot` of a page's head block on.
  void (*kv_write)(uint8_t* head_block, int32_t head_dim, bool half, int32_t slot, int32_t count, const float* k,
                   const float* v, int64_t stride);
  // The partial results of splits [begin, end) of the keys (attention.h). rows share one KV head and one sequence;
  // scratch: attention_scratch(head_dim) floats, 64-byte aligned.
  void (*attention)(const AttentionRow* rows, int32_t n_rows, const KvView&, int32_t begin, int32_t end,
                    float* scratch);
  // The results of a row from `count` partial ones, `stride` floats apart, that cover all splits in order.
  void (*attention_merge)(float* partials, int32_t count, size_t stride, int32_t head_dim, float* out);

  double (*int8_peak)(double seconds);  // operations/s of one thread's inner product loop (multiply and add count as 2)
  double (*f32_peak)(double seconds);
  double (*read_pass)(const uint8_t* data, size_t bytes);  // reads all of data once; returns a checksum
};

constexpr int32_t kAttentionTile = 16;  // query rows handled together
constexpr int32_t kSplitPages = 16;     // pages reduced into one partial result before merging
constexpr int32_t kMaxHeadDim = 1024;
constexpr size_t kAttentionRowFloats = 2 * kMaxHeadDim + 32 * (kSplitPages + 1);
static inline size_t attention_scratch(int32_t head_dim) {
  // of each row: query, scores, values; then a page of values
  return kAttentionTile * kAttentionRowFloats + 16 * static_cast<size_t>(head_dim);
}
static inline size_t attention_partial(int32_t head_dim) { return static_cast<size_t>(pad_to(head_dim, kLanes)) + 16; }
static inline size_t kv_head_bytes(int32_t head_dim, bool half) {
  // keys, then values with their dimensions padded to whole vectors
  return static_cast<size_t>(head_dim + pad_to(head_dim, kLanes)) * HD_PAGE_TOKENS * (half ? 2 : 4);
}

// Provided by isa/*.cpp as compiled in.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_amx();
const Kernels* kernels_neon();
const Kernels* kernels_dotprod();
const Kernels* kernels_i8mm();

}  // namespace herder
