#include "measure.h"

#include <chrono>
#include <cstring>
#include <new>

#include "arena.h"
#include "error.h"
#include "threads.h"

namespace herder {

hd_status measure(const Kernels& kernels, int threads, size_t bytes, double seconds, double* bandwidth,
                  double* int8_ops, double* f32_flops, hd_error* err) {
  if (bytes < 4096 || !(seconds > 0) || seconds > 60)
    return fail(err, HD_ERR_ARGUMENT, "measure: bytes is %zu and seconds %g: at least 4096, and above 0 up to 60",
                bytes, seconds);
  Arena arena;
  uint8_t* data = arena.allocate(bytes);
  ThreadTeam team(threads);
  const auto n = static_cast<size_t>(threads);
  team.run([&](int t) {
    const size_t begin = bytes / n * static_cast<size_t>(t);
    std::memset(data + begin, t + 1, bytes / n);
  });

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  do {  // the best pass: interruptions only ever slow one down
    const auto pass = Clock::now();
    team.run([&](int t) {
      volatile double sink = kernels.read_pass(data + bytes / n * static_cast<size_t>(t), bytes / n);
      (void)sink;
    });
    const double s = std::chrono::duration<double>(Clock::now() - pass).count();
    best = std::max(best, static_cast<double>(bytes / n * n) / s);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  if (bandwidth) *bandwidth = best;

  std::vector<double> rates(n * 8);
  const auto total = [&](double (*peak)(double)) {
    team.run([&](int t) { rates[static_cast<size_t>(t) * 8] = peak(seconds); });
    double sum = 0;
    for (size_t t = 0; t < n; ++t) sum += rates[t * 8];
    return sum;
  };
  if (int8_ops) *int8_ops = total(kernels.int8_peak);
  if (f32_flops) *f32_flops = total(kernels.f32_peak);
  return HD_OK;
}

}  // namespace herder
