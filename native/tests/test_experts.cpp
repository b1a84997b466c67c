// Experts that are packed when they are first needed, and forgotten where memory for them is limited.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "mixtures.h"
#include "sequence.h"

using namespace herder;
using namespace herder::test;

namespace {

struct Memory {
  int64_t packed = 0, bytes = 0, packings = 0;
  explicit Memory(const hd_model* model) { hd_model_experts(model, &packed, &bytes, &packings); }
};

// The weights' experts in a file, each tensor on pages of its own, as a mapping of it would have them.
class ExpertFile {
 public:
  explicit ExpertFile(const TinyWeights& weights) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::FILE* file = std::tmpfile();
    size_t end = 0;
    for (const auto& t : weights.tensors) {
      if (t.role < HD_EXPERT_GATE || t.role > HD_EXPERT_DOWN) continue;
      at_[{t.role, t.layer, t.expert}] = end;
      end += (t.data.size() + page - 1) / page * page;
    }
    CHECK(file && ftruncate(fileno(file), static_cast<off_t>(end)) == 0);
    for (const auto& t : weights.tensors) {
      const auto found = at_.find({t.role, t.layer, t.expert});
      if (found == at_.end()) continue;
      CHECK(std::fseek(file, static_cast<long>(found->second), SEEK_SET) == 0 &&
            std::fwrite(t.data.data(), t.data.size(), 1, file) == 1);
    }
    std::fflush(file);
    size_ = end;
    base_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ, MAP_SHARED, fileno(file), 0));
    CHECK(base_ != MAP_FAILED);
    std::fclose(file);
  }
  ~ExpertFile() { munmap(base_, size_); }
  ExpertFile(const ExpertFile&) = delete;
  ExpertFile& operator=(const ExpertFile&) = delete;

  void hand(hd_tensor& t) const {
    const auto found = at_.find({t.role, t.layer, t.expert});
    if (found == at_.end()) return;
    t.data = base_ + found->second;
    t.lazy = 1;
  }
  // Whoever touches an expert from now on dies.
  void forbid() const { CHECK(mprotect(base_, size_, PROT_NONE) == 0); }
  void forbid(const TinyWeights& weights, int32_t expert) const {
    for (const auto& t : weights.tensors) {
      const auto found = at_.find({t.role, t.layer, t.expert});
      if (found != at_.end() && t.expert == expert)
        CHECK(mprotect(base_ + found->second, t.data.size(), PROT_NONE) == 0);
    }
  }
  bool can_give_back() const {
    volatile uint8_t touched = base_[0];
    (void)touched;
    return resident() > 0 && madvise(base_, size_, MADV_DONTNEED) == 0 && resident() == 0;
  }
  // Pages of the mapping in memory; -1 where the system does not say.
  int64_t resident() const {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::FILE* maps = std::fopen("/proc/self/smaps", "r");
    if (!maps) return -1;  // no Linux
    char line[512];
    long kilobytes = -1;
    bool ours = false;
    while (std::fgets(line, sizeof line, maps)) {
      unsigned long from = 0, to = 0;
      if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2) ours = from == reinterpret_cast<uintptr_t>(base_);
      if (ours && std::sscanf(line, "Rss: %ld kB", &kilobytes) == 1) break;
    }
    std::fclose(maps);
    return kilobytes * 1024 / static_cast<int64_t>(page);
  }

 private:
  std::map<std::tuple<int32_t, int32_t, int32_t>, size_t> at_;
  uint8_t* base_ = nullptr;
  size_t size_ = 0;
};

TinyWeights::Model build_lazy(const TinyWeights& weights, const ExpertFile& file, int64_t limit, int32_t threads) {
  hd_config config = weights.config(HD_DTYPE_AUTO, threads);
  config.expert_memory = limit;
  return weights.build(nullptr, config, [&](hd_tensor& t) { file.hand(t); });
}

}  // namespace

