// out[b, l, i, j] = max(0, q_i . s_j / ((|q_i| + eps) (|s_j| + eps))), all layers l in two
// launches.
//
// First the norms, and where the maps are not stored position by position a copy that is; then the
// products on the tensor cores, scaled, clamped and written straight into the stack. A block makes
// 128 x 128 results; its operands pass through four stages of shared memory. float32 is multiplied
// without tensor cores, since TF32 would lose thirteen of its bits.
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda/mma.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

// HSNet has up to 13 layers; more take several launches.
constexpr int kMostLayers = 16;

// ---- norms and packing

struct Source {
  const void* maps;
  void* packed;  // nullptr: only the norms
  float* scales;
  int64_t batch_stride, channel_stride, position_stride;
  int channels, padded, positions;
};
struct Sources {
  Source of[2 * kMostLayers];
};

// scales[n] = 1 / (|x_n| + eps) of maps that are packed; a warp a position.
template <class T>
__global__ void __launch_bounds__(kThreads) packed_norms(const Sources sources, float eps) {
  const Source& s = sources.of[blockIdx.y];
  const int n = blockIdx.x * kWarps + threadIdx.x / 32;
  if (s.packed != nullptr || n >= s.positions) return;
  const T* row =
      static_cast<const T*>(s.maps) + blockIdx.z * s.batch_stride + n * s.position_stride;
  float sum = 0.0f;
  for (int c = threadIdx.x % 32 * kWide<T>; c < s.channels; c += 32 * kWide<T>) {
    T x[kWide<T>];
    load(row + c, x);
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) sum += to_float(x[i]) * to_float(x[i]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) {
    s.scales[int64_t(blockIdx.z) * s.positions + n] = 1.0f / (sqrtf(sum) + eps);
  }
}

// The same of maps that are not, and their packed copy, padded with zeros. A block takes 32
// positions through a tile of 32 x 32.
template <class T>
__global__ void __launch_bounds__(kThreads) pack(const Sources sources, float eps) {
  __shared__ T tile[32][33];  // 33: a column then lies in 32 banks
  __shared__ float of_warp[kWarps][32];
  const Source& s = sources.of[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, begin = blockIdx.x * 32;
  if (s.packed == nullptr || begin >= s.positions) return;  // the whole block
  const T* maps = static_cast<const T*>(s.maps) + blockIdx.z * s.batch_stride;
  T* packed = static_cast<T*>(s.packed) + int64_t(blockIdx.z) * s.positions * s.padded;
  float sum = 0.0f;  // of the squares of position begin + lane
  for (int first = 0; first < s.padded; first += 32) {
    for (int c = warp; c < 32; c += kWarps) {
      const bool inside = begin + lane < s.positions && first + c < s.channels;
      const T x =
          inside ? maps[int64_t(first + c) * s.channel_stride + (begin + lane) * s.position_stride]
                 : from_float<T>(0.0f);
      sum += to_float(x) * to_float(x);
      tile[c][lane] = x;
    }
    __syncthreads();
    for (int n = warp; n < 32; n += kWarps) {
      if (begin + n < s.positions && first + lane < s.padded) {
        packed[int64_t(begin + n) * s.padded + first + lane] = tile[lane][n];
      }
    }
    __syncthreads();
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && begin + lane < s.positions) {
    sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += of_warp[w][lane];
    s.scales[int64_t(blockIdx.z) * s.positions + begin + lane] = 1.0f / (sqrtf(sum) + eps);
  }
}

// ---- products

struct Operand {
  const void* rows;  // position by position
  const float* scales;
  int64_t batch_stride;
  int row_stride, positions;
};
struct Layer {
  Operand query, support;
  int channels;
};
struct Layers {
  Layer of[kMostLayers];
  int64_t batch_stride, layer_stride;  // of the results
  int columns;                         // blocks along the support's positions
  bool clamp;
};

constexpr int kTile = 128, kDepth = 32, kStages = 4;
// One operand of one stage: 128 rows of 64 bytes.
constexpr int kOperandBytes = kTile * kDepth * 2;
constexpr int kSharedBytes = kStages * 2 * kOperandBytes;
// Results on their way out: 8 elements more a row, so that rows begin in different banks.
constexpr int kOutRow = kTile + 8;
static_assert(kTile * kOutRow * 2 <= kSharedBytes);

// Where 16-byte chunk `chunk` of row `row` lies: eight rows below each other, which are read at
// once, then lie in all 32 banks.
__device__ __forceinline__ int place(int row, int chunk) {
  return row * 64 + ((chunk ^ (row >> 1)) & 3) * 16;
}

// One stage of one operand: two copies of 16 bytes a thread.
template <class T>
__device__ __forceinline__ void fetch(char* to, const Operand& operand, const T* rows, int begin,
                                      int depth, int channels) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = (threadIdx.x + i * kThreads) / 4, chunk = threadIdx.x % 4;
    const int position = begin + row, c = depth + chunk * 8;
    const bool inside = position < operand.positions && c < channels;
    copy_async(to + place(row, chunk),
               rows + (inside ? int64_t(position) * operand.row_stride + c : 0), inside);
  }
}

