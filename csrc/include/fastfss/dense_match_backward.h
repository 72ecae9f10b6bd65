// The gradient of dense_match_sums; the formulas are in fastfss/ops/_dense_match_backward.py.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss {

struct DenseMatchBackwardArgs {
  TensorView query;             // [B, C, N] float32 or bfloat16
  TensorView key;               // [B, C, M]
  TensorView value;             // [B, D, M]
  TensorView weights;           // [B, M] float32; data null: all ones
  TensorView grad;              // [B, D, N] float32: of the numerator
  TensorView grad_denominator;  // [B, N] float32
  // In the inputs' dtypes and shapes; data null: not wanted.
  TensorView grad_query, grad_key, grad_value;
  float scale = 1.0f;
  float eps = 1e-8f;
  int threads = 1;
};

void dense_match_backward(const DenseMatchBackwardArgs& args);

namespace portable {
void dense_match_backward(const DenseMatchBackwardArgs& args);
}
namespace avx2 {
void dense_match_backward(const DenseMatchBackwardArgs& args);
}
namespace avx512 {
void dense_match_backward(const DenseMatchBackwardArgs& args);
}

}  // namespace fastfss
