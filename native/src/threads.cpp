#include "threads.h"

namespace herder {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int64_t kBusySpins = 100;  // a few microseconds: how long a phase's last thread usually keeps the others
constexpr int64_t kIdleSpins =
    300;  // then yields, about 50 microseconds: longer than the gap between two tokens' passes

// Waits while `waiting()`: at first without letting go of the core, then giving way to whoever else wants it (there may
// be more threads than cores, or another program). Returns false after `limit` rounds; limit < 0: never.
template <class Waiting>
bool spin(Waiting waiting, int64_t limit) {
  for (int64_t i = 0; waiting(); ++i) {
    if (limit >= 0 && i >= limit) return false;
    if (i < kBusySpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

}  // namespace

void Barrier::wait() {
  if (threads_ == 1) return;
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  spin([&] { return generation_.load(std::memory_order_acquire) == generation; }, -1);
}

ThreadTeam::ThreadTeam(int threads) : barrier_(threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadTeam::~ThreadTeam() {
  quit_.store(true, std::memory_order_relaxed);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadTeam::run(const std::function<void(int)>& body) {
  body_ = &body;
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  body(0);
  spin([&] { return running_.load(std::memory_order_acquire) != 0; }, -1);
}

void ThreadTeam::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto idle = [&] { return started_.load(std::memory_order_acquire) == seen; };
    if (!spin(idle, kIdleSpins)) {
      while (idle()) started_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (quit_.load(std::memory_order_relaxed)) return;
    (*body_)(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace herder
