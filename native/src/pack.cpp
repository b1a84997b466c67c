#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "error.h"
#include "formats/block.h"

namespace herder {
namespace {

constexpr int64_t kRunBytes = 8 << 20;  // of panels that a thread packs one after the other

// Where a panel of bfloat16 has input k of a lane: pairs of inputs lie together.
int64_t bf16_at(int64_t lane, int64_t k) { return (k / 2 * kLanes + lane) * 2 + k % 2; }

}  // namespace

struct Packer {
  const Stored& stored;
  const Matrix& w;
  PackScratch& scratch;

  const uint8_t* source_row(int64_t row) const {
    const auto index = static_cast<size_t>(stored.row_map ? stored.row_map[row] : row);
    return stored.data + index * row_bytes(*stored.format, w.cols);
  }

  void integer_panel(int64_t panel) const {
    const FormatInfo& format = *stored.format;
    const int64_t padded_groups = w.padded_cols / w.group;
    const int per_byte = w.layout == Layout::kByte ? 1 : 2;
    float row_scale[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = panel * kLanes + lane;
      const int64_t cols = row < w.rows ? w.cols : 0, groups = cols / w.group;
      const LaneRow& r = scratch.rows_[lane];
      row_scale[lane] = cols ? format.lane(source_row(row), cols / format.block, r) : 1.0f;
      // padding: codes of the zero level, scale 0
      std::memset(r.codes + cols / per_byte, 0, static_cast<size_t>((w.padded_cols - cols) / per_byte));
      std::fill(r.scale + groups, r.scale + padded_groups, uint16_t{0});
      std::fill(r.minimum + groups, r.minimum + padded_groups, uint16_t{0});
    }
    if (w.row_scale) std::memcpy(w.row_scale + panel * kLanes, row_scale, sizeof row_scale);
    per_byte == 1 ? interleave<16>(panel) : interleave<8>(panel);
  }

  // Sixteen rows, each with `Quads` words of codes a unit, become units of sixteen lanes.
  template <int Quads>
  void interleave(int64_t panel) const {
    uint8_t* out = w.data + static_cast<size_t>(panel) * w.panel_bytes;
    const int groups = w.groups_per_unit();
    for (int64_t unit = 0; unit < w.padded_cols / kUnit; ++unit) {
      auto* scale = reinterpret_cast<uint16_t*>(out);
      auto* minimum = scale + groups * kLanes;
      auto* code = reinterpret_cast<uint32_t*>(out + w.unit_scale_bytes());
      for (int lane = 0; lane < kLanes; ++lane) {
        const LaneRow& r = scratch.rows_[lane];
        for (int g = 0; g < groups; ++g) scale[g * kLanes + lane] = r.scale[unit * groups + g];
        if (w.has_min)
          for (int g = 0; g < groups; ++g) minimum[g * kLanes + lane] = r.minimum[unit * groups + g];
        const uint8_t* c = r.codes + unit * (4 * Quads);
        for (int q = 0; q < Quads; ++q) std::memcpy(code + q * kLanes + lane, c + 4 * q, 4);
      }
      out += w.unit_bytes();
    }
  }

  template <class Word>
  void float_panel(int64_t panel) const {
    const FormatInfo& format = *stored.format;
    auto* out = reinterpret_cast<Word*>(w.data + static_cast<size_t>(panel) * w.panel_bytes);
    if (stored.turned) return turned_panel(panel, out);
    float* expanded = scratch.floats_.get();
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = panel * kLanes + lane;
      if (row >= w.rows) continue;  // the memory is zeroed
      if (as_stored<Word>()) {
        std::memcpy(expanded, source_row(row),
                    static_cast<size_t>(w.cols) * sizeof(Word));  // the file may be unaligned
      } else {
        format.expand(source_row(row), w.cols / format.block, expanded);
      }
      const Word* words = reinterpret_cast<const Word*>(expanded);
      for (int64_t k = 0; k < w.cols; ++k) put(out, lane, k, words[k]);
    }
  }