// A warp makes 64 x 32 results: 4 x 4 products of 16 x 8.
template <class T>
__global__ void __launch_bounds__(kThreads)
    correlate(const __grid_constant__ Layers layers, T* out) {
  char* shared = dynamic_shared<char>();
  const Layer& layer = layers.of[blockIdx.y];
  const int first_row = blockIdx.x / layers.columns * kTile;
  const int first_column = blockIdx.x % layers.columns * kTile;
  const T* queries =
      static_cast<const T*>(layer.query.rows) + blockIdx.z * layer.query.batch_stride;
  const T* supports =
      static_cast<const T*>(layer.support.rows) + blockIdx.z * layer.support.batch_stride;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const int steps = (layer.channels + kDepth - 1) / kDepth;

  const auto fetch_step = [&](int step) {
    if (step < steps) {
      char* stage = shared + step % kStages * 2 * kOperandBytes;
      fetch(stage, layer.query, queries, first_row, step * kDepth, layer.channels);
      fetch(stage + kOperandBytes, layer.support, supports, first_column, step * kDepth,
            layer.channels);
    }
    commit_copies();  // an empty group keeps the count
  };
  for (int step = 0; step < kStages - 1; ++step) fetch_step(step);

  float sums[4][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all of the stage is there, and nobody reads the one that is filled next
    fetch_step(step + kStages - 1);
    const char* a = shared + step % kStages * 2 * kOperandBytes;
    const char* b = a + kOperandBytes;
#pragma unroll
    for (int chunk = 0; chunk < kDepth / 8; chunk += 2) {
      uint32_t of_a[4][4], of_b[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_matrices(of_a[i], a + place(row + i * 16 + lane % 16, chunk + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t two[4];
        load_matrices(two,
                      b + place(column + j * 8 + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
        of_b[j][0] = two[0], of_b[j][1] = two[1];
        of_b[j + 1][0] = two[2], of_b[j + 1][1] = two[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add<T>(sums[i][j], of_a[i], of_b[j]);
      }
    }
  }

  wait_for_copies<0>();
  __syncthreads();
  T* results = reinterpret_cast<T*>(shared);
  const auto scale_of = [&](const Operand& operand, int position) {
    return position < operand.positions
               ? __ldg(operand.scales + int64_t(blockIdx.z) * operand.positions + position)
               : 0.0f;
  };
  float of_column[4][2];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    for (int k = 0; k < 2; ++k) {
      of_column[j][k] = scale_of(layer.support, first_column + column + j * 8 + lane % 4 * 2 + k);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + i * 16 + half * 8 + lane / 4;
      const float of_row = scale_of(layer.query, first_row + r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        T* to = results + r * kOutRow + column + j * 8 + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float cosine = sums[i][j][half * 2 + k] * of_row * of_column[j][k];
          to[k] = from_float<T>(layers.clamp ? fmaxf(cosine, 0.0f) : cosine);
        }
      }
    }
  }
  __syncthreads();
  const int width = layer.support.positions;
  T* to = out + blockIdx.z * layers.batch_stride + blockIdx.y * layers.layer_stride;
  for (int r = warp; r < kTile && first_row + r < layer.query.positions; r += kWarps) {
    T* line = to + int64_t(first_row + r) * width + first_column;
    const T* from = results + r * kOutRow;
    if (width % 2 == 0 && reinterpret_cast<uintptr_t>(out) % 4 == 0) {
      for (int c = lane * 2; c < kTile && first_column + c < width; c += 64) {
        *reinterpret_cast<uint32_t*>(line + c) = *reinterpret_cast<const uint32_t*>(from + c);
      }
    } else {
      for (int c = lane; c < kTile && first_column + c < width; c += 32) line[c] = from[c];
    }
  }
}

constexpr int kFloatTile = 64, kFloatDepth = 16;

// float32: a thread makes 4 x 4 results of a block's 64 x 64.
__global__ void __launch_bounds__(kThreads)
    correlate_float(const __grid_constant__ Layers layers, float* out) {
  __shared__ float a[kFloatDepth][kFloatTile + 4], b[kFloatDepth][kFloatTile + 4];
  const Layer& layer = layers.of[blockIdx.y];
  const int first_row = blockIdx.x / layers.columns * kFloatTile;
  const int first_column = blockIdx.x % layers.columns * kFloatTile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int depth = 0; depth < layer.channels; depth += kFloatDepth) {
    const int row = threadIdx.x / 4, c = threadIdx.x % 4 * 4;
    const auto fetch_four = [&](const Operand& operand, int begin, auto& to) {
      float four[4] = {};
      if (begin + row < operand.positions && depth + c < layer.channels) {
        load(static_cast<const float*>(operand.rows) + blockIdx.z * operand.batch_stride +
                 int64_t(begin + row) * operand.row_stride + depth + c,
             four);
      }
      for (int i = 0; i < 4; ++i) to[c + i][row] = four[i];
    };
    __syncthreads();
    fetch_four(layer.query, first_row, a);
    fetch_four(layer.support, first_column, b);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kFloatDepth; ++d) {
      float of_a[4], of_b[4];
      for (int i = 0; i < 4; ++i) of_a[i] = a[d][y * 4 + i], of_b[i] = b[d][x * 4 + i];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += of_a[i] * of_b[j];
      }
    }
  }
  float* to = out + blockIdx.z * layers.batch_stride + blockIdx.y * layers.layer_stride;
  for (int i = 0; i < 4; ++i) {
    const int r = first_row + y * 4 + i;
    if (r >= layer.query.positions) break;
    const float of_row = layer.query.scales[int64_t(blockIdx.z) * layer.query.positions + r];
    for (int j = 0; j < 4; ++j) {
      const int c = first_column + x * 4 + j;
      if (c >= layer.support.positions) break;
      const float cosine = sums[i][j] * of_row *
                           layer.support.scales[int64_t(blockIdx.z) * layer.support.positions + c];
      to[int64_t(r) * layer.support.positions + c] = layers.clamp ? fmaxf(cosine, 0.0f) : cosine;
    }
  }
}

