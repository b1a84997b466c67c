#include "cpu.h"

#include <sched.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace herder {
namespace {

struct Feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)

struct X86 {
  bool avx2 = false, fma = false, f16c = false, bmi2 = false, avx512 = false, vnni = false, vbmi = false, bf16 = false;
  bool avxvnni = false, amx_int8 = false, amx_bf16 = false;
};

uint64_t xgetbv() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives tile state to a process that asks for it (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 18).
bool request_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

X86 probe() {
  X86 x;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return x;
  const bool osxsave = c >> 27 & 1;
  if (!osxsave) return x;
  const uint64_t xcr0 = xgetbv();
  const bool ymm = (xcr0 & 0x6) == 0x6, zmm = (xcr0 & 0xe6) == 0xe6, tiles = (xcr0 & 0x60000) == 0x60000;
  x.fma = ymm && (c >> 12 & 1);
  x.f16c = ymm && (c >> 29 & 1);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return x;
  const uint32_t subleaves = a;
  x.avx2 = ymm && (b >> 5 & 1);
  x.bmi2 = b >> 8 & 1;
  x.avx512 = zmm && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
  x.vbmi = x.avx512 && (c >> 1 & 1);
  x.vnni = x.avx512 && (c >> 11 & 1);
  const bool tile = tiles && (d >> 24 & 1);
  x.amx_int8 = tile && (d >> 25 & 1);
  x.amx_bf16 = tile && (d >> 22 & 1);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    x.avxvnni = ymm && (a >> 4 & 1);
    x.bf16 = x.avx512 && (a >> 5 & 1);
  }
  return x;
}

const X86& x86() {
  static const X86 x = probe();
  return x;
}

std::vector<Feature> features() {
  const X86& x = x86();
  return {{"avx2", x.avx2},        {"fma", x.fma},           {"f16c", x.f16c},        {"bmi2", x.bmi2},
          {"avx_vnni", x.avxvnni}, {"avx512", x.avx512},     {"avx512_vnni", x.vnni}, {"avx512_vbmi", x.vbmi},
          {"avx512_bf16", x.bf16}, {"amx_int8", x.amx_int8}, {"amx_bf16", x.amx_bf16}};
}

constexpr const char* kArch = "x86_64";

#elif defined(__aarch64__)

std::vector<Feature> features() {
#if defined(__linux__)
  const unsigned long a = getauxval(AT_HWCAP), b = getauxval(AT_HWCAP2);
  return {{"dotprod", (a >> 20 & 1) != 0},
          {"fp16", (a >> 10 & 1) != 0},
          {"i8mm", (b >> 13 & 1) != 0},
          {"bf16", (b >> 14 & 1) != 0}};
#else
  return {{"dotprod", true}, {"fp16", true}};  // every Apple silicon has both
#endif
}

constexpr const char* kArch = "aarch64";

#else

std::vector<Feature> features() { return {}; }
constexpr const char* kArch = "unknown";

#endif

[[maybe_unused]] bool has(const char* name) {
  for (const auto& f : features())
    if (std::strcmp(f.name, name) == 0) return f.present;
  return false;
}

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> list;
#if defined(__x86_64__)
  [[maybe_unused]] const X86& x = x86();
  [[maybe_unused]] const bool base256 = x.avx2 && x.fma && x.f16c && x.bmi2;
  [[maybe_unused]] const bool vnni512 = base256 && x.vnni && x.vbmi && x.bf16;
#if defined(HD_HAVE_AMX)
  if (vnni512 && x.amx_int8 && x.amx_bf16 && request_tiles()) list.push_back(kernels_amx());
#endif
#if defined(HD_HAVE_AVX512VNNI)
  if (vnni512) list.push_back(kernels_avx512vnni());
#endif
#if defined(HD_HAVE_AVXVNNI)
  if (base256 && x.avxvnni && !vnni512) list.push_back(kernels_avxvnni());
#endif
#if defined(HD_HAVE_AVX512)
  if (base256 && x.avx512) list.push_back(kernels_avx512());
#endif
#if defined(HD_HAVE_AVXVNNI)
  if (base256 && x.avxvnni && vnni512) list.push_back(kernels_avxvnni());
#endif
#if defined(HD_HAVE_AVX2)
  if (base256) list.push_back(kernels_avx2());
#endif
#elif defined(__aarch64__)
#if defined(HD_HAVE_I8MM)
  if (has("i8mm") && has("dotprod") && has("fp16") && has("bf16")) list.push_back(kernels_i8mm());
#endif
#if defined(HD_HAVE_DOTPROD)
  if (has("dotprod") && has("fp16")) list.push_back(kernels_dotprod());
#endif
#if defined(HD_HAVE_NEON)
  list.push_back(kernels_neon());
#endif
#endif
  list.push_back(kernels_portable());
  return list;
}

const Kernels* select_kernels(const char* isa) {
  const auto list = usable_kernels();
  if (isa == nullptr) return list.front();
  for (const Kernels* k : list)
    if (std::strcmp(k->isa, isa) == 0) return k;
  return nullptr;
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

std::string cpu_json() {
  const auto list = usable_kernels();
  std::string json = std::string("{\"arch\":\"") + kArch + "\",\"isa\":\"" + list.front()->isa + "\",\"isas\":[";
  for (size_t i = 0; i < list.size(); ++i) json += std::string(i ? "," : "") + "\"" + list[i]->isa + "\"";
  json += "],\"cores\":" + std::to_string(usable_cores()) + ",\"features\":[";
  bool first = true;
  for (const auto& f : features()) {
    if (!f.present) continue;
    json += std::string(first ? "" : ",") + "\"" + f.name + "\"";
    first = false;
  }
  return json + "]}";
}

}  // namespace herder
