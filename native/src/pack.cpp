#include "pack.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "formats/block.h"

namespace herder {
namespace {

// The formats whose scales are float16 in the file keep them bit for bit; the others (products of scales) are rounded
// to float16 after a power of two per row brought them into range.
bool scales_are_f16(int32_t id) {
  switch (id) {
    case HD_Q4_0:
    case HD_Q4_1:
    case HD_Q5_0:
    case HD_Q5_1:
    case HD_Q8_0:
    case HD_IQ4_NL:
      return true;
    default:
      return false;
  }
}

struct RowCodes {  // one row, taken apart
  std::unique_ptr<uint8_t[]> code;
  std::unique_ptr<float[]> scale, minimum;
};

struct Packer {
  const FormatInfo& format;
  Matrix& w;
  const uint8_t* data;
  const uint32_t* row_map;
  bool exact_scales;

  const uint8_t* source_row(int64_t row) const {
    return data + static_cast<size_t>(row_map ? row_map[row] : row) * row_bytes(format, w.cols);
  }

  void integer_panel(int64_t panel, RowCodes* rows) const {
    const int64_t groups = w.padded_cols / w.group;
    float row_scale[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = panel * kLanes + lane;
      RowCodes& r = rows[lane];
      row_scale[lane] = 1.0f;
      // padding: codes of the zero level, scale 0
      const int64_t real_groups = row < w.rows ? w.cols / w.group : 0;
      if (row < w.rows) {
        const uint8_t* s = source_row(row);
        const int per_block = format.block / format.group;
        for (int64_t b = 0; b < w.cols / format.block; ++b, s += format.bytes)
          format.unpack(s, r.code.get() + b * format.block, r.scale.get() + b * per_block,
                        w.has_min ? r.minimum.get() + b * per_block : nullptr);
      }
      std::memset(r.code.get() + real_groups * w.group, 0, static_cast<size_t>((groups - real_groups) * w.group));
      for (int64_t g = real_groups; g < groups; ++g) r.scale[g] = r.minimum[g] = 0;
      if (!exact_scales) row_scale[lane] = normalize(r, real_groups);
    }
    if (w.row_scale) std::memcpy(w.row_scale + panel * kLanes, row_scale, sizeof row_scale);
    write_panel(panel, rows);
  }

  // Brings the largest scale or minimum of the row to [2^13, 2^14): float16 then holds 27 binades below it as normal
  // numbers. Returns the power of two that undoes it.
  float normalize(RowCodes& r, int64_t groups) const {
    float largest = 0;
    for (int64_t g = 0; g < groups; ++g) {
      largest = std::fmax(largest, std::fabs(r.scale[g]));
      if (w.has_min) largest = std::fmax(largest, std::fabs(r.minimum[g]));
    }
    if (!(largest > 0) || !std::isfinite(largest)) return 1.0f;
    int exponent;
    std::frexp(largest, &exponent);
    if (exponent < -100) exponent = -100;  // keeps both powers normal; such a row is zero for all purposes
    const float up = std::ldexp(1.0f, 14 - exponent);
    for (int64_t g = 0; g < groups; ++g) {
      r.scale[g] *= up;
      if (w.has_min) r.minimum[g] *= up;
    }
    return std::ldexp(1.0f, exponent - 14);
  }

