// Memory behind which lies a page that may not be touched, where sanitizers do not see what is read: tile loads.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "layout.h"
#include "model.h"
#include "test.h"

namespace herder::test {

// Zeroed, 64-byte aligned.
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), used = (bytes + page - 1) / page * page;
    size_ = used + page;
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto* end = static_cast<uint8_t*>(base_) + used;
    CHECK(base_ != MAP_FAILED && mprotect(end, page, PROT_NONE) == 0);
    data_ = end - pad_to(static_cast<int64_t>(bytes), 64);
  }
  ~Guarded() {
    if (base_) munmap(base_, size_);
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }

  uint8_t* data() const { return data_; }

 private:
  void* base_ = nullptr;
  size_t size_ = 0;
  uint8_t* data_ = nullptr;
};

// Prepared activations, with as much memory behind them as their buffer reserved.
class GuardedCopy {
 public:
  explicit GuardedCopy(const QuantizedBuffer& buffer) : buffer_(buffer), memory_(buffer.bytes()) {
    std::memcpy(memory_.data(), buffer.memory.data(), buffer.bytes());
  }

  Activations view() const {
    Activations a = buffer_.view();
    const auto moved = [&](auto* at) {
      return reinterpret_cast<decltype(at)>(memory_.data() +
                                            (reinterpret_cast<const uint8_t*>(at) - buffer_.memory.data()));
    };
    a.q = moved(a.q);
    a.fields = moved(a.fields);
    a.rounded = moved(a.rounded);
    return a;
  }

 private:
  const QuantizedBuffer& buffer_;
  Guarded memory_;
};

}  // namespace herder::test
