#include "arena.h"

#include <sys/mman.h>

#include <new>

namespace herder {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kBlock = size_t{64} << 20;  // small pieces share blocks; untouched pages of a block cost nothing

}  // namespace

Mapping::Mapping(size_t bytes) : bytes_(bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const bool huge = bytes >= kHugePage / 8;  // what is left of the last one is lost: up to 2 MB
  if (huge) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  mapped_ = huge ? bytes + kHugePage : bytes + !bytes;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(base_);
  if (!huge) return;
  data_ += (kHugePage - reinterpret_cast<uintptr_t>(base_) % kHugePage) % kHugePage;
#if defined(MADV_HUGEPAGE)
  madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: where it is not granted, ordinary pages serve
#endif
}

Mapping::~Mapping() {
  if (base_) munmap(base_, mapped_);
}

void Mapping::swap(Mapping& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

uint8_t* Arena::allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bytes = (bytes + 63) & ~size_t{63};
  if (bytes > left_) {
    mappings_.emplace_back(bytes > kBlock ? (bytes + kHugePage - 1) & ~(kHugePage - 1) : kBlock);
    next_ = mappings_.back().data();
    left_ = mappings_.back().bytes();
  }
  uint8_t* piece = next_;
  next_ += bytes;
  left_ -= bytes;
  used_ += bytes;
  return piece;
}

}  // namespace herder
