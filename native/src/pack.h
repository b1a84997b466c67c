// Storage format -> compute layout (layout.h).
#pragma once

#include "arena.h"
#include "formats/registry.h"
#include "layout.h"
#include "threads.h"

namespace herder {

// Packs rows x cols of `format` at data. row_map may be null. as_float expands every format to float32.
// Throws std::bad_alloc.
Matrix pack_matrix(const FormatInfo& format, int64_t rows, int64_t cols, const uint8_t* data, const uint32_t* row_map,
                   bool as_float, Arena& arena, ThreadTeam& team);

// One row of a packed matrix as float32, exactly the values the products use: out[cols].
void unpack_row(const Matrix& w, int64_t row, float* out);

}  // namespace herder
