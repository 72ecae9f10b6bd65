// Scaled cosine scores of every position with prototypes; csrc/cpu/prototype_match.cpp.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss {

struct PrototypeMatch {
  TensorView features;    // [B, C, h, w], float32 or bfloat16
  TensorView prototypes;  // [B, P, C], or [B, P, C, h, w] in the features' layout; their dtype
  bool channels_last;
  float scale, eps;
  TensorView scores;  // [B, P, h, w], contiguous, their dtype
  TensorView norms;   // [B, 1, h, w], or [B, 1 + P, h, w]: |x|, then |y|; contiguous, float32
  int threads;
};

struct PrototypeMatchBackward {
  PrototypeMatch forward;      // with its results
  TensorView grad;             // [B, P, h, w], contiguous, of the features' dtype
  TensorView grad_features;    // in the features' layout; no data: not wanted
  TensorView grad_prototypes;  // [B, P, C] contiguous, or [B, P, C, h, w] in that layout; likewise
};

void prototype_match(const PrototypeMatch& call);
void prototype_match_backward(const PrototypeMatchBackward& call);

// The code for each instruction set; the functions above choose.
namespace portable {
void prototype_match(const PrototypeMatch& call);
void prototype_match_backward(const PrototypeMatchBackward& call);
}  // namespace portable
namespace avx2 {
void prototype_match(const PrototypeMatch& call);
void prototype_match_backward(const PrototypeMatchBackward& call);
}  // namespace avx2
namespace avx512 {
void prototype_match(const PrototypeMatch& call);
void prototype_match_backward(const PrototypeMatchBackward& call);
}  // namespace avx512

}  // namespace fastfss
