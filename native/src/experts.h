// The experts of a model: packed when a token is first routed to them, forgotten when memory for them runs out.
#pragma once

#include <cstdint>
#include <vector>

#include "arena.h"
#include "layout.h"
#include "pack.h"
#include "threads.h"

namespace herder {

enum class ExpertPart : int32_t { kGate, kUp, kDown };

struct Expert {
  Matrix part[3];         // by ExpertPart; a lazy one's data is null while it is not packed
  Stored stored[3];       // of lazy parts; format is null for those packed at once
  size_t lazy_bytes = 0;  // what the lazy parts take when packed

  const Matrix& operator[](ExpertPart p) const { return part[static_cast<size_t>(p)]; }
  bool packed() const { return part[0].data && part[1].data && part[2].data; }
  bool known(size_t p) const { return part[p].data || stored[p].format; }

 private:
  friend class ExpertStore;
  Mapping memory;     // of the lazy parts
  uint64_t used = 0;  // when a batch last needed it
};

class ExpertStore {
 public:
  // limit: bytes that lazy experts may take together, 0 for no limit.
  void create(int32_t layers, int32_t experts, size_t limit);

  Expert& at(int32_t layer, int32_t expert) {
    return experts_[static_cast<size_t>(layer) * static_cast<size_t>(per_layer_) + static_cast<size_t>(expert)];
  }
  const Expert& at(int32_t layer, int32_t expert) const { return const_cast<ExpertStore*>(this)->at(layer, expert); }
  size_t limit() const { return limit_; }

  // Notes where a part lies, to be packed later. w: as plan_matrix made it.
  void add_lazy(Expert& expert, ExpertPart part, const Matrix& w, const Stored& stored);
  // After the last part: room for the packing threads' work.
  void finish(int threads);

  bool lazy() const { return most_cols_ > 0; }
  // One thread: the given experts of a layer are needed now; none of them is forgotten before the next call.
  void use(int32_t layer, const std::vector<int32_t>& experts);
  // The same thread, while no other looks at experts: makes room for those not packed yet, forgetting others, longest
  // unused first, where the limit asks for it. Then every thread calls pack(), and after a barrier one release().
  // Throws std::bad_alloc.
  void make_room(int32_t layer, const std::vector<int32_t>& experts);
  void pack(int thread);
  void release();  // gives the packed experts' pages of the mapped file back to the system

  int64_t packed() const { return packed_; }
  size_t bytes() const { return bytes_; }
  int64_t packings() const { return packings_; }

 private:
  struct Job {
    Matrix* w;
    const Stored* stored;
    int64_t first;  // of its panels among those of all jobs
  };
  void evict(size_t room);
  void forget(Expert& expert);

  std::vector<Expert> experts_;
  int32_t per_layer_ = 0;
  size_t limit_ = 0, bytes_ = 0;
  int64_t packed_ = 0, packings_ = 0, most_cols_ = 0;
  uint64_t clock_ = 0;
  std::vector<Expert*> missing_;
  std::vector<Job> jobs_;
  int64_t panels_ = 0;
  Counter next_;
  std::vector<PackScratch> scratch_;
};

}  // namespace herder
