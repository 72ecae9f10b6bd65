// out[m] = sum_n F[n] w[m, n] / (sum_n w[m, n] + eps), w = the masks brought to the features' grid.
//
// The features are read once for up to four masks, 16 bytes at a time; the masks are small and are
// resized first, by a kernel of their own. No atomics: a call gives the same bits every time.
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

// Masks in one pass, at most: the weights of four and the sums of four channels fill about 100
// registers.
constexpr int kMost = 4;
// Channels of one warp: each takes its own load a step, and the weights are read once for all.
constexpr int kRows = 4;

// ---- the resize, as csrc/include/fastfss/bilinear.h has it

struct Axis {
  int old_size, new_size;
  bool align_corners;
  float scale, inverse;  // old positions for a new one, and new for an old; 0: all at the first

  // On the host: a division on the GPU is a subroutine.
  Axis(int old_size, int new_size, bool align_corners)
      : old_size(old_size), new_size(new_size), align_corners(align_corners) {
    if (align_corners) {
      scale = new_size > 1 ? float(old_size - 1) / float(new_size - 1) : 0.0f;
    } else {
      scale = float(old_size) / float(new_size);
    }
    inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  }

  // The two old positions that new position t lies between, and the weight of the second.
  __device__ void taps(int t, int& first, int& second, float& rest) const {
    // No fused multiply-add: its other rounding would move taps.
    const float source =
        align_corners ? __fmul_rn(scale, float(t))
                      : fmaxf(0.0f, __fadd_rn(__fmul_rn(scale, __fadd_rn(float(t), 0.5f)), -0.5f));
    first = min(int(source), old_size - 1);
    second = min(first + 1, old_size - 1);
    rest = fminf(fmaxf(source - float(first), 0.0f), 1.0f);
  }

  // The weight of old position `position` at new position t.
  __device__ float weight(int t, int position) const {
    int first, second;
    float rest;
    taps(t, first, second, rest);
    return (first == position ? 1.0f - rest : 0.0f) + (second == position ? rest : 0.0f);
  }

  // New positions outside [low, high) have no weight at old position `position`.
  __device__ void range(int position, int& low, int& high) const {
    if (inverse == 0.0f) {
      low = 0, high = new_size;
      return;
    }
    const float shift = align_corners ? 0.0f : 0.5f;
    low = position == 0 ? 0 : max(0, int((float(position) - 1.0f + shift) * inverse - shift) - 1);
    high = position == old_size - 1
               ? new_size
               : min(new_size, int((float(position) + 1.0f + shift) * inverse - shift) + 3);
  }
};

template <class M>
struct MaskView {
  const M* data;
  int64_t batch_stride, mask_stride, row_stride, column_stride;

  __device__ const M* plane() const {
    return data + blockIdx.z * batch_stride + blockIdx.y * mask_stride;
  }
  __device__ float at(const M* plane, int row, int column) const {
    return to_float(plane[row * row_stride + column * column_stride]);
  }
};

// Of the features: positions, in rows of `width`, and how many weights a mask has, which are zeros
// behind the last position.
struct Grid {
  unsigned positions, width, weights;
  Axis rows, columns;  // from what grows or shrinks to its new size
};

