// From an operation's name to its code for this CPU. Compiled for the portable set, like the
// module: nothing here may run an instruction that the CPU lacks.
#include <stdexcept>
#include <utility>

#include "fastfss/center_pivot_conv4d.h"
#include "fastfss/dense_correlation.h"
#include "fastfss/dense_match.h"
#include "fastfss/dense_match_backward.h"
#include "fastfss/isa.h"
#include "fastfss/masked_average_pool.h"
#include "fastfss/probe.h"
#include "fastfss/prototype_match.h"
#include "fastfss/stream_read.h"

namespace fastfss {
namespace {

// The entry for the set in use, or for the next lower one that the operation has code for.
template <class Function>
Function* choose(std::initializer_list<std::pair<Isa, Function*>> ascending) {
  Function* found = nullptr;
  for (const auto& [isa, function] : ascending) {
    if (isa <= active_isa()) found = function;
  }
  if (found == nullptr) throw std::logic_error("an operation has no portable code");
  return found;
}

}  // namespace

void masked_average_pool(const MaskedAveragePool& call) {
  choose<void(const MaskedAveragePool&)>({
      {Isa::kPortable, portable::masked_average_pool},
#ifdef FASTFSS_X86
      {Isa::kAvx2, avx2::masked_average_pool},
      {Isa::kAvx512, avx512::masked_average_pool},
#endif
  })(call);
}

void masked_average_pool_backward(const MaskedAveragePoolBackward& call) {
  choose<void(const MaskedAveragePoolBackward&)>({
      {Isa::kPortable, portable::masked_average_pool_backward},
#ifdef FASTFSS_X86
      {Isa::kAvx2, avx2::masked_average_pool_backward},
      {Isa::kAvx512, avx512::masked_average_pool_backward},
#endif
  })(call);
}

void prototype_match(const PrototypeMatch& call) {
  choose<void(const PrototypeMatch&)>({
      {Isa::kPortable, portable::prototype_match},
#ifdef FASTFSS_X86
      {Isa::kAvx2, avx2::prototype_match},
      {Isa::kAvx512, avx512::prototype_match},
#endif
  })(call);
}

void prototype_match_backward(const PrototypeMatchBackward& call) {
  choose<void(const PrototypeMatchBackward&)>({
      {Isa::kPortable, portable::prototype_match_backward},
#ifdef FASTFSS_X86
      {Isa::kAvx2, avx2::prototype_match_backward},
      {Isa::kAvx512, avx512::prototype_match_backward},
#endif
  })(call);
}

float stream_read(const float* data, int64_t count, int threads) {
  return choose<float(const float*, int64_t, int)>({
      {Isa::kPortable, portable::stream_read},
#ifdef FASTFSS_X86
      {Isa::kAvx2, avx2::stream_read},
      {Isa::kAvx512, avx512::stream_read},
#endif
  })(data, count, threads);
}

void center_pivot_conv4d(const CenterPivotConv4dArgs& args) {
  choose<void(const CenterPivotConv4dArgs&)>({{Isa::kPortable, &portable::center_pivot_conv4d},
#if defined(FASTFSS_X86)
                                              {Isa::kAvx2, &avx2::center_pivot_conv4d},
                                              {Isa::kAvx512, &avx512::center_pivot_conv4d},
                                              {Isa::kAvx512Bf16, &avx512_bf16::center_pivot_conv4d},
                                              {Isa::kAmx, &amx::center_pivot_conv4d}
#endif
  })(args);
}

void center_pivot_conv4d_emulated_amx(const CenterPivotConv4dArgs& args) {
  portable::center_pivot_conv4d_emulated_amx(args);
}

void dense_correlation(const DenseCorrelationArgs& args) {
  choose<void(const DenseCorrelationArgs&)>({{Isa::kPortable, &portable::dense_correlation},
#if defined(FASTFSS_X86)
                                             {Isa::kAvx2, &avx2::dense_correlation},
                                             {Isa::kAvx512, &avx512::dense_correlation},
                                             {Isa::kAvx512Bf16, &avx512_bf16::dense_correlation},
                                             {Isa::kAmx, &amx::dense_correlation}
#endif
  })(args);
}

void dense_correlation_emulated_amx(const DenseCorrelationArgs& args) {
  portable::dense_correlation_emulated_amx(args);
}

void dense_match(const DenseMatchArgs& args) {
  choose<void(const DenseMatchArgs&)>({{Isa::kPortable, &portable::dense_match},
#if defined(FASTFSS_X86)
                                       {Isa::kAvx2, &avx2::dense_match},
                                       {Isa::kAvx512, &avx512::dense_match},
                                       {Isa::kAvx512Bf16, &avx512_bf16::dense_match},
                                       {Isa::kAmx, &amx::dense_match}
#endif
  })(args);
}

void dense_match_backward(const DenseMatchBackwardArgs& args) {
  choose<void(const DenseMatchBackwardArgs&)>({{Isa::kPortable, &portable::dense_match_backward},
#if defined(FASTFSS_X86)
                                               {Isa::kAvx2, &avx2::dense_match_backward},
                                               {Isa::kAvx512, &avx512::dense_match_backward}
#endif
  })(args);
}

void dense_match_emulated_amx(const DenseMatchArgs& args) {
  portable::dense_match_emulated_amx(args);
}

void probe_exp(const float* from, float* to, int64_t count) {
  choose<void(const float*, float*, int64_t)>({{Isa::kPortable, &portable::probe_exp},
#if defined(FASTFSS_X86)
                                               {Isa::kAvx2, &avx2::probe_exp},
                                               {Isa::kAvx512, &avx512::probe_exp}
#endif
  })(from, to, count);
}

int64_t probe_multiply_adds(int64_t count, bool bfloat16, float* sum) {
  return choose<int64_t(int64_t, bool, float*)>(
      {{Isa::kPortable, &portable::probe_multiply_adds},
#if defined(FASTFSS_X86)
       {Isa::kAvx2, &avx2::probe_multiply_adds},
       {Isa::kAvx512, &avx512::probe_multiply_adds},
       {Isa::kAvx512Bf16, &avx512_bf16::probe_multiply_adds}
#endif
      })(count, bfloat16, sum);
}

}  // namespace fastfss
