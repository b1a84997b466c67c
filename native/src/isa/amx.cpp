#define HD_ISA_NAMESPACE isa_amx
#define HD_VEC_AVX512 1
#define HD_DOT_VNNI 1
#define HD_AMX 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_amx() { return isa_amx::table("amx"); }
}  // namespace herder