  // Sixteen rows of a transposed matrix lie side by side, just as the panel wants them.
  template <class Word>
  void turned_panel(int64_t panel, Word* out) const {
    const FormatInfo& format = *stored.format;
    const auto size = static_cast<size_t>(format.bytes);
    const int64_t lanes = std::min<int64_t>(kLanes, w.rows - panel * kLanes);
    const uint8_t* source = stored.data + static_cast<size_t>(panel * kLanes) * size;
    Word words[kLanes];
    for (int64_t k = 0; k < w.cols; ++k, source += static_cast<size_t>(stored.turned) * size) {
      if (as_stored<Word>()) {
        std::memcpy(words, source, static_cast<size_t>(lanes) * size);
      } else {
        format.expand(source, lanes, reinterpret_cast<float*>(words));
      }
      for (int64_t lane = 0; lane < lanes; ++lane) put(out, lane, k, words[lane]);
    }
  }

  template <class Word>
  void put(Word* out, int64_t lane, int64_t k, Word word) const {
    if constexpr (sizeof(Word) == 2)
      if (w.layout == Layout::kBF16) {
        out[bf16_at(lane, k)] = keep_bf16(word);
        return;
      }
    out[k * kLanes + lane] = word;
  }

  template <class Word>
  bool as_stored() const {
    return stored.format->block == 1 && static_cast<size_t>(stored.format->bytes) == sizeof(Word);
  }
};

size_t Stored::span(int64_t rows, int64_t cols) const {
  if (!turned) return static_cast<size_t>(rows) * row_bytes(*format, cols);
  return static_cast<size_t>((cols - 1) * turned + rows) * static_cast<size_t>(format->bytes);
}

Matrix plan_matrix(const FormatInfo& format, int64_t rows, int64_t cols, bool as_float) {
  Matrix w;
  w.rows = rows;
  w.cols = cols;
  w.panels = pad_to(rows, kLanes) / kLanes;
  if (as_float || format.bits == 0) {
    w.layout = as_float || format.id == HD_F32 ? Layout::kF32 : format.id == HD_F16 ? Layout::kF16 : Layout::kBF16;
    w.padded_cols = w.layout == Layout::kBF16 ? pad_to(cols, kRoundedBlock) : cols;
    w.panel_bytes = static_cast<size_t>(w.padded_cols) * kLanes * (w.layout == Layout::kF32 ? 4 : 2);
  } else {
    w.layout = format.bits == 8 ? Layout::kByte : format.table ? Layout::kNibbleTable : Layout::kNibble;
    w.group = format.lane_group;
    w.has_min = format.has_min;
    w.scaled_rows = !has_half_scales(format.id);
    w.zero = format.table ? 128 : format.lane_zero;
    if (format.table) std::memcpy(w.table, format.table, 16);
    w.padded_cols = pad_to(cols, kUnit);
    w.panel_bytes = static_cast<size_t>(w.padded_cols / kUnit) * w.unit_bytes();
  }
  return w;
}

hd_status plan_checked(int32_t format, int64_t rows, int64_t cols, bool as_float, Matrix* w, hd_error* err) {
  const FormatInfo* info = format_info(format);
  const size_t stored = info && rows > 0 && cols > 0 && rows < (1 << 30) && cols < (1 << 30)
                            ? static_cast<size_t>(rows) * row_bytes(*info, cols)
                            : 0;  // which check_storage refuses
  if (const hd_status s = check_storage(format, rows, cols, stored, &info, err)) return s;
  *w = plan_matrix(*info, rows, cols, as_float);
  return HD_OK;
}

size_t packed_bytes(const Matrix& w) {
  const auto panels = static_cast<size_t>(w.panels);
  const size_t bytes = panels * w.panel_bytes + (w.scaled_rows ? panels * kLanes * sizeof(float) : 0);
  return (bytes + 63) & ~size_t{63};
}

void place(Matrix& w, uint8_t* memory) {
  w.data = memory;
  if (w.scaled_rows) w.row_scale = reinterpret_cast<float*>(memory + static_cast<size_t>(w.panels) * w.panel_bytes);
}

