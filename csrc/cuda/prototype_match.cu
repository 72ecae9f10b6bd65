// scores[p, n] = scale x[n] . y[p] / (max(|x[n]|, eps) max(|y[p]|, eps)).
//
// Dot products and norms in one pass over the features, 16 bytes at a time, for up to eight
// prototypes. No atomics: a call gives the same bits every time.
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

// Prototypes in one pass; four positions of each are 32 sums, beside which loads still fit.
constexpr int kPrototypes = 8;
// Channels of the prototypes that lie in shared memory at once. Channels-first, whole chunks are
// dealt out to the splits: 128 give one image of 1024 channels and 60 x 60 positions 120 blocks.
constexpr int kStaged = 512;
constexpr int kChunk = 128;
// Channels-last: positions of one warp, which read the prototypes together.
constexpr int kPositions = 4;

struct Matching {
  int64_t positions, channels, batch_stride, row_stride, prototype_batch, prototype_row;
  int prototypes, first, splits;
  float scale, eps;
};

// |y| of the block's prototypes, in shared memory.
template <class T>
__device__ void prototype_norms(const T* prototypes, const Matching& m, float* norms) {
  for (int p = threadIdx.x / 32; p < kPrototypes; p += kWarps) {
    float sum = 0.0f;
    for (int64_t c = threadIdx.x % 32; m.first + p < m.prototypes && c < m.channels; c += 32) {
      const float y = to_float(prototypes[(m.first + p) * m.prototype_row + c]);
      sum += y * y;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) norms[p] = sqrtf(sum);
  }
}

__device__ __forceinline__ float score(float dot, float x_norm, float y_norm, const Matching& m) {
  return m.scale * dot / (fmaxf(x_norm, m.eps) * fmaxf(y_norm, m.eps));
}

// Channels-first: a lane holds Wide neighbouring positions, a warp every eighth channel of a chunk;
// blockIdx.y is the split of the channels. With one split the scores are finished here.
template <class T, int Wide>
__global__ void __launch_bounds__(kThreads)
    match_columns(const T* __restrict__ features, const T* __restrict__ prototypes, Matching m,
                  float* __restrict__ parts, T* __restrict__ scores, float* __restrict__ norms) {
  __shared__ float staged[kPrototypes][kChunk];
  __shared__ float of_warp[kWarps][32 * Wide];
  __shared__ float y_norms[kPrototypes];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t block = int64_t(blockIdx.x) * 32 * Wide, n = block + lane * Wide;
  const bool inside = n < m.positions;
  const T* from = features + blockIdx.z * m.batch_stride + (inside ? n : 0);
  prototypes += blockIdx.z * m.prototype_batch;
  prototype_norms(prototypes, m, y_norms);
  float dots[kPrototypes][Wide] = {}, squares[Wide] = {};
  for (int64_t begin = int64_t(blockIdx.y) * kChunk; begin < m.channels;
       begin += int64_t(kChunk) * m.splits) {
    const int count = int(m.channels - begin < kChunk ? m.channels - begin : kChunk);
    __syncthreads();
    for (int i = threadIdx.x; i < kPrototypes * count; i += kThreads) {
      const int p = i / count, c = i % count;
      staged[p][c] = m.first + p < m.prototypes
                         ? to_float(prototypes[(m.first + p) * m.prototype_row + begin + c])
                         : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int c = warp; c < count; c += kWarps) {
      T raw[Wide];
      load(from + (begin + c) * m.row_stride, raw);
#pragma unroll
      for (int i = 0; i < Wide; ++i) {
        const float x = to_float(raw[i]);
        squares[i] += x * x;
#pragma unroll
        for (int p = 0; p < kPrototypes; ++p) dots[p][i] += x * staged[p][c];
      }
    }
  }
  // Over the warps: the sum of one position for each of the first threads.
  static_assert(32 * Wide <= kThreads, "one thread finishes one position");
  const int64_t position = block + threadIdx.x;
  const bool finishes = threadIdx.x < 32 * Wide && position < m.positions;
  const auto over_warps = [&](const float (&mine)[Wide]) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Wide; ++i) of_warp[warp][lane * Wide + i] = mine[i];
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; finishes && w < kWarps; ++w) sum += of_warp[w][threadIdx.x];
    return sum;
  };
  const int64_t part = int64_t(blockIdx.z) * m.splits + blockIdx.y;
  const auto keep = [&](int row, float sum) {
    parts[(part * (1 + m.prototypes) + row) * m.positions + position] = sum;
  };
  const float square = over_warps(squares), x_norm = sqrtf(square);
  if (finishes && m.first == 0) {
    if (m.splits > 1) {
      keep(0, square);
    } else {
      norms[blockIdx.z * m.positions + position] = x_norm;
    }
  }
