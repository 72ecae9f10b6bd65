// What the tests and the benchmarks reach of the helpers inside the kernels.
#pragma once

#include <cstdint>

namespace fastfss {

// to[i] = exp(from[i]) by exp.h.
void probe_exp(const float* from, float* to, int64_t count);

// At least `count` multiply-adds in registers, of float32 or, where the set has them, of bfloat16
// pairs: the ceiling of every matrix product. Returns how many; the sum is only there to be
// computed.
int64_t probe_multiply_adds(int64_t count, bool bfloat16, float* sum);

#define FASTFSS_DECLARE_PROBES                                 \
  void probe_exp(const float* from, float* to, int64_t count); \
  int64_t probe_multiply_adds(int64_t count, bool bfloat16, float* sum);

namespace portable {
FASTFSS_DECLARE_PROBES
}
namespace avx2 {
FASTFSS_DECLARE_PROBES
}
namespace avx512 {
FASTFSS_DECLARE_PROBES
}
namespace avx512_bf16 {
FASTFSS_DECLARE_PROBES
}

#undef FASTFSS_DECLARE_PROBES

}  // namespace fastfss