PackScratch::PackScratch(int64_t cols) {
  const auto width = static_cast<size_t>(pad_to(cols, kUnit)), groups = width / 16;
  codes_ = std::make_unique_for_overwrite<uint8_t[]>(kLanes * width);
  halves_ = std::make_unique_for_overwrite<uint16_t[]>(kLanes * 2 * groups);
  floats_ = std::make_unique_for_overwrite<float[]>(width);  // a row expanded, or the exact scales of the row at hand
  for (size_t lane = 0; lane < kLanes; ++lane) {
    uint16_t* halves = halves_.get() + lane * 2 * groups;
    rows_[lane] = {codes_.get() + lane * width, halves, halves + groups, floats_.get(), floats_.get() + groups};
  }
}

void pack_panel(const Stored& stored, const Matrix& w, int64_t panel, PackScratch& scratch) {
  const Packer packer{stored, w, scratch};
  if (w.integer()) {
    packer.integer_panel(panel);
  } else if (w.layout == Layout::kF32) {
    packer.float_panel<float>(panel);
  } else {
    packer.float_panel<uint16_t>(panel);
  }
}

void pack_panels(const Stored& stored, const Matrix& w, ThreadTeam& team) {
  std::vector<PackScratch> scratch;  // allocated here: the threads' body must not throw
  for (int i = 0; i < team.size(); ++i) scratch.emplace_back(w.cols);
  // Runs of whole megabytes: two threads that touch a huge page for the first time together both clear it.
  const auto run = std::clamp<int64_t>(kRunBytes / static_cast<int64_t>(w.panel_bytes), 1,
                                       std::max<int64_t>(w.panels / (4 * team.size()), 1));
  Counter next;
  team.run([&](int thread) {
    for (int64_t begin; (begin = next.take(run)) < w.panels;)
      for (int64_t panel = begin; panel < std::min(begin + run, w.panels); ++panel)
        pack_panel(stored, w, panel, scratch[static_cast<size_t>(thread)]);
  });
}

Matrix pack_matrix(const Stored& stored, int64_t rows, int64_t cols, bool as_float, Arena& arena, ThreadTeam& team) {
  Matrix w = plan_matrix(*stored.format, rows, cols, as_float);
  place(w, arena.allocate(packed_bytes(w)));
  pack_panels(stored, w, team);
  return w;
}

void unpack_row(const Matrix& w, int64_t row, float* out) {
  const int64_t lane = row % kLanes;
  const uint8_t* s = w.data + static_cast<size_t>(row / kLanes) * w.panel_bytes;
  if (!w.integer()) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const int64_t at = k * kLanes + lane;
      const auto* words = reinterpret_cast<const uint16_t*>(s);
      out[k] = w.layout == Layout::kF32   ? reinterpret_cast<const float*>(s)[at]
               : w.layout == Layout::kF16 ? f16_to_f32(words[at])
                                          : bf16_to_f32(words[bf16_at(lane, k)]);
    }
    return;
  }
  const float row_scale = w.row_scale ? w.row_scale[row] : 1.0f;
  const int quads = w.group / 4;
  for (int64_t k = 0; k < w.cols; ++k) {
    const uint8_t* unit = s + static_cast<size_t>(k / kUnit) * w.unit_bytes();
    const int64_t in_unit = k % kUnit, g = in_unit / w.group, quad = in_unit % w.group / 4;
    const auto* scale = reinterpret_cast<const uint16_t*>(unit) + g * kLanes + lane;
    const uint8_t* codes = unit + w.unit_scale_bytes();
    int level;
    if (w.layout == Layout::kByte) {
      level = codes[(g * quads + quad) * 64 + lane * 4 + k % 4] - w.zero;
    } else {
      const bool high = quad >= quads / 2;
      const uint8_t byte = codes[(g * quads / 2 + quad - (high ? quads / 2 : 0)) * 64 + lane * 4 + k % 4];
      const int code = high ? byte >> 4 : byte & 15;
      level = w.layout == Layout::kNibbleTable ? w.table[code] : code - w.zero;
    }
    float value = f16_to_f32(*scale) * static_cast<float>(level);
    if (w.has_min) value += f16_to_f32(scale[w.groups_per_unit() * kLanes]);
    out[k] = value * row_scale;
  }
}

}  // namespace herder
