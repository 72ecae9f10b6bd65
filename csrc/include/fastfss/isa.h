// The CPU's instruction sets, found at run time.
#pragma once

#include <string>
#include <vector>

namespace fastfss {

enum class Isa : int { kPortable = 0, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The set in use: the best of this CPU, or what set_isa chose.
Isa active_isa();

// The best set that this CPU and operating system run. Asks the kernel for AMX tile state once.
Isa best_isa();

// For tests and measurements; throws std::invalid_argument above best_isa().
void set_isa(Isa isa);

const char* isa_name(Isa isa);

// Names of the CPU's features that matter here, e.g. {"avx2", "avx512f", "avx512_bf16"}.
std::vector<std::string> cpu_features();

}  // namespace fastfss