__device__ __forceinline__ float* weight_of(float* weights, const Grid& to, unsigned n) {
  return weights + (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * to.weights + n;
}

// The mask shrinks: one thread a position of the features' grid.
template <class M>
__global__ void __launch_bounds__(kThreads)
    pool_weights_of_mask(MaskView<M> masks, Grid to, float* __restrict__ weights) {
  const unsigned n = blockIdx.x * kThreads + threadIdx.x;
  if (n >= to.weights) return;
  float sum = 0.0f;
  if (n < to.positions) {
    int up, down, left, right;
    float of_down, of_right;
    to.rows.taps(int(n / to.width), up, down, of_down);
    to.columns.taps(int(n % to.width), left, right, of_right);
    const M* plane = masks.plane();
    const float upper =
        (1.0f - of_down) * masks.at(plane, up, left) + of_down * masks.at(plane, down, left);
    const float lower =
        (1.0f - of_down) * masks.at(plane, up, right) + of_down * masks.at(plane, down, right);
    sum = (1.0f - of_right) * upper + of_right * lower;
  }
  *weight_of(weights, to, n) = sum;
}

// The features grow: a position's weight is the sum of the mask over a window, 18 x 18 pixels from
// 60 x 60 positions to 473 x 473. One warp a position, a lane a column, with the rows' weights in
// shared memory.
template <class M>
__global__ void __launch_bounds__(kThreads)
    pool_weights_of_features(MaskView<M> masks, Grid to, float* __restrict__ weights) {
  __shared__ float of_rows[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned n = blockIdx.x * kWarps + warp;
  if (n >= to.weights) return;
  float sum = 0.0f;
  if (n < to.positions) {
    const int i = int(n / to.width), j = int(n % to.width);
    int top, bottom, left, right;
    to.rows.range(i, top, bottom);
    to.columns.range(j, left, right);
    const M* plane = masks.plane();
    for (int y = top; y < bottom; y += 32) {
      const int count = min(bottom - y, 32);
      __syncwarp();
      if (lane < count) of_rows[warp][lane] = to.rows.weight(y + lane, i);
      __syncwarp();
      for (int x = left; x < right; x += 32) {
        const bool inside = x + lane < right;
        const int column = inside ? x + lane : left;
        float down = 0.0f;
#pragma unroll 8
        for (int r = 0; r < count; ++r) {
          down += of_rows[warp][r] * masks.at(plane, y + r, column);
        }
        if (inside) sum += to.columns.weight(column, j) * down;
      }
    }
    sum = warp_sum(sum);
  }
  if (lane == 0) *weight_of(weights, to, n) = sum;
}

// ---- the pooling

__device__ __forceinline__ float inverse(float total, float eps) {
  const float divisor = total + eps;
  return divisor == 0.0f ? 0.0f : 1.0f / divisor;
}

struct Pooling {
  const float* weights;  // [B, M, row]
  int64_t row, positions, channels, batch_stride, row_stride;
  int masks, first, splits;
  float eps;
};

// Channels-first: a warp walks along Rows channels; each lane holds Wide neighbouring positions.
template <class T, int Wide, int Count, int Rows>
__global__ void __launch_bounds__(kThreads)
    pool_rows(const T* __restrict__ features, Pooling p, T* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t channel = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * Rows;
  const T* from[Rows];
  for (int r = 0; r < Rows; ++r) {
    const int64_t row = channel + r < p.channels ? channel + r : p.channels - 1;
    from[r] = features + blockIdx.y * p.batch_stride + row * p.row_stride;
  }
  const float* of_mask[Count];
  for (int m = 0; m < Count; ++m) {
    const int mask = p.first + m < p.masks ? p.first + m : p.first;
    of_mask[m] = p.weights + (int64_t(blockIdx.y) * p.masks + mask) * p.row;
  }
  float sums[Count][Rows] = {}, totals[Count] = {};
#pragma unroll 2
  for (int64_t n = lane * Wide; n < p.positions; n += 32 * Wide) {
    T x[Rows][Wide];
#pragma unroll
    for (int r = 0; r < Rows; ++r) load(from[r] + n, x[r]);
#pragma unroll
    for (int m = 0; m < Count; ++m) {
      float w[Wide];
      if constexpr (Wide % 4 == 0) {
#pragma unroll
        for (int i = 0; i < Wide; i += 4) {
          float four[4];
          load(of_mask[m] + n + i, four);
          memcpy(w + i, four, sizeof(four));
        }
      } else {
        load(of_mask[m] + n, w);
      }
#pragma unroll
      for (int i = 0; i < Wide; ++i) {
        totals[m] += w[i];
#pragma unroll
        for (int r = 0; r < Rows; ++r) sums[m][r] += to_float(x[r][i]) * w[i];
      }
    }
  }
#pragma unroll
  for (int m = 0; m < Count; ++m) {
    const float scale = inverse(warp_sum(totals[m]), p.eps);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float sum = warp_sum(sums[m][r]);
      if (lane == 0 && p.first + m < p.masks && channel + r < p.channels) {
        out[(int64_t(blockIdx.y) * p.masks + p.first + m) * p.channels + channel + r] =
            from_float<T>(sum * scale);
      }
    }
  }
}

// Two such blocks on a multiprocessor, each thread with kLoads loads in flight, wait for 64 KB; an
// H200 needs about 25 to hide its memory's latency.
constexpr int kColumnThreads = 512;
constexpr int kColumnWarps = kColumnThreads / 32;
constexpr int kLoads = 4;
constexpr int kStaged = 1024;

__device__ __forceinline__ int64_t part(const Pooling& p, int split, int mask) {
  return ((int64_t(blockIdx.z) * p.splits + split) * p.masks + mask) * (p.channels + 1);
}

// Channels-last: a lane holds Wide channels, a warp every sixteenth position of a split. A part is
// the sums of all channels, and behind them the sum of the weights.
template <class T, int Wide, int Count>
__global__ void __launch_bounds__(kColumnThreads, Count <= 2 ? 2 : 1)
    pool_columns(const T* __restrict__ features, Pooling p, float* __restrict__ parts) {
  constexpr int kStep = kColumnWarps * kLoads;
  static_assert(kStaged % kStep == 0, "a step never crosses the end of the staged weights");
  __shared__ __align__(16) float staged[kStaged][Count];
  __shared__ float of_warp[kColumnWarps][32 * Wide];
  __shared__ float total_of_warp[kColumnWarps][Count];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t channel = (int64_t(blockIdx.x) * 32 + lane) * Wide;
  const int in_split = int((p.positions + p.splits - 1) / p.splits);
  const int64_t first = int64_t(blockIdx.y) * in_split;
  const int length = int(max(min(p.positions - first, int64_t(in_split)), int64_t(0)));

  const T* next = features + blockIdx.z * p.batch_stride + (first + warp) * p.row_stride +
                  (channel < p.channels ? channel : 0);
  const int64_t step = kColumnWarps * p.row_stride;
  const auto fetch = [&](int n, T(&to)[Wide]) {
    if (n < length) {
      load(next, to);
    } else {
#pragma unroll
      for (int i = 0; i < Wide; ++i) to[i] = T{};
    }
    next += step;
  };
  T raw[kLoads][Wide];
#pragma unroll
  for (int u = 0; u < kLoads; ++u) fetch(warp + u * kColumnWarps, raw[u]);

  const float* weights = p.weights + (int64_t(blockIdx.z) * p.masks + p.first) * p.row + first;
  float sums[Count][Wide] = {};
  for (int begin = 0; begin == 0 || begin < length; begin += kStaged) {
    const int count = min(length - begin, kStaged), filled = (count + kStep - 1) / kStep * kStep;
    float totals[Count] = {};
    __syncthreads();
#pragma unroll 1
    for (int n = threadIdx.x; n < filled; n += kColumnThreads) {
#pragma unroll
      for (int m = 0; m < Count; ++m) {
        const bool inside = n < count && p.first + m < p.masks;
        const float w = inside ? weights[m * p.row + begin + n] : 0.0f;
        staged[n][m] = w;
        totals[m] += w;
      }
    }
#pragma unroll
    for (int m = 0; m < Count; ++m) {
      const float total = warp_sum(totals[m]);
      if (lane == 0) total_of_warp[warp][m] = begin == 0 ? total : total_of_warp[warp][m] + total;
    }
    __syncthreads();
#pragma unroll 1
    for (int n = warp; n < filled; n += kStep) {
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        float w[Count];
        memcpy(w, staged[n + u * kColumnWarps], sizeof(w));
#pragma unroll
        for (int i = 0; i < Wide; ++i) {
          const float x = to_float(raw[u][i]);
#pragma unroll
          for (int m = 0; m < Count; ++m) sums[m][i] += x * w[m];
        }
        fetch(begin + n + (kLoads + u) * kColumnWarps, raw[u]);
      }
    }
  }

  static_assert(32 * Wide <= kColumnThreads, "one thread finishes one channel");
#pragma unroll
  for (int m = 0; m < Count; ++m) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Wide; ++i) of_warp[warp][lane * Wide + i] = sums[m][i];
    __syncthreads();
    if (p.first + m >= p.masks) continue;
    float* to = parts + part(p, blockIdx.y, p.first + m);
    const int64_t c = int64_t(blockIdx.x) * 32 * Wide + threadIdx.x;
    if (threadIdx.x < 32 * Wide && c < p.channels) {
      float sum = 0.0f;
#pragma unroll 8
      for (int w = 0; w < kColumnWarps; ++w) sum += of_warp[w][threadIdx.x];
      to[c] = sum;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      float total = 0.0f;
      for (int w = 0; w < kColumnWarps; ++w) total += total_of_warp[w][m];
      to[p.channels] = total;
    }
  }
}

