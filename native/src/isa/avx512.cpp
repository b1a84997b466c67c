#define HD_ISA_NAMESPACE isa_avx512
#define HD_VEC_AVX512 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_avx512() { return isa_avx512::table("avx512"); }
}  // namespace herder
