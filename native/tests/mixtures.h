// Tiny mixtures of experts.
#pragma once

#include "tiny_model.h"

namespace herder::test {

inline const TinyShape kMixtral = {
    .layers = {{.rope = 1, .experts = 1}, {.window = 20, .experts = 1}}, .experts = 5, .active = 2, .expert_ffn = 256};
inline const TinyShape kLlama4 = {.layers = {{.rope = 1, .experts = 1}, {.window = 20}},
                                  .experts = 20,
                                  .active = 1,
                                  .expert_ffn = 256,
                                  .shared_ffn = 512,
                                  .router = HD_ROUTER_SIGMOID};

}  // namespace herder::test
