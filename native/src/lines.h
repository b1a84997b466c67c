// Memory that is going to be read, asked for a few lines at a time while something else is computed.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "vec.h"

namespace herder::HD_ISA_NAMESPACE {

struct Lines {
  const uint8_t *at, *end;

  // Asks for some of it, into the second-level cache.
  HD_INLINE void ask(int64_t lines) {
    for (; lines > 0 && at < end; --lines, at += 64) _mm_prefetch(reinterpret_cast<const char *>(at), _MM_HINT_T1);
  }
  int64_t count() const { return (end - at + 63) / 64; }
};

}  // namespace herder::HD_ISA_NAMESPACE
