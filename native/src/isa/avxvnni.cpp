#define HD_ISA_NAMESPACE isa_avxvnni
#define HD_VEC_AVX2 1
#define HD_DOT_VNNI 1
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_avxvnni() { return isa_avxvnni::table("avxvnni"); }
}  // namespace herder
