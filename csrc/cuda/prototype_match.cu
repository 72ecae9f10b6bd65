// scores[p, n] = scale x[n] . y[p] / (max(|x[n]|, eps) max(|y[p]|, eps)).
//
// Dot products and norms in one pass over the features, 16 bytes at a time, for up to eight
// prototypes. No atomics: a call gives the same bits every time.
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

// Prototypes in one pass, at most: their sums of eight positions leave room for the loads.
constexpr int kMost = 8;

struct Matching {
  int64_t positions, batch_stride, row_stride, prototype_batch, prototype_row;
  int channels, prototypes, first, lane_bits;
  float scale, eps;
};

// Shows `keep` channels [begin, begin + count) of the pass's prototypes, zeros behind the last
// channel and prototype, and leaves each warp's share of |y|^2 in `squares`.
template <int Count, int Warps, class T, class Keep>
__device__ __forceinline__ void stage(const T* prototypes, const Matching& m, int begin, int count,
                                      float (&squares)[Warps][Count], Keep keep) {
  const int warp = threadIdx.x / 32;
  float sums[Count] = {};
// Not unrolled: this loop would take more registers than all the others.
#pragma unroll 1
  for (int c = threadIdx.x; c < count; c += Warps * 32) {
#pragma unroll
    for (int p = 0; p < Count; ++p) {
      const int row = m.first + p, channel = begin + c;
      const bool inside = row < m.prototypes && channel < m.channels;
      const T y = inside ? prototypes[row * m.prototype_row + channel] : T{};
      keep(p, c, y);
      sums[p] += to_float(y) * to_float(y);
    }
  }
#pragma unroll
  for (int p = 0; p < Count; ++p) {
    const float sum = warp_sum(sums[p]);
    if (threadIdx.x % 32 == 0) squares[warp][p] = begin == 0 ? sum : squares[warp][p] + sum;
  }
}

template <int Warps, int Count>
__device__ __forceinline__ float norm(const float (&squares)[Warps][Count], int p) {
  float sum = 0.0f;
#pragma unroll 4
  for (int w = 0; w < Warps; ++w) sum += squares[w][p];
  return sqrtf(sum);
}

__device__ __forceinline__ float score(float dot, float x_norm, float y_norm, const Matching& m) {
  return m.scale * dot / (fmaxf(x_norm, m.eps) * fmaxf(y_norm, m.eps));
}

// ---- channels-first

// A block sums all channels of its positions, so nothing is left to a second kernel.
constexpr int kColumnThreads = 512;
constexpr int kColumnWarps = kColumnThreads / 32;
// Loads that a thread keeps in flight: two blocks of a multiprocessor then wait for 64 KB, where an
// H200 needs about 25 to hide its memory's latency.
template <int Wide>
constexpr int kLoads = Wide == 1 ? 8 : 4;
// The fewest lanes side by side along positions: eight wide ones read 64 bytes of a row or more.
template <int Wide>
constexpr int kLeastLanes = Wide == 1 ? 8 : 4;

