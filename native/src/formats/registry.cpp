#include "formats/registry.h"

#include <cstdint>
#include <cstring>
#include <limits>

#include "error.h"
#include "formats/block.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/lane.h"
#include "formats/mxfp4.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_1.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace herder {
namespace {

template <BlockFormat F>
void expand_blocks(const uint8_t* source, int64_t blocks, float* out) {
  uint8_t code[F::block];
  float scale[F::block / F::group], minimum[F::block / F::group];
  for (int64_t b = 0; b < blocks; ++b, source += F::bytes) {
    F::unpack(source, code, scale, minimum);
    for (int g = 0; g < F::block / F::group; ++g) {
      for (int i = g * F::group; i < (g + 1) * F::group; ++i) {
        float value = scale[g] * static_cast<float>(level_of(code[i], F::zero, F::table));
        if constexpr (F::has_min) value += minimum[g];  // not "+ 0" otherwise: it would turn -0 into 0
        *out++ = value;
      }
    }
  }
}

void expand_f32(const uint8_t* source, int64_t count, float* out) {
  std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
}

void expand_f16(const uint8_t* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = load_f16(source + 2 * i);
}

void expand_bf16(const uint8_t* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(load_u16(source + 2 * i));
}

template <BlockFormat F>
constexpr FormatInfo row() {
  static_assert(F::block <= kMaxBlock && F::block / F::group <= kMaxGroups);
  return {F::id,   F::name,  F::block,       F::bytes,      F::bits,   F::group,    F::has_min,
          F::zero, F::table, Lane<F>::group, Lane<F>::zero, F::unpack, lane_row<F>, expand_blocks<F>};
}

constexpr FormatInfo float_row(int32_t id, const char* name, int32_t bytes,
                               void (*expand)(const uint8_t*, int64_t, float*)) {
  return {id, name, 1, bytes, 0, 0, false, 0, nullptr, 0, 0, nullptr, nullptr, expand};
}

constexpr FormatInfo kFormats[] = {
    float_row(HD_F32, "F32", 4, expand_f32),
    float_row(HD_F16, "F16", 2, expand_f16),
    float_row(HD_BF16, "BF16", 2, expand_bf16),
    row<Q4_0>(),
    row<Q4_1>(),
    row<Q5_0>(),
    row<Q5_1>(),
    row<Q8_0>(),
    row<Q2_K>(),
    row<Q3_K>(),
    row<Q4_K>(),
    row<Q5_K>(),
    row<Q6_K>(),
    row<IQ4_NL>(),
    row<IQ4_XS>(),
    row<MXFP4>(),
};

}  // namespace

const FormatInfo* format_info(int32_t id) {
  for (const FormatInfo& format : kFormats)
    if (format.id == id) return &format;
  return nullptr;
}

hd_status check_storage(int32_t id, int64_t rows, int64_t cols, size_t bytes, const FormatInfo** format,
                        hd_error* err) {
  const FormatInfo* info = format_info(id);
  if (info == nullptr) return fail(err, HD_ERR_FORMAT, "storage format %d is not one this core holds", id);
  if (rows < 1 || cols < 1) {
    return fail(err, HD_ERR_ARGUMENT, "shape is %lld x %lld: rows and cols must be 1 or more",
                static_cast<long long>(rows), static_cast<long long>(cols));
  }
  if (cols % info->block != 0) {
    return fail(err, HD_ERR_FORMAT, "cols is %lld: a row of %s holds whole blocks of %d values",
                static_cast<long long>(cols), info->name, info->block);
  }
  // No format spends more than 4 bytes a value, so a shape that is addressable as float32 is addressable in any.
  constexpr int64_t kMost = std::numeric_limits<ptrdiff_t>::max() / static_cast<int64_t>(sizeof(float));
  if (cols > kMost / rows) {
    return fail(err, HD_ERR_ARGUMENT, "shape is %lld x %lld: more values than this machine can address",
                static_cast<long long>(rows), static_cast<long long>(cols));
  }
  const size_t needed = static_cast<size_t>(rows) * row_bytes(*info, cols);
  if (bytes != needed) {
    return fail(err, HD_ERR_ARGUMENT, "data has %zu bytes: %lld x %lld values of %s need %zu", bytes,
                static_cast<long long>(rows), static_cast<long long>(cols), info->name, needed);
  }
  *format = info;
  return HD_OK;
}

}  // namespace herder
