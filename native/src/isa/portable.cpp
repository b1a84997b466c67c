#define HD_ISA_NAMESPACE isa_portable
#include "kernel_table.h"

namespace herder {
const Kernels* kernels_portable() { return isa_portable::table("portable"); }
}  // namespace herder
