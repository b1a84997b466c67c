#define HD_ISA_NAMESPACE isa_dotprod
#define HD_VEC_NEON 1
#define HD_DOT_SDOT 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_dotprod() { return isa_dotprod::table("dotprod"); }
}  // namespace herder