// 2^lane_bits lanes hold Wide neighbouring positions each; the other lanes of the warp, and the
// other warps, take other channels.
template <class T, int Wide, int Count>
__global__ void __launch_bounds__(kColumnThreads, Count <= 2 ? 2 : 1)
    match_columns(const T* __restrict__ features, const T* __restrict__ prototypes, Matching m,
                  T* __restrict__ scores, float* __restrict__ norms) {
  constexpr int kStaged = 4096 / Count, kInFlight = kLoads<Wide>;
  static_assert(kStaged % (kColumnWarps * kInFlight * 32 / kLeastLanes<Wide>) == 0,
                "a step of all loads in flight never crosses the end of what is staged");
  static_assert(32 * Wide <= kColumnThreads, "one thread finishes one position");
  __shared__ __align__(16) float staged[kStaged][Count];
  __shared__ float of_warp[kColumnWarps][32 * Wide];
  __shared__ float y_squares[kColumnWarps][Count];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, lanes = 1 << m.lane_bits;
  const int at_once = kColumnThreads >> m.lane_bits, mine = threadIdx.x >> m.lane_bits;
  const unsigned block = blockIdx.x * lanes * Wide, n = block + (lane & (lanes - 1)) * Wide;
  prototypes += blockIdx.z * m.prototype_batch;

  const T* next = features + blockIdx.z * m.batch_stride + mine * m.row_stride +
                  (int64_t(n) < m.positions ? n : 0);
  const int64_t step = at_once * m.row_stride;
  const auto fetch = [&](int channel, T(&to)[Wide]) {
    if (channel < m.channels) {
      load(next, to);
    } else {
#pragma unroll
      for (int i = 0; i < Wide; ++i) to[i] = T{};
    }
    next += step;
  };
  T raw[kInFlight][Wide];
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) fetch(mine + u * at_once, raw[u]);

  float dots[Count][Wide] = {}, squares[Wide] = {};
  for (int begin = 0; begin < m.channels; begin += kStaged) {
    const int count = min(m.channels - begin, kStaged);
    const int filled =
        (count + at_once * kInFlight - 1) / (at_once * kInFlight) * (at_once * kInFlight);
    __syncthreads();
    stage(prototypes, m, begin, filled, y_squares,
          [&](int p, int c, T y) { staged[c][p] = to_float(y); });
    __syncthreads();
#pragma unroll 1
    for (int c = mine; c < filled; c += at_once * kInFlight) {
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        float y[Count];
        memcpy(y, staged[c + u * at_once], sizeof(y));
#pragma unroll
        for (int i = 0; i < Wide; ++i) {
          const float x = to_float(raw[u][i]);
          squares[i] += x * x;
#pragma unroll
          for (int p = 0; p < Count; ++p) dots[p][i] += x * y[p];
        }
        fetch(begin + c + (kInFlight + u) * at_once, raw[u]);
      }
    }
  }

  // The sum of one position for each of the first threads.
  const unsigned position = block + threadIdx.x;
  const bool finishes = int(threadIdx.x) < lanes * Wide && int64_t(position) < m.positions;
  const auto over_block = [&](float (&sums)[Wide]) {
    for (int other = lanes; other < 32; other *= 2) {
#pragma unroll
      for (int i = 0; i < Wide; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], other);
    }
    __syncthreads();
    if (lane < lanes) {
#pragma unroll
      for (int i = 0; i < Wide; ++i) of_warp[warp][lane * Wide + i] = sums[i];
    }
    __syncthreads();
    float sum = 0.0f;
    if (finishes) {
#pragma unroll 8
      for (int w = 0; w < kColumnWarps; ++w) sum += of_warp[w][threadIdx.x];
    }
    return sum;
  };
  const float x_norm = sqrtf(over_block(squares));
  if (finishes && m.first == 0) norms[blockIdx.z * m.positions + position] = x_norm;
#pragma unroll
  for (int p = 0; p < Count; ++p) {
    const float dot = over_block(dots[p]);
    if (finishes && m.first + p < m.prototypes) {
      scores[(int64_t(blockIdx.z) * m.prototypes + m.first + p) * m.positions + position] =
          from_float<T>(score(dot, x_norm, norm(y_squares, p), m));
    }
  }
}

// ---- channels-last

// Positions of one warp, which read the prototypes together.
constexpr int kPositions = 4;
constexpr int kRows = kWarps * kPositions;
// Blocks on one multiprocessor. All blocks run at once and take the rows between them, so that each
// stages the prototypes once. Up to two prototypes fit in 64 registers; four in 80 would spill.
template <int Count>
constexpr int kResident = Count <= 2 ? 4 : 2;

// The sums of all lanes, x[lane / 8] to each: 6 shuffles, where 4 sums for everyone take 20.
__device__ __forceinline__ float quarter_sum(const float (&x)[kPositions]) {
  static_assert(kPositions == 4);
  const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
  float even_sum = upper ? x[2] : x[0], odd_sum = upper ? x[3] : x[1];
  even_sum += __shfl_xor_sync(0xffffffffu, upper ? x[0] : x[2], 16);
  odd_sum += __shfl_xor_sync(0xffffffffu, upper ? x[1] : x[3], 16);
  float sum = odd ? odd_sum : even_sum;
  sum += __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, 8);
  for (int lane = 4; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  return sum;
}

