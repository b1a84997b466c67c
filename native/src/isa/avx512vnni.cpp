#define HD_ISA_NAMESPACE isa_avx512vnni
#define HD_VEC_AVX512 1
#define HD_DOT_VNNI 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_avx512vnni() { return isa_avx512vnni::table("avx512vnni"); }
}  // namespace herder
