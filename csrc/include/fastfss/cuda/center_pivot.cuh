// center_pivot_conv4d of few channels: sizes, and what is made before the product: the outputs'
// weights as the tensor cores' lanes hold them, and the pruned planes.
#pragma once

#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda::center_pivot {

constexpr int kMostOutputs = 16;

struct Shape {
  int inputs, outputs, query_height, query_width, support_height, support_width, stride;
  int out_width, queries, positions;  // hc wc
  int64_t item, channel;              // strides of x
  int chunk;                          // query positions of a block
  bool even;                          // every pair of neighbours lies in one word
  // Bytes in shared memory: zeros before and behind each plane, from a plane to the next, all
  // planes; what a 16-byte copy of a plane takes; and one query position's pruned planes, in
  // global memory too.
  int border, plane, planes, copied, vector;
};

// K x K windows, G times four channels. The weights stay in registers: 15 products' of them for
// four channels and K = 5, 28 for eight.
template <int K, int G>
struct Depth {
  // Windows begin two columns before their middle, which is even, so that pairs begin evenly.
  static constexpr int kReach = K / 2, kBefore = 2, kPairs = (kBefore + kReach) / 2 + 1;
  // A lane's registers over the support, its 8 bytes over the query, and the products they fill.
  static constexpr int kSlots = G * K * kPairs, kUnits = G * K * K;
  static constexpr int kOverSupport = (kSlots + 1) / 2, kOverQuery = (kUnits + 3) / 4;
  static constexpr int kSteps = kOverSupport + kOverQuery;
  static constexpr int kColumns = K + 1;  // of query positions: those of a window and the next
};

template <class T>
__device__ __forceinline__ uint32_t pair(T low, T high) {
  return low.bits | uint32_t(high.bits) << 16;
}

// The registers of each lane and product: outputs 2 (lane / 4) and the next, at two places of the
// depth each.
template <class T, int K, int G>
__device__ void pack(const T* query_weight, const T* support_weight, const Shape& s,
                     uint32_t* fragments) {
  using D = Depth<K, G>;
  for (int i = threadIdx.x; i < D::kSteps * 128; i += kThreads) {
    const int step = i / 128, lane = i / 4 % 32, r = i / 2 % 2;
    const int output = lane / 4 * 2 + i % 2;
    T two[2] = {};
    for (int k = 0; k < 2; ++k) {
      int channel, down, right;
      bool used;
      if (step < D::kOverSupport) {
        const int slot = 2 * step + r, of_channel = slot % (K * D::kPairs);
        channel = slot / (K * D::kPairs) * 4 + lane % 4;
        down = of_channel / D::kPairs;
        right = of_channel % D::kPairs * 2 + k - D::kBefore + D::kReach;
        used = slot < D::kSlots && right >= 0 && right < K;
      } else {
        const int unit = 4 * (step - D::kOverSupport) + lane % 4, tap = unit / G;
        channel = unit % G * 4 + 2 * r + k;
        down = tap / K, right = tap % K;
        used = unit < D::kUnits;
      }
      const T* weight = step < D::kOverSupport ? support_weight : query_weight;
      if (used && channel < s.inputs && output < s.outputs) {
        two[k] = weight[((output * s.inputs + channel) * K + down) * K + right];
      }
    }
    fragments[i] = pair(two[0], two[1]);
  }
}

// pruned[b][query][position][channel]; the last block of the first item packs the weights.
template <class T, int K, int G>
__global__ void __launch_bounds__(kThreads)
    prepare(const T* x, const T* query_weight, const T* support_weight, const Shape s,
            uint32_t* fragments, char* pruned) {
  if (blockIdx.x == gridDim.x - 1) {
    if (blockIdx.z == 0) pack<T, K, G>(query_weight, support_weight, s, fragments);
    return;
  }
  const unsigned n = blockIdx.x * kThreads + threadIdx.x;
  const unsigned query = n / s.positions, position = n % s.positions;
  if (query >= unsigned(s.queries)) return;
  const unsigned row = position / s.out_width * s.stride,
                 column = position % s.out_width * s.stride;
  const T* from = x + blockIdx.z * s.item + int64_t(query) * s.support_height * s.support_width +
                  row * s.support_width + column;
  T channels[4 * G];
#pragma unroll
  for (int c = 0; c < 4 * G; ++c) channels[c] = c < s.inputs ? from[c * s.channel] : T{};
  char* to = pruned + (int64_t(blockIdx.z) * s.queries + query) * s.vector + position * (8 * G);
#pragma unroll
  for (int g = 0; g < G; ++g) {
    uint2 four;
    memcpy(&four, channels + 4 * g, sizeof(four));
    reinterpret_cast<uint2*>(to)[g] = four;
  }
}

inline int round_up(int64_t count, int to) { return static_cast<int>((count + to - 1) / to * to); }

inline int groups_of(const TensorView& x) { return x.size[1] <= 4 ? 1 : 2; }

inline Shape shape_of(const TensorView& x, int outputs, int kernel, int stride) {
  Shape s{};
  s.inputs = int(x.size[1]), s.outputs = outputs, s.stride = stride;
  s.query_height = int(x.size[2]), s.query_width = int(x.size[3]);
  s.support_height = int(x.size[4]), s.support_width = int(x.size[5]);
  s.out_width = (s.support_width + stride - 1) / stride;
  s.queries = s.query_height * s.query_width;
  s.positions = (s.support_height + stride - 1) / stride * s.out_width;
  s.item = x.size[0] == 1 ? 0 : x.stride[0];
  s.channel = x.size[1] == 1 ? 0 : x.stride[1];
  s.even = s.support_width % 2 == 0 && s.item % 2 == 0 && s.channel % 2 == 0 &&
           reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
  const int reach = kernel / 2, groups = groups_of(x);
  // A window of a plane's corner begins `reach` rows and two columns, in a word that begins one
  // before, outside of it, and ends five behind it.
  s.border = round_up(int64_t(2) * (reach * s.support_width + 6), 16);
  // A plane can begin anywhere within the first 16 bytes.
  s.copied = round_up(int64_t(2) * s.support_height * s.support_width + 14, 16);
  // Two channels of eight windows four columns apart then lie in all 32 banks.
  s.plane = round_up(int64_t(s.border) + s.copied - 64, 128) + 64;
  s.planes = s.plane * s.inputs + s.border;
  // Two or four query positions are read at once, 64 or 32 bytes of each: then from other banks.
  s.vector = round_up(int64_t(s.positions) * 8 * groups - 32 * groups, 128) + 32 * groups;
  return s;
}

}  // namespace fastfss::cuda::center_pivot