#pragma unroll
  for (int p = 0; p < kPrototypes; ++p) {
    const float dot = over_warps(dots[p]);
    if (finishes && m.first + p < m.prototypes) {
      if (m.splits > 1) {
        keep(1 + m.first + p, dot);
      } else {
        scores[(int64_t(blockIdx.z) * m.prototypes + m.first + p) * m.positions + position] =
            from_float<T>(score(dot, x_norm, y_norms[p], m));
      }
    }
  }
}

// The scores of split sums; one thread a position.
template <class T>
__global__ void __launch_bounds__(kThreads)
    match_finish(const float* __restrict__ parts, const T* __restrict__ prototypes, Matching m,
                 T* __restrict__ scores, float* __restrict__ norms) {
  __shared__ float y_norms[kPrototypes];
  prototype_norms(prototypes + blockIdx.z * m.prototype_batch, m, y_norms);
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= m.positions) return;
  const auto sum_of = [&](int row) {
    float sum = 0.0f;
    for (int s = 0; s < m.splits; ++s) {
      const int64_t part = int64_t(blockIdx.z) * m.splits + s;
      sum += parts[(part * (1 + m.prototypes) + row) * m.positions + n];
    }
    return sum;
  };
  const float x_norm = sqrtf(sum_of(0));
  if (m.first == 0) norms[blockIdx.z * m.positions + n] = x_norm;
  for (int p = 0; p < kPrototypes && m.first + p < m.prototypes; ++p) {
    const float sum = sum_of(1 + m.first + p);
    scores[(int64_t(blockIdx.z) * m.prototypes + m.first + p) * m.positions + n] =
        from_float<T>(score(sum, x_norm, y_norms[p], m));
  }
}

// Channels-last: a warp takes kPositions rows; each lane holds Wide channels.
template <class T, int Wide>
__global__ void __launch_bounds__(kThreads)
    match_rows(const T* __restrict__ features, const T* __restrict__ prototypes, Matching m,
               T* __restrict__ scores, float* __restrict__ norms) {
  // As they come, so that the lanes' 16 bytes lie side by side and no bank is asked twice.
  __shared__ __align__(16) T staged[kPrototypes][kStaged];
  __shared__ float y_norms[kPrototypes];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = (int64_t(blockIdx.x) * kWarps + warp) * kPositions;
  const T* from[kPositions];
  for (int i = 0; i < kPositions; ++i) {
    const int64_t row = n + i < m.positions ? n + i : m.positions - 1;
    from[i] = features + blockIdx.z * m.batch_stride + row * m.row_stride;
  }
  prototypes += blockIdx.z * m.prototype_batch;
  prototype_norms(prototypes, m, y_norms);
  float dots[kPrototypes][kPositions] = {}, squares[kPositions] = {};
  for (int64_t begin = 0; begin < m.channels; begin += kStaged) {
    const int count = int(m.channels - begin < kStaged ? m.channels - begin : kStaged);
    __syncthreads();
    for (int i = threadIdx.x; i < kPrototypes * count; i += kThreads) {
      const int p = i / count, c = i % count;
      staged[p][c] = m.first + p < m.prototypes
                         ? prototypes[(m.first + p) * m.prototype_row + begin + c]
                         : from_float<T>(0.0f);
    }
    __syncthreads();
    for (int c = lane * Wide; c < count; c += 32 * Wide) {
      T x[kPositions][Wide];
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        load(from[i] + begin + c, x[i]);
#pragma unroll
        for (int k = 0; k < Wide; ++k) squares[i] += to_float(x[i][k]) * to_float(x[i][k]);
      }
#pragma unroll
      for (int p = 0; p < kPrototypes; ++p) {
        T y[Wide];
        memcpy(y, &staged[p][c], sizeof(y));
#pragma unroll
        for (int k = 0; k < Wide; ++k) {
#pragma unroll
          for (int i = 0; i < kPositions; ++i) dots[p][i] += to_float(x[i][k]) * to_float(y[k]);
        }
      }
    }
  }
  for (int i = 0; i < kPositions; ++i) {
    const bool writes = lane == 0 && n + i < m.positions;
    const float x_norm = sqrtf(warp_sum(squares[i]));
    if (writes && m.first == 0) norms[blockIdx.z * m.positions + n + i] = x_norm;
    for (int p = 0; p < kPrototypes && m.first + p < m.prototypes; ++p) {
      const float dot = warp_sum(dots[p][i]);
      if (writes) {
        scores[(int64_t(blockIdx.z) * m.prototypes + m.first + p) * m.positions + n + i] =
            from_float<T>(score(dot, x_norm, y_norms[p], m));
      }
    }
  }
}