  void write_panel(int64_t panel, const RowCodes* rows) const {
    uint8_t* out = w.data + static_cast<size_t>(panel) * w.panel_bytes;
    const int groups = w.groups_per_unit(), quads = w.group / 4;
    for (int64_t unit = 0; unit < w.padded_cols / kUnit; ++unit) {
      auto* scale = reinterpret_cast<uint16_t*>(out);
      auto* minimum = scale + groups * kLanes;
      auto* code = reinterpret_cast<uint32_t*>(out + w.unit_scale_bytes());
      for (int g = 0; g < groups; ++g) {
        for (int lane = 0; lane < kLanes; ++lane) {
          scale[g * kLanes + lane] = f32_to_f16(rows[lane].scale[unit * groups + g]);
          if (w.has_min) minimum[g * kLanes + lane] = f32_to_f16(rows[lane].minimum[unit * groups + g]);
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint8_t* c = rows[lane].code.get() + unit * kUnit;
        uint32_t* o = code + lane;
        if (w.layout == Layout::kByte) {
          for (int q = 0; q < kUnit / 4; ++q) std::memcpy(o + q * kLanes, c + 4 * q, 4);
          continue;
        }
        for (int g = 0; g < groups; ++g) {
          for (int i = 0; i < quads / 2; ++i) {
            uint32_t low, high;
            std::memcpy(&low, c + g * w.group + 4 * i, 4);
            std::memcpy(&high, c + g * w.group + 4 * (i + quads / 2), 4);
            o[(g * quads / 2 + i) * kLanes] = low | high << 4;
          }
        }
      }
      out += w.unit_bytes();
    }
  }

  template <class Word>
  void float_panel(int64_t panel, float* expanded) const {
    auto* out = reinterpret_cast<Word*>(w.data + static_cast<size_t>(panel) * w.panel_bytes);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = panel * kLanes + lane;
      if (row >= w.rows) continue;  // the arena is zeroed
      const Word* words;
      if (format.block == 1 && static_cast<size_t>(format.bytes) == sizeof(Word)) {
        words = reinterpret_cast<const Word*>(expanded);
        std::memcpy(expanded, source_row(row),
                    static_cast<size_t>(w.cols) * sizeof(Word));  // the file may be unaligned
      } else {
        format.expand(source_row(row), w.cols / format.block, expanded);
        words = reinterpret_cast<const Word*>(expanded);
      }
      for (int64_t k = 0; k < w.cols; ++k) out[k * kLanes + lane] = words[k];
    }
  }
};

}  // namespace

Matrix pack_matrix(const FormatInfo& format, int64_t rows, int64_t cols, const uint8_t* data, const uint32_t* row_map,
                   bool as_float, Arena& arena, ThreadTeam& team) {
  Matrix w;
  w.rows = rows;
  w.cols = cols;
  w.panels = pad_to(rows, kLanes) / kLanes;
  if (as_float || format.bits == 0) {
    w.layout = as_float || format.id == HD_F32 ? Layout::kF32 : format.id == HD_F16 ? Layout::kF16 : Layout::kBF16;
    w.padded_cols = cols;
    w.panel_bytes = static_cast<size_t>(cols) * kLanes * (w.layout == Layout::kF32 ? 4 : 2);
  } else {
    w.layout = format.bits == 8 ? Layout::kByte : format.table ? Layout::kNibbleTable : Layout::kNibble;
    w.group = format.group;
    w.has_min = format.has_min;
    w.zero = format.table ? 128 : format.zero;
    if (format.table) std::memcpy(w.table, format.table, 16);
    w.padded_cols = pad_to(cols, kUnit);
    w.panel_bytes = static_cast<size_t>(w.padded_cols / kUnit) * w.unit_bytes();
    if (!scales_are_f16(format.id)) w.row_scale = arena.allocate_array<float>(static_cast<size_t>(w.panels) * kLanes);
  }
  w.data = arena.allocate(static_cast<size_t>(w.panels) * w.panel_bytes);

  const Packer packer{format, w, data, row_map, w.row_scale == nullptr};
  const size_t width = static_cast<size_t>(w.padded_cols);
  struct Scratch {
    RowCodes rows[kLanes];
    std::unique_ptr<float[]> expanded;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(team.size()));
  for (auto& s : scratch) {  // allocated here: the threads' body must not throw
    if (!w.integer()) {
      s.expanded = std::make_unique_for_overwrite<float[]>(width);
      continue;
    }
    for (auto& r : s.rows) {
      r.code = std::make_unique_for_overwrite<uint8_t[]>(width);
      r.scale = std::make_unique<float[]>(width / static_cast<size_t>(w.group));
      r.minimum = std::make_unique<float[]>(width / static_cast<size_t>(w.group));
    }
  }
  Counter next;
  team.run([&](int thread) {
    Scratch& s = scratch[static_cast<size_t>(thread)];
    for (int64_t panel; (panel = next.take(1)) < w.panels;) {
      if (w.integer()) {
        packer.integer_panel(panel, s.rows);
      } else if (w.layout == Layout::kF32) {
        packer.float_panel<float>(panel, s.expanded.get());
      } else {
        packer.float_panel<uint16_t>(panel, s.expanded.get());
      }
    }
  });
  return w;
}

void unpack_row(const Matrix& w, int64_t row, float* out) {
  const int64_t lane = row % kLanes;
  const uint8_t* s = w.data + static_cast<size_t>(row / kLanes) * w.panel_bytes;
  if (!w.integer()) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const int64_t at = k * kLanes + lane;
      if (w.layout == Layout::kF32) {
        out[k] = reinterpret_cast<const float*>(s)[at];
      } else {
        const uint16_t word = reinterpret_cast<const uint16_t*>(s)[at];
        out[k] = w.layout == Layout::kF16 ? f16_to_f32(word) : bf16_to_f32(word);
      }
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
