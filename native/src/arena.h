// Memory for weights and KV pages: large zeroed mappings that ask the kernel for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace herder {

// Throws std::bad_alloc when the system refuses. Never frees single pieces: a model's memory goes with the model.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Zeroed, 64-byte aligned.
  uint8_t* allocate(size_t bytes);
  template <class T>
  T* allocate_array(size_t count) {
    return reinterpret_cast<T*>(allocate(count * sizeof(T)));
  }
  size_t used() const { return used_; }

 private:
  struct Mapping {
    void* base;
    size_t bytes;
  };
  std::vector<Mapping> mappings_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
  size_t used_ = 0;
};

}  // namespace herder
