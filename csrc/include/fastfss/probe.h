// What the tests reach of the helpers inside the kernels.
#pragma once

#include <cstdint>

namespace fastfss {

// to[i] = exp(from[i]) by exp.h.
void probe_exp(const float* from, float* to, int64_t count);

namespace portable {
void probe_exp(const float* from, float* to, int64_t count);
}
namespace avx2 {
void probe_exp(const float* from, float* to, int64_t count);
}
namespace avx512 {
void probe_exp(const float* from, float* to, int64_t count);
}

}  // namespace fastfss