// A warp takes kPositions rows; each lane holds Wide channels.
template <class T, int Wide, int Count>
__global__ void __launch_bounds__(kThreads, kResident<Count>)
    match_rows(const T* __restrict__ features, const T* __restrict__ prototypes, Matching m,
               T* __restrict__ scores, float* __restrict__ norms) {
  constexpr int kFit = (32 << 10) / int(Count * sizeof(T)), kStaged = kFit < 2048 ? kFit : 2048;
  // As they come, so that the lanes' 16 bytes lie side by side and no bank is asked twice.
  __shared__ __align__(16) T staged[Count][kStaged];
  __shared__ float y_squares[kWarps][Count], y_norms[Count];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  features += blockIdx.z * m.batch_stride;
  prototypes += blockIdx.z * m.prototype_batch;
  bool kept = false;
  for (int64_t row = int64_t(blockIdx.x) * kRows; row < m.positions;
       row += int64_t(gridDim.x) * kRows) {
    const int64_t n = row + warp * kPositions;
    const T* from[kPositions];
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      from[i] = features + min(n + i, m.positions - 1) * m.row_stride;
    }
    float dots[Count][kPositions] = {}, squares[kPositions] = {};
    for (int begin = 0; begin < m.channels; begin += kStaged) {
      const int count = min(m.channels - begin, kStaged);
      if (!kept) {
        __syncthreads();
        stage(prototypes, m, begin, count, y_squares, [&](int p, int c, T y) { staged[p][c] = y; });
        __syncthreads();
        if (threadIdx.x < Count) y_norms[threadIdx.x] = norm(y_squares, threadIdx.x);
        __syncthreads();
        kept = m.channels <= kStaged;
      }
#pragma unroll(Wide == 1 ? 4 : 1)
      for (int c = lane * Wide; c < count; c += 32 * Wide) {
        T x[kPositions][Wide];
#pragma unroll
        for (int i = 0; i < kPositions; ++i) load(from[i] + begin + c, x[i]);
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
#pragma unroll
          for (int k = 0; k < Wide; ++k) squares[i] += to_float(x[i][k]) * to_float(x[i][k]);
        }
#pragma unroll
        for (int p = 0; p < Count; ++p) {
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
    const int64_t mine = n + lane / 8;
    const bool writes = lane % 8 == 0 && mine < m.positions;
    const float x_norm = sqrtf(quarter_sum(squares));
    if (writes && m.first == 0) norms[blockIdx.z * m.positions + mine] = x_norm;
#pragma unroll
    for (int p = 0; p < Count; ++p) {
      const float dot = quarter_sum(dots[p]);
      if (writes && m.first + p < m.prototypes) {
        scores[(int64_t(blockIdx.z) * m.prototypes + m.first + p) * m.positions + mine] =
            from_float<T>(score(dot, x_norm, y_norms[p], m));
      }
    }
  }
}

// So few lanes along positions that three of four multiprocessors have a block.
template <int Wide>
int lane_bits_of(int64_t batch, int64_t positions) {
  int bits = 5;
  while (1 << bits > kLeastLanes<Wide> &&
         batch * blocks_of(positions, Wide << bits) * 4 < multiprocessors() * 3) {
    --bits;
  }
  return bits;
}

// Blocks for one map, all of which run at the same time and take equally many rows.
template <int Count>
int64_t row_blocks(int64_t batch, int64_t positions) {
  const int64_t room = multiprocessors() * kResident<Count> / batch;
  const int64_t all = blocks_of(positions, kRows), each = blocks_of(all, room < 1 ? 1 : room);
  return blocks_of(all, each);
}

template <class T, int Wide>
void match(const PrototypeMatch& call, const Maps& maps, Matching m, Stream stream) {
  const auto batch = static_cast<unsigned>(maps.batch);
  const T *features = call.features.as<const T>(), *prototypes = call.prototypes.as<const T>();
  T* scores = call.scores.as<T>();
  float* norms = call.norms.as<float>();
  m.lane_bits = lane_bits_of<Wide>(maps.batch, maps.positions);
  for (m.first = 0; m.first < m.prototypes; m.first += kMost) {
    with_count<kMost>(m.prototypes - m.first, [&](auto count) {
      constexpr int Count = decltype(count)::value;
      if (maps.channels_last) {
        const auto blocks = row_blocks<Count>(maps.batch, maps.positions);
        launch("match_rows", match_rows<T, Wide, Count>,
               dim3(static_cast<unsigned>(blocks), 1, batch), kThreads, 0, stream, features,
               prototypes, m, scores, norms);
      } else {
        const auto blocks = blocks_of(maps.positions, Wide << m.lane_bits);
        launch("match_columns", match_columns<T, Wide, Count>,
               dim3(static_cast<unsigned>(blocks), 1, batch), kColumnThreads, 0, stream, features,
               prototypes, m, scores, norms);
      }
    });
  }
}

}  // namespace

void prototype_match(const PrototypeMatch& call, Stream stream) {
  const Maps maps(call.features, call.channels_last);
  const Matching m{maps.positions,
                   maps.batch_stride,
                   maps.row_stride,
                   call.prototypes.stride[0],
                   call.prototypes.stride[1],
                   int(maps.channels),
                   int(call.prototypes.size[1]),
                   0,
                   5,
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
