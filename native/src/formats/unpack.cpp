// hd_unpack: storage format -> float32.
#include "error.h"
#include "formats/registry.h"
#include "herder.h"

extern "C" hd_status hd_unpack(int32_t format, const void* data, size_t bytes, int64_t rows, int64_t cols, float* out,
                               hd_error* err) {
  using namespace herder;
  const FormatInfo* info;
  if (hd_status status = check_storage(format, rows, cols, bytes, &info, err)) return status;
  if (data == nullptr) return fail(err, HD_ERR_ARGUMENT, "data is NULL");
  if (out == nullptr) return fail(err, HD_ERR_ARGUMENT, "out is NULL");
  // Rows are whole blocks with nothing between them, so the tensor is one run of blocks.
  info->expand(static_cast<const uint8_t*>(data), rows * (cols / info->block), out);
  return HD_OK;
}