template <class T, int Wide>
void match(const PrototypeMatch& call, const Maps& maps, Matching m, Stream stream) {
  const auto batch = static_cast<unsigned>(maps.batch);
  const T *features = call.features.as<const T>(), *prototypes = call.prototypes.as<const T>();
  T* scores = call.scores.as<T>();
  float *norms = call.norms.as<float>(), *parts = call.parts.as<float>();
  for (m.first = 0; m.first < m.prototypes; m.first += kPrototypes) {
    if (maps.channels_last) {
      const dim3 grid(static_cast<unsigned>(blocks_of(maps.positions, kWarps * kPositions)), 1,
                      batch);
      launch("match_rows", match_rows<T, Wide>, grid, kThreads, 0, stream, features, prototypes, m,
             scores, norms);
      continue;
    }
    const dim3 grid(static_cast<unsigned>(blocks_of(maps.positions, 32 * Wide)),
                    static_cast<unsigned>(m.splits), batch);
    launch("match_columns", match_columns<T, Wide>, grid, kThreads, 0, stream, features, prototypes,
           m, parts, scores, norms);
    if (m.splits > 1) {
      const dim3 all(static_cast<unsigned>(blocks_of(maps.positions, kThreads)), 1, batch);
      launch("match_finish", match_finish<T>, all, kThreads, 0, stream, parts, prototypes, m,
             scores, norms);
    }
  }
}

}  // namespace

int match_splits(int64_t batch, int64_t channels, int64_t positions) {
  return splits_of(batch * blocks_of(positions, 256), channels, kChunk);
}

void prototype_match(const PrototypeMatch& call, Stream stream) {
  const Maps maps(call.features, call.channels_last);
  const Matching m{maps.positions,
                   maps.channels,
                   maps.batch_stride,
                   maps.row_stride,
                   call.prototypes.stride[0],
                   call.prototypes.stride[1],
                   int(call.prototypes.size[1]),
                   0,
                   call.parts.data == nullptr ? 1 : int(call.parts.size[1]),
                   call.scale,
                   call.eps};
  const int64_t length = maps.channels_last ? maps.channels : maps.positions;
  const bool wide = in_wide_loads(call.features, length, {maps.batch_stride, maps.row_stride});
  with_type(call.features.dtype, [&](auto* null) {
    using T = Pointee<decltype(null)>;
    wide ? match<T, kWide<T>>(call, maps, m, stream) : match<T, 1>(call, maps, m, stream);
  });
}

}  // namespace fastfss::cuda
