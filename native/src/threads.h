// Persistent threads that run one function together, and the barrier they meet at.
//
// A forward pass is one function run by every thread, with a barrier after each phase. Workers spin for a moment after
// a pass (the next token is usually microseconds away), then sleep until the next one, so an idle engine costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace herder {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

class ThreadTeam {
 public:
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }
  Barrier& barrier() { return barrier_; }

  // Runs body(thread) on every thread, the caller being thread 0, and returns when all have. body must not throw.
  void run(const std::function<void(int)>& body);

 private:
  void work(int thread);

  Barrier barrier_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> quit_{false};
};

// Hands out the numbers 0..count-1 in runs of `step` to whichever thread asks. Which thread computes what never changes
// a result: every output is computed by one thread, in one order.
class Counter {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  int64_t take(int64_t step) { return next_.fetch_add(step, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace herder
