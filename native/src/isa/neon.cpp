#define HD_ISA_NAMESPACE isa_neon
#define HD_VEC_NEON 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_neon() { return isa_neon::table("neon"); }
}  // namespace herder
