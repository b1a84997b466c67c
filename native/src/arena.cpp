#include "arena.h"

#include <sys/mman.h>

#include <new>

namespace herder {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kBlock = size_t{64} << 20;  // small pieces share blocks; untouched pages of a block cost nothing

}  // namespace

Arena::~Arena() {
  for (const auto& m : mappings_) munmap(m.base, m.bytes);
}

uint8_t* Arena::allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bytes = (bytes + 63) & ~size_t{63};
  if (bytes > left_) {
    const size_t room = bytes > kBlock ? (bytes + kHugePage - 1) & ~(kHugePage - 1) : kBlock;
    void* base =
        mmap(nullptr, room + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    mappings_.push_back({base, room + kHugePage});
    const auto address = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) & ~(uintptr_t{kHugePage} - 1);
    next_ = reinterpret_cast<uint8_t*>(address);
    left_ = room;
#if defined(MADV_HUGEPAGE)
    madvise(next_, room, MADV_HUGEPAGE);  // a hint: where it is not granted, ordinary pages serve
#endif
  }
  uint8_t* piece = next_;
  next_ += bytes;
  left_ -= bytes;
  used_ += bytes;
  return piece;
}

}  // namespace herder
