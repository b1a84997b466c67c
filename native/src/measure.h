// The limits of this machine, measured with the kernels the engine uses.
#pragma once

#include "herder.h"
#include "kernels.h"

namespace herder {

hd_status measure(const Kernels& kernels, int threads, size_t bytes, double seconds, double* bandwidth,
                  double* int8_ops, double* f32_flops, hd_error* err);

}  // namespace herder
