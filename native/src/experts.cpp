#include "experts.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace herder {
namespace {

// The whole pages of a mapped range, or none.
void advise(const uint8_t* data, size_t bytes, int advice) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

void ExpertStore::create(int32_t layers, int32_t experts, size_t limit) {
  experts_.resize(static_cast<size_t>(layers) * static_cast<size_t>(experts));
  per_layer_ = experts;
  limit_ = limit;
}

void ExpertStore::add_lazy(Expert& expert, ExpertPart part, const Matrix& w, const Stored& stored) {
  expert.part[static_cast<size_t>(part)] = w;
  expert.stored[static_cast<size_t>(part)] = stored;
  expert.lazy_bytes += packed_bytes(w);
  most_cols_ = std::max(most_cols_, w.cols);
}

void ExpertStore::finish(int threads) {
  if (!most_cols_) return;
  for (int i = 0; i < threads; ++i) scratch_.emplace_back(most_cols_);
  missing_.reserve(static_cast<size_t>(per_layer_));
  jobs_.reserve(3 * static_cast<size_t>(per_layer_));
}

void ExpertStore::use(int32_t layer, const std::vector<int32_t>& experts) {
  ++clock_;
  for (const int32_t e : experts) at(layer, e).used = clock_;
}

void ExpertStore::make_room(int32_t layer, const std::vector<int32_t>& experts) {
  missing_.clear();
  jobs_.clear();
  size_t room = 0;
  for (const int32_t e : experts) {
    Expert& expert = at(layer, e);
    if (expert.packed()) continue;
    missing_.push_back(&expert);
    room += expert.lazy_bytes;
  }
  evict(room);
  for (Expert* expert : missing_) expert->memory = Mapping(expert->lazy_bytes);  // all, before one counts as packed
  panels_ = 0;
  for (Expert* expert : missing_) {
    uint8_t* memory = expert->memory.data();
    for (size_t p = 0; p < 3; ++p) {
      if (!expert->stored[p].format) continue;
      Matrix& w = expert->part[p];
      place(w, memory);
      memory += packed_bytes(w);
      jobs_.push_back({&w, &expert->stored[p], panels_});
      panels_ += w.panels;
#if defined(MADV_WILLNEED)
      advise(expert->stored[p].data, expert->stored[p].span(w.rows, w.cols), MADV_WILLNEED);
#endif
    }
    bytes_ += expert->lazy_bytes;
    ++packed_;
    ++packings_;
  }
  next_.reset();
}

void ExpertStore::pack(int thread) {
  size_t job = 0;
  for (int64_t panel; (panel = next_.take(1)) < panels_;) {
    while (job + 1 < jobs_.size() && jobs_[job + 1].first <= panel) ++job;
    const Job& j = jobs_[job];
    pack_panel(*j.stored, *j.w, panel - j.first, scratch_[static_cast<size_t>(thread)]);
  }
}

void ExpertStore::release() {
#if defined(MADV_DONTNEED)
  for (const Job& j : jobs_) advise(j.stored->data, j.stored->span(j.w->rows, j.w->cols), MADV_DONTNEED);
#endif
}

void ExpertStore::evict(size_t room) {
  while (limit_ && bytes_ && bytes_ + room > limit_) {
    Expert* oldest = nullptr;
    for (Expert& e : experts_)
      if (e.packed() && e.memory.data() && e.used < clock_ && (!oldest || e.used < oldest->used)) oldest = &e;
    if (!oldest) return;  // what is left is wanted now
    forget(*oldest);
  }
}

void ExpertStore::forget(Expert& expert) {
  for (size_t p = 0; p < 3; ++p) {
    if (!expert.stored[p].format) continue;
    expert.part[p].data = nullptr;
    expert.part[p].row_scale = nullptr;
  }
  expert.memory = Mapping();
  bytes_ -= expert.lazy_bytes;
  --packed_;
}

}  // namespace herder
