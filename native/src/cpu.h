// What this processor can do, and which of the compiled kernels it runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace herder {

// Kernel tables compiled in that this CPU (and operating system) can run, best first. Never empty.
std::vector<const Kernels*> usable_kernels();

// The table called `isa`, or the best when isa is null; null if that one is unknown or cannot run here.
const Kernels* select_kernels(const char* isa);

// Cores this process may run on.
int usable_cores();

// {"arch":..,"isa":..,"isas":[..],"cores":..,"features":[..]}
std::string cpu_json();

}  // namespace herder
