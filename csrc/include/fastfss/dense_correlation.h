// One layer of dense_correlation: the cosine of every query position with every support position.
// The formula is in fastfss/ops/dense_correlation.py, the algorithm in
// csrc/cpu/dense_correlation.cpp.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss {

struct DenseCorrelationArgs {
  TensorView query;    // [B, C, N] float32 or bfloat16
  TensorView support;  // [B, C, M], the same dtype
  TensorView out;      // [B, N, M], the same dtype, M contiguous: a layer's slice of the stack
  float eps = 1e-5f;
  bool clamp = true;
  int threads = 1;
};

void dense_correlation(const DenseCorrelationArgs& args);

// With emulated AMX tiles; for tests, slow. bfloat16 only.
void dense_correlation_emulated_amx(const DenseCorrelationArgs& args);

namespace portable {
void dense_correlation(const DenseCorrelationArgs& args);
void dense_correlation_emulated_amx(const DenseCorrelationArgs& args);
}  // namespace portable
namespace avx2 {
void dense_correlation(const DenseCorrelationArgs& args);
}
namespace avx512 {
void dense_correlation(const DenseCorrelationArgs& args);
}
namespace avx512_bf16 {
void dense_correlation(const DenseCorrelationArgs& args);
}
namespace amx {
void dense_correlation(const DenseCorrelationArgs& args);
}

}  // namespace fastfss
