#include "fastfss/probe.h"

#include "fastfss/exp.h"

namespace fastfss::FASTFSS_ISA {

void probe_exp(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int here = static_cast<int>(count - i < kWidth ? count - i : kWidth);
    store_first(to + i, exp(load_first(from + i, here)), here);
  }
}

}  // namespace fastfss::FASTFSS_ISA
