// Storage format -> compute layout (layout.h).
#pragma once

#include <memory>

#include "arena.h"
#include "formats/lane.h"
#include "formats/registry.h"
#include "layout.h"
#include "threads.h"

namespace herder {

// A matrix as its file holds it. row_map: null, or the stored row of each row. turned: 0, or the matrix is stored as
// its transpose, with this many values from one stored row to the next (float formats only, without a row_map).
struct Stored {
  const FormatInfo* format = nullptr;
  const uint8_t* data = nullptr;
  const uint32_t* row_map = nullptr;
  int64_t turned = 0;

  // From the first stored byte of a rows x cols matrix to behind the last.
  size_t span(int64_t rows, int64_t cols) const;
};

// The layout that rows x cols of a format take: everything of a Matrix but its memory. as_float: always float32.
Matrix plan_matrix(const FormatInfo& format, int64_t rows, int64_t cols, bool as_float);

// Bytes of a planned matrix, a multiple of 64; place() puts it at memory: zeroed, 64-byte aligned.
size_t packed_bytes(const Matrix& w);
void place(Matrix& w, uint8_t* memory);

// What one thread needs while it packs matrices of up to `cols` inputs. Throws std::bad_alloc.
class PackScratch {
 public:
  explicit PackScratch(int64_t cols);

 private:
  friend struct Packer;
  LaneRow rows_[kLanes];
  std::unique_ptr<uint8_t[]> codes_;
  std::unique_ptr<uint16_t[]> halves_;
  std::unique_ptr<float[]> floats_;
};

// Packs one panel of a placed matrix. Panels may be packed in any order, by any thread.
void pack_panel(const Stored& stored, const Matrix& w, int64_t panel, PackScratch& scratch);

// All of it, by all threads, into the arena. Throws std::bad_alloc.
Matrix pack_matrix(const Stored& stored, int64_t rows, int64_t cols, bool as_float, Arena& arena, ThreadTeam& team);

// One row of a packed matrix as float32, exactly the values the products use: out[cols].
void unpack_row(const Matrix& w, int64_t row, float* out);

}  // namespace herder