TEST(an_expert_is_read_when_a_token_first_goes_to_it) {
  TinyWeights weights(48, HD_Q8_0, kMixtral);
  // A router of zeros: every expert's logit is the same, so that all tokens go to experts 0 and 1.
  for (auto& t : weights.tensors)
    if (t.role == HD_ROUTER) std::fill(t.data.begin(), t.data.end(), uint8_t{0});
  const std::vector<int32_t> all = tokens(49, kLength);
  const std::vector<float> expected = reference(weights, all, HD_DTYPE_AUTO);
  const ExpertFile file(weights);
  for (int32_t e = 2; e < kMixtral.experts; ++e) file.forbid(weights, e);
  const auto model = build_lazy(weights, file, 0, 3);
  CHECK(Memory(model.get()).packed == 0 && Memory(model.get()).bytes == 0);
  int64_t before = 0, after = 0;
  hd_model_memory(model.get(), &before, nullptr, nullptr);
  Piece whole = piece(all, 0, kLength, {0, 1});
  check_run(model.get(), {&whole});
  CHECK(same_bits(whole.logits, expected.data()));
  hd_model_memory(model.get(), &after, nullptr, nullptr);
  const Memory held(model.get());
  CHECK(held.packed == 4 && held.packings == 4 && held.bytes > 0 && after - before == held.bytes);
  file.forbid();  // what is packed is not read again
  check_run(model.get(), {&whole});
  CHECK(same_bits(whole.logits, expected.data()));
  CHECK(Memory(model.get()).packings == 4);
}

TEST(pages_of_packed_experts_are_given_back) {
  const TinyWeights weights(50, HD_F32, kMixtral);
  const ExpertFile file(weights);
  if (!file.can_give_back()) {  // QEMU's user mode ignores the advice; other systems have no smaps
    std::puts("     (skipped: needs Linux itself)");
    return;
  }
  const auto model = build_lazy(weights, file, 0, 2);
  Piece whole = piece(tokens(51, kLength), 0, kLength, {0, 1});
  check_run(model.get(), {&whole});
  CHECK(Memory(model.get()).packed == 10);
  // A tenth: around a fault the system maps neighbours too, some of them given back before.
  CHECK(file.resident() < 192);
}

TEST(forgetting_experts_changes_no_bit) {
  for (const TinyShape& tiny : {kMixtral, kLlama4}) {
    const TinyWeights weights(52, HD_Q4_K, tiny);
    const std::vector<int32_t> all = tokens(53, kLength);
    const std::vector<float> expected = reference(weights, all, HD_DTYPE_AUTO);
    const std::vector<float> prompt = reference(weights, all, HD_DTYPE_AUTO, 20);
    const ExpertFile file(weights);
    int64_t one = 0;
    {
      const auto model = build_lazy(weights, file, 0, 2);
      check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
      const Memory all_of_them(model.get());
      CHECK(all_of_them.packings == all_of_them.packed);
      one = all_of_them.bytes / all_of_them.packed;
    }
    for (const int64_t limit : {int64_t{1}, 2 * one, 3 * one + 5}) {
      for (const int32_t threads : {3, 1}) {
        const auto model = build_lazy(weights, file, limit, threads);
        check_chunks(model.get(), all, expected, {17, 1, 2, 12, 9}, true);
        check_chunks(model.get(), all, expected, {1, 1, 1, 38}, false);
        check_chunks(model.get(), all, prompt, {1, 15}, true, 20);
        const Memory held(model.get());
        CHECK(held.packings > held.packed && held.packed >= 1);
        CHECK(held.bytes <= std::max(limit, one));
      }
    }
  }
}

#if !defined(HERDER_SANITIZED) && defined(__linux__)
TEST(a_batch_without_memory_for_its_experts_fails_alone) {
  const TinyWeights weights(55, HD_Q8_0, kMixtral);
  const ExpertFile file(weights);
  const auto model = build_lazy(weights, file, 1, 2);  // forgets every expert before it packs the next
  Piece p = piece(tokens(56, 1), 0, 1, {0});
  check_run(model.get(), {&p});
  const std::vector<float> expected = p.logits;
  rlimit before{};
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  const rlimit none = {1, before.rlim_max};
  hd_error err{};
  CHECK(setrlimit(RLIMIT_AS, &none) == 0);
  const bool limited = mmap(nullptr, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
  const hd_status status = run(model.get(), {&p}, &err);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  if (!limited) {  // QEMU's user mode ignores the limit
    std::puts("     (skipped: needs Linux itself)");
    return;
  }
  CHECK(status == HD_ERR_MEMORY && std::strstr(err.message, "no memory for the experts of layer 0"));
  check_run(model.get(), {&p});
  CHECK(same_bits(p.logits, expected.data()));
}
#endif

TEST_MAIN
