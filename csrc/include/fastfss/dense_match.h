// dense_match and dense_match_sums: every query position against every key position, reduced on the
// fly. The formulas are in fastfss/ops/dense_match.py, the algorithm in csrc/cpu/dense_match.cpp.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss {

enum class MatchReduce : int { kSoftmax = 0, kMax, kSums };

struct DenseMatchArgs {
  TensorView query;  // [B, C, N] float32 or bfloat16
  TensorView key;    // [B, C, M], the same dtype
  TensorView value;  // [B, D, M], the same dtype; data null for kMax
  TensorView mask;   // [B, M] float32; data null: all ones
  // kSoftmax [B, D, N] in the query's dtype; kMax [B, N] and kSums [B, D, N] float32
  TensorView out;
  TensorView denominator;  // kSums: [B, N] float32; else data null
  float scale = 1.0f;
  float eps = 1e-8f;
  bool normalize = true;
  MatchReduce reduce = MatchReduce::kSoftmax;
  int threads = 1;
};

// With emulated AMX tiles; for tests, slow. bfloat16 only.
void dense_match_emulated_amx(const DenseMatchArgs& args);

void dense_match(const DenseMatchArgs& args);

namespace portable {
void dense_match(const DenseMatchArgs& args);
void dense_match_emulated_amx(const DenseMatchArgs& args);
}  // namespace portable
namespace avx2 {
void dense_match(const DenseMatchArgs& args);
}
namespace avx512 {
void dense_match(const DenseMatchArgs& args);
}
namespace avx512_bf16 {
void dense_match(const DenseMatchArgs& args);
}
namespace amx {
void dense_match(const DenseMatchArgs& args);
}

}  // namespace fastfss
