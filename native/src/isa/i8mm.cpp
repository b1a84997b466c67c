#define HD_ISA_NAMESPACE isa_i8mm
#define HD_VEC_NEON 1
#define HD_DOT_USDOT 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_i8mm() { return isa_i8mm::table("i8mm"); }
}  // namespace herder
