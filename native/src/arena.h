// Memory for weights and KV pages: zeroed mappings that ask the kernel for huge pages where they are large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace herder {

// One zeroed anonymous mapping, returned to the system when it goes.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(size_t bytes);  // throws std::bad_alloc when the system refuses
  Mapping(Mapping&& other) noexcept { swap(other); }
  Mapping& operator=(Mapping&& other) noexcept {
    Mapping(std::move(other)).swap(*this);
    return *this;
  }
  ~Mapping();

  uint8_t* data() const { return data_; }  // aligned to a page; to a huge page if it is as large as one
  size_t bytes() const { return bytes_; }  // as asked for

 private:
  void swap(Mapping& other) noexcept;

  void* base_ = nullptr;
  size_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Pieces of large mappings. Throws std::bad_alloc when the system refuses. Never frees single pieces: a model's memory
// goes with the model.
class Arena {
 public:
  // Zeroed, 64-byte aligned.
  uint8_t* allocate(size_t bytes);
  template <class T>
  T* allocate_array(size_t count) {
    return reinterpret_cast<T*>(allocate(count * sizeof(T)));
  }
  size_t used() const { return used_; }

 private:
  std::vector<Mapping> mappings_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
  size_t used_ = 0;
};

}  // namespace herder
