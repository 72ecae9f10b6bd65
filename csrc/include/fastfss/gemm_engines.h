// All of gemm.h, and which engine serves a dtype best in this instruction set.
#pragma once

#include "fastfss/gemm.h"
#include "fastfss/gemm_amx.h"
#include "fastfss/gemm_pack.h"

namespace fastfss::FASTFSS_ISA {

template <class T>
struct EngineFor {
  using type = FloatEngine;
};

#if defined(__AMX_BF16__)
template <>
struct EngineFor<BFloat16> {
  using type = TileEngine<HardwareTiles>;
};
#elif defined(__AVX512BF16__)
template <>
struct EngineFor<BFloat16> {
  using type = Bfloat16Engine;
};
#endif

template <class T>
using BestEngine = typename EngineFor<T>::type;

}  // namespace fastfss::FASTFSS_ISA
