// Which experts a token goes to: the largest router logits, and what each counts.
#pragma once

#include "elementwise.h"
#include "kernels.h"

namespace herder::HD_ISA_NAMESPACE {

// The `active` largest of `count` logits, best first; of equal ones the lower number. Weights: softmax over the chosen
// logits (Mixtral; Jiang et al. 2024), or the sigmoid of each (Llama 4). If any logit is NaN or infinite every weight
// is NaN, so that damage shows in the token's results wherever it was routed.
inline void route(const float* logits, int32_t count, int32_t active, hd_router router, int32_t* expert,
                  float* weight) {
  bool finite = true;
  for (int32_t e = 0; e < count; ++e) finite &= __builtin_fabsf(logits[e]) < __builtin_inff();
  for (int32_t k = 0; k < active; ++k) {
    int32_t best = -1;
    for (int32_t e = 0; e < count; ++e) {
      bool taken = false;
      for (int32_t j = 0; j < k; ++j) taken |= expert[j] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    expert[k] = best;
  }
  float sum = 0;
  for (int32_t k = 0; k < active; ++k) {
    const float x = logits[expert[k]];
    weight[k] = router == HD_ROUTER_SIGMOID ? 1.0f / (1.0f + exp_one(-x)) : exp_one(x - logits[expert[0]]);
    sum += weight[k];
  }
  for (int32_t k = 0; k < active; ++k) {
    if (router == HD_ROUTER_SOFTMAX) weight[k] /= sum;
    if (!finite) weight[k] = __builtin_nanf("");
  }
}

}  // namespace herder::HD_ISA_NAMESPACE