// One lane a channel, one warp every eighth part.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_finish(const float* __restrict__ parts, Pooling p, T* __restrict__ out) {
  __shared__ float of_warp[kWarps][32], total_of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0.0f, total = 0.0f;
#pragma unroll 4
  for (int split = warp; split < p.splits; split += kWarps) {
    const float* from = parts + part(p, split, blockIdx.y);
    sum += from[c < p.channels ? c : 0];
    total += from[p.channels];
  }
  of_warp[warp][lane] = sum;
  if (lane == 0) total_of_warp[warp] = total;
  __syncthreads();
  if (warp > 0 || c >= p.channels) return;
  sum = total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    sum += of_warp[w][lane];
    total += total_of_warp[w];
  }
  out[(int64_t(blockIdx.z) * p.masks + blockIdx.y) * p.channels + c] =
      from_float<T>(sum * inverse(total, p.eps));
}

template <class T, int Wide>
void pool(const T* features, const Maps& maps, Pooling p, TensorView parts, T* out, Stream stream) {
  const auto batch = static_cast<unsigned>(maps.batch);
  for (p.first = 0; p.first < p.masks; p.first += kMost) {
    with_count<kMost>(p.masks - p.first, [&](auto count) {
      constexpr int Count = decltype(count)::value;
      if (maps.channels_last) {
        const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, 32 * Wide)),
                        static_cast<unsigned>(p.splits), batch);
        launch("pool_columns", pool_columns<T, Wide, Count>, grid, kColumnThreads, 0, stream,
               features, p, parts.as<float>());
      } else if (blocks_of(maps.channels, kWarps * kRows) * maps.batch >= kEnoughBlocks) {
        const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, kWarps * kRows)), batch);
        launch("pool_rows", pool_rows<T, Wide, Count, kRows>, grid, kThreads, 0, stream, features,
               p, out);
      } else {
        const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, kWarps)), batch);
        launch("pool_rows", pool_rows<T, Wide, Count, 1>, grid, kThreads, 0, stream, features, p,
               out);
      }
    });
  }
  if (maps.channels_last) {
    const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, 32)),
                    static_cast<unsigned>(p.masks), batch);
    launch("pool_finish", pool_finish<T>, grid, kThreads, 0, stream, parts.as<const float>(), p,
           out);
  }
}

