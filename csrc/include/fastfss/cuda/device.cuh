// What the CUDA kernels share: element types, 16-byte loads, reductions, launches.
//
// The kernels run on the CPU too, for tests: tests/cuda/emulator.h stands in for the CUDA runtime.
#pragma once

#ifdef FASTFSS_CUDA_EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "fastfss/tensor.h"

namespace fastfss::cuda {

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(uint8_t x) { return float(x); }
__device__ __forceinline__ float to_float(BF16 x) {
  return __uint_as_float(uint32_t(x.bits) << 16);
}
__device__ __forceinline__ float to_float(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, BF16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return {__half_as_ushort(__float2half_rn(x))};
  }
}

// The elements of one 16-byte load.
template <class T>
constexpr int kWide = 16 / sizeof(T);

// N neighbours, by one load where they fill 16 bytes (the address is then a multiple of 16).
template <int N, class T>
__device__ __forceinline__ void load(const T* from, T (&to)[N]) {
  if constexpr (N * sizeof(T) == 16) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(to, &raw, sizeof(raw));
  } else {
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
}

// Of all 32 lanes, to all of them; the same order of additions in every run.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Small grids leave processors without work: a kernel splits its sum until there are about two
// blocks for each of an H100's 132.
constexpr int64_t kEnoughBlocks = 264;

inline int64_t blocks_of(int64_t count, int64_t in_one) { return (count + in_one - 1) / in_one; }

// Into how many parts to split a sum of `terms`, of at least `least` each. Rounded down: a few
// blocks that find no room would run alone after all others.
inline int splits_of(int64_t blocks, int64_t terms, int64_t least) {
  const int64_t wanted = kEnoughBlocks / blocks, most = blocks_of(terms, least);
  return static_cast<int>(wanted < 1 ? 1 : (wanted < most ? wanted : most));
}

// Calls `function` with the smallest of 1, 2, 4, ..., Most that holds `count`, or with Most, as a
// constant.
template <int Most, class Function>
void with_count(int count, Function function) {
  if constexpr (Most > 1) {
    if (count <= Most / 2) return with_count<Most / 2>(count, function);
  }
  function(std::integral_constant<int, Most>{});
}

inline void check(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
  }
}

#ifndef FASTFSS_CUDA_EMULATED
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
            void* stream, Arguments&&... arguments) {
  if (shared > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
  }
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

// Of the current device.
inline int64_t multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return count;
}

// Bytes that one block can have on the current device.
inline int64_t most_shared_memory() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return bytes;
}

// The block's dynamic shared memory, 16 bytes aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}
#endif

// Calls `function` with a null pointer of the elements' type.
template <class Function>
void with_type(DType dtype, Function function) {
  if (dtype == DType::kFloat32) {
    function(static_cast<float*>(nullptr));
  } else if (dtype == DType::kBFloat16) {
    function(static_cast<BF16*>(nullptr));
  } else {
    function(static_cast<F16*>(nullptr));
  }
}

template <class Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

inline size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Whether rows `stride` elements apart, `length` long, can be read 16 bytes at a time.
inline bool in_wide_loads(const TensorView& view, int64_t length,
                          std::initializer_list<int64_t> strides) {
  const int64_t wide = 16 / size_of(view.dtype);
  bool fits = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && length % wide == 0;
  for (const int64_t stride : strides) fits = fits && stride % wide == 0;
  return fits;
}

// A batch of feature maps [B, C, h, w] as rows: channels of positions, or positions of channels.
struct Maps {
  int64_t batch, channels, positions, batch_stride, row_stride;
  bool channels_last;

  Maps(const TensorView& view, bool channels_last)
      : batch(view.size[0]),
        channels(view.size[1]),
        positions(view.size[2] * view.size[3]),
        batch_stride(view.stride[0]),
        // A dimension of size 1 has a meaningless stride.
        row_stride(!channels_last ? view.stride[1]
                                  : (view.size[3] > 1 ? view.stride[3] : view.stride[2])),
        channels_last(channels_last) {}
};

}  // namespace fastfss::cuda