// ---- launches

Source source_of(const TensorView& maps, const TensorView& packed, const TensorView& scales) {
  return {maps.data,        packed.data,    scales.as<float>(), maps.stride[0],
          maps.stride[1],   maps.stride[2], int(maps.size[1]),  int((maps.size[1] + 7) / 8 * 8),
          int(maps.size[2])};
}

Operand operand_of(const Source& s) {
  if (s.packed == nullptr) {
    return {s.maps, s.scales, s.batch_stride, int(s.position_stride), s.positions};
  }
  return {s.packed, s.scales, int64_t(s.positions) * s.padded, s.padded, s.positions};
}

template <class T>
void run(const DenseCorrelation& call, size_t begin, size_t count, Stream stream) {
  const auto batch = static_cast<unsigned>(call.out.size[0]);
  const int64_t n = call.out.size[2], m = call.out.size[3];
  const int64_t most = n > m ? n : m;
  Sources sources{};
  Layers layers{};
  bool copies = false, reads = false;
  for (size_t l = 0; l < count; ++l) {
    const CorrelationLayer& layer = call.layers[begin + l];
    Source& query = sources.of[2 * l] =
        source_of(layer.query, layer.query_packed, layer.query_scales);
    Source& support = sources.of[2 * l + 1] =
        source_of(layer.support, layer.support_packed, layer.support_scales);
    for (const Source* s : {&query, &support}) (s->packed != nullptr ? copies : reads) = true;
    layers.of[l] = {operand_of(query), operand_of(support), query.padded};
  }
  const auto both = static_cast<unsigned>(2 * count);
  if (reads) {
    launch("packed_norms", packed_norms<T>,
           dim3(static_cast<unsigned>(blocks_of(most, kWarps)), both, batch), kThreads, 0, stream,
           sources, call.eps);
  }
  if (copies) {
    launch("pack", pack<T>, dim3(static_cast<unsigned>(blocks_of(most, 32)), both, batch), kThreads,
           0, stream, sources, call.eps);
  }
  layers.batch_stride = call.out.stride[0];
  layers.layer_stride = call.out.stride[1];
  layers.clamp = call.clamp;
  T* out = call.out.as<T>() + static_cast<int64_t>(begin) * layers.layer_stride;
  constexpr int tile = sizeof(T) == 4 ? kFloatTile : kTile;
  layers.columns = static_cast<int>(blocks_of(m, tile));
  const dim3 grid(static_cast<unsigned>(blocks_of(n, tile) * layers.columns),
                  static_cast<unsigned>(count), batch);
  if constexpr (sizeof(T) == 4) {
    launch("correlate_float", correlate_float, grid, kThreads, 0, stream, layers, out);
  } else {
    launch("correlate", correlate<T>, grid, kThreads, kSharedBytes, stream, layers, out);
  }
}

}  // namespace

bool correlation_packed(const TensorView& maps) {
  const bool neighbours = maps.size[1] == 1 || maps.stride[1] == 1;
  return neighbours && maps.size[1] % 8 == 0 && maps.stride[2] < (int64_t(1) << 31) &&
         in_wide_loads(maps, maps.size[1], {maps.stride[0], maps.stride[2]});
}

void dense_correlation(const DenseCorrelation& call, Stream stream) {
  for (size_t begin = 0; begin < call.layers.size(); begin += kMostLayers) {
    const size_t rest = call.layers.size() - begin;
    const size_t count = rest < kMostLayers ? rest : kMostLayers;
    with_type(call.out.dtype,
              [&](auto* null) { run<Pointee<decltype(null)>>(call, begin, count, stream); });
  }
}

}  // namespace fastfss::cuda