template <class M>
void resize(const MaskedAveragePool& call, const Grid& to, Stream stream) {
  const TensorView& m = call.masks;
  const MaskView<M> masks{m.as<const M>(), m.stride[0], m.stride[1], m.stride[2], m.stride[3]};
  const int64_t in_block = call.shrink_mask ? kThreads : kWarps;
  const dim3 grid(static_cast<unsigned>(blocks_of(to.weights, in_block)),
                  static_cast<unsigned>(m.size[1]), static_cast<unsigned>(m.size[0]));
  launch("pool_weights", call.shrink_mask ? pool_weights_of_mask<M> : pool_weights_of_features<M>,
         grid, kThreads, 0, stream, masks, to, call.weights.as<float>());
}

}  // namespace

// Padded, so that every row of weights begins on 16 bytes and can be read to its end by them.
int64_t pool_row(int64_t positions) { return blocks_of(positions, 8) * 8; }

int pool_splits(int64_t batch, int64_t channels, int64_t positions) {
  return splits_of(batch * blocks_of(channels, 256), positions, kColumnWarps * 8);
}

void masked_average_pool(const MaskedAveragePool& call, Stream stream) {
  const Maps maps(call.features, call.channels_last);
  const int height = int(call.features.size[2]), width = int(call.features.size[3]);
  const int mask_height = int(call.masks.size[2]), mask_width = int(call.masks.size[3]);
  const auto axis = [&](int of_mask, int of_features) {
    return call.shrink_mask ? Axis(of_mask, of_features, call.align_corners)
                            : Axis(of_features, of_mask, call.align_corners);
  };
  const int64_t row = pool_row(maps.positions);
  const Grid to{static_cast<unsigned>(maps.positions), static_cast<unsigned>(width),
                static_cast<unsigned>(row), axis(mask_height, height), axis(mask_width, width)};
  if (call.masks.dtype == DType::kUInt8) {
    resize<uint8_t>(call, to, stream);
  } else {
    with_type(call.masks.dtype,
              [&](auto* null) { resize<Pointee<decltype(null)>>(call, to, stream); });
  }
  const Pooling p{call.weights.as<const float>(),
                  row,
                  maps.positions,
                  maps.channels,
                  maps.batch_stride,
                  maps.row_stride,
                  int(call.masks.size[1]),
                  0,
                  maps.channels_last ? int(call.parts.size[1]) : 1,
                  call.eps};
  const int64_t length = maps.channels_last ? maps.channels : maps.positions;
  const bool wide = in_wide_loads(call.features, length, {maps.batch_stride, maps.row_stride});
  with_type(call.features.dtype, [&](auto* null) {
    using T = Pointee<decltype(null)>;
    const T* features = call.features.as<const T>();
    T* out = call.out.as<T>();
    if (wide) {
      pool<T, kWide<T>>(features, maps, p, call.parts, out, stream);
    } else {
      pool<T, 1>(features, maps, p, call.parts, out, stream);
    }
  });
}

}  // namespace fastfss::cuda
