// The storage formats as a table, for code that meets a format at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "herder.h"

namespace herder {

struct LaneRow;

// One storage format. The fields are those of formats/block.h; F32, F16 and BF16 are blocks of one value with bits,
// group and zero 0 and neither unpack nor lane. lane_group and lane_zero are group and zero of what lane gives.
struct FormatInfo {
  int32_t id;
  const char* name;
  int32_t block, bytes;
  int32_t bits, group;
  bool has_min;
  int32_t zero;
  const int8_t* table;
  int32_t lane_group, lane_zero;
  void (*unpack)(const uint8_t* source, uint8_t* code, float* scale, float* minimum);
  // blocks consecutive blocks -> a lane of a panel; returns its row_scale (formats/lane.h).
  float (*lane)(const uint8_t* source, int64_t blocks, const LaneRow& out);
  // blocks consecutive blocks -> blocks * block float32 values; every format has it.
  void (*expand)(const uint8_t* source, int64_t blocks, float* out);
};

// The format numbered id, or null if this core does not hold it.
const FormatInfo* format_info(int32_t id);

// Bytes of one row of cols values; cols must be a multiple of the block (checked by check_storage).
inline size_t row_bytes(const FormatInfo& format, int64_t cols) {
  return static_cast<size_t>(cols / format.block) * static_cast<size_t>(format.bytes);
}

// Checks that `bytes` bytes hold exactly rows x cols values of format `id`, in arithmetic that cannot overflow; also
// that rows x cols float32 values are addressable. HD_ERR_FORMAT: unknown format, or a row that is not whole blocks.
// HD_ERR_ARGUMENT: rows or cols below 1, too large, or another number of bytes.
hd_status check_storage(int32_t id, int64_t rows, int64_t cols, size_t bytes, const FormatInfo** format, hd_error* err);

}  // namespace herder
