#define HD_ISA_NAMESPACE isa_avx2
#define HD_VEC_AVX2 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_avx2() { return isa_avx2::table("avx2"); }
}  // namespace herder
