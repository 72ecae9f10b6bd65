// out[m] = sum_n F[n] w[m, n] / (sum_n w[m, n] + eps), w = the masks brought to the features' grid.
//
// The features are read once for up to four masks, 16 bytes at a time; the masks are small and are
// resized first, by a kernel of their own. No atomics: a call gives the same bits every time.
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

// Masks in one pass: the weights of four and the sums of four channels fill about 100 registers.
constexpr int kMasks = 4;
// Channels of one warp: each takes its own load a step, and the weights are read once for all.
constexpr int kRows = 4;

// ---- the resize, as csrc/include/fastfss/bilinear.h has it

struct Axis {
  int old_size, new_size;
  bool align_corners;

  __device__ float scale() const {
    if (align_corners) return new_size > 1 ? float(old_size - 1) / float(new_size - 1) : 0.0f;
    return float(old_size) / float(new_size);
  }

  // The two old positions that new position t lies between, and the weight of the second.
  __device__ void taps(int t, int& first, int& second, float& rest) const {
    // No fused multiply-add: its other rounding would move taps.
    const float source =
        align_corners
            ? __fmul_rn(scale(), float(t))
            : fmaxf(0.0f, __fadd_rn(__fmul_rn(scale(), __fadd_rn(float(t), 0.5f)), -0.5f));
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
    const float step = scale();
    if (step <= 0.0f) {
      low = 0, high = new_size;
      return;
    }
    const float shift = align_corners ? 0.0f : 0.5f;
    low = position == 0 ? 0 : max(0, int((float(position) - 1.0f + shift) / step - shift) - 1);
    high = position == old_size - 1
               ? new_size
               : min(new_size, int((float(position) + 1.0f + shift) / step - shift) + 3);
  }
};

struct MaskView {
  const void* data;
  DType dtype;
  int64_t batch_stride, mask_stride, row_stride, column_stride;
  int height, width;

  __device__ float at(int64_t plane, int row, int column) const {
    const int64_t place = plane + row * row_stride + column * column_stride;
    switch (dtype) {
      case DType::kUInt8: return float(static_cast<const uint8_t*>(data)[place]);
      case DType::kFloat32: return static_cast<const float*>(data)[place];
      case DType::kBFloat16: return to_float(static_cast<const BF16*>(data)[place]);
      default: return to_float(static_cast<const F16*>(data)[place]);
    }
  }
};

// One thread a position of the features' grid; rows are padded with zeros.
__global__ void pool_weights(MaskView masks, bool shrink, bool align_corners, int height, int width,
                             int64_t row, float* weights) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= row) return;
  float sum = 0.0f;
  if (n < int64_t(height) * width) {
    const int64_t plane = blockIdx.z * masks.batch_stride + blockIdx.y * masks.mask_stride;
    const int i = int(n / width), j = int(n % width);
    if (shrink) {
      const Axis rows{masks.height, height, align_corners},
          columns{masks.width, width, align_corners};
      int up, down, left, right;
      float of_down, of_right;
      rows.taps(i, up, down, of_down);
      columns.taps(j, left, right, of_right);
      const float upper =
          (1.0f - of_down) * masks.at(plane, up, left) + of_down * masks.at(plane, down, left);
      const float lower =
          (1.0f - of_down) * masks.at(plane, up, right) + of_down * masks.at(plane, down, right);
      sum = (1.0f - of_right) * upper + of_right * lower;
    } else {
      const Axis rows{height, masks.height, align_corners},
          columns{width, masks.width, align_corners};
      int top, bottom, left, right;
      rows.range(i, top, bottom);
      columns.range(j, left, right);
      for (int y = top; y < bottom; ++y) {
        const float of_row = rows.weight(y, i);
        if (of_row == 0.0f) continue;
        float across = 0.0f;
        for (int x = left; x < right; ++x) across += columns.weight(x, j) * masks.at(plane, y, x);
        sum += of_row * across;
      }
    }
  }
  weights[(int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * row + n] = sum;
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
template <class T, int Wide, int Rows>
__global__ void __launch_bounds__(kThreads)
    pool_rows(const T* __restrict__ features, Pooling p, T* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t channel = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * Rows;
  const T* from[Rows];
  for (int r = 0; r < Rows; ++r) {
    const int64_t row = channel + r < p.channels ? channel + r : p.channels - 1;
    from[r] = features + blockIdx.y * p.batch_stride + row * p.row_stride;
  }
  const float* of_mask[kMasks];
  for (int m = 0; m < kMasks; ++m) {
    const int mask = p.first + m < p.masks ? p.first + m : p.first;
    of_mask[m] = p.weights + (int64_t(blockIdx.y) * p.masks + mask) * p.row;
  }
  float sums[kMasks][Rows] = {}, totals[kMasks] = {};
#pragma unroll 2
  for (int64_t n = lane * Wide; n < p.positions; n += 32 * Wide) {
    T x[Rows][Wide];
#pragma unroll
    for (int r = 0; r < Rows; ++r) load(from[r] + n, x[r]);
#pragma unroll
    for (int m = 0; m < kMasks; ++m) {
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
  for (int m = 0; m < kMasks; ++m) {
    const float scale = inverse(warp_sum(totals[m]), p.eps);
    for (int r = 0; r < Rows; ++r) {
      const float sum = warp_sum(sums[m][r]);
      if (lane == 0 && p.first + m < p.masks && channel + r < p.channels) {
        out[(int64_t(blockIdx.y) * p.masks + p.first + m) * p.channels + channel + r] =
            from_float<T>(sum * scale);
      }
    }
  }
}

// Channels-last: a lane holds Wide channels, a warp every eighth position of a split.
template <class T, int Wide>
__global__ void __launch_bounds__(kThreads)
    pool_columns(const T* __restrict__ features, Pooling p, float* __restrict__ parts) {
  __shared__ float of_warp[kWarps][32 * Wide];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t channel = (int64_t(blockIdx.x) * 32 + lane) * Wide;
  const bool inside = channel < p.channels;
  const T* from = features + blockIdx.z * p.batch_stride + (inside ? channel : 0);
  const float* of_mask[kMasks];
  for (int m = 0; m < kMasks; ++m) {
    const int mask = p.first + m < p.masks ? p.first + m : p.first;
    of_mask[m] = p.weights + (int64_t(blockIdx.z) * p.masks + mask) * p.row;
  }
  float sums[kMasks][Wide] = {};
#pragma unroll 4
  for (int64_t n = blockIdx.y * kWarps + warp; n < p.positions; n += int64_t(kWarps) * p.splits) {
    T x[Wide];
    load(from + n * p.row_stride, x);
#pragma unroll
    for (int m = 0; m < kMasks; ++m) {
      const float w = __ldg(of_mask[m] + n);
#pragma unroll
      for (int i = 0; i < Wide; ++i) sums[m][i] += to_float(x[i]) * w;
    }
  }
  for (int m = 0; m < kMasks && p.first + m < p.masks; ++m) {
    for (int i = 0; i < Wide; ++i) of_warp[warp][lane * Wide + i] = sums[m][i];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * Wide; i += kThreads) {
      const int64_t c = int64_t(blockIdx.x) * 32 * Wide + i;
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += of_warp[w][i];
      if (c < p.channels) {
        parts[((int64_t(blockIdx.z) * p.splits + blockIdx.y) * p.masks + p.first + m) * p.channels +
              c] = sum;
      }
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_finish(const float* __restrict__ parts, Pooling p, T* __restrict__ out) {
  __shared__ float of_warp[kWarps];
  const int64_t item = int64_t(blockIdx.z) * p.masks + blockIdx.y;
  float total = 0.0f;
  for (int64_t n = threadIdx.x; n < p.positions; n += kThreads)
    total += p.weights[item * p.row + n];
  total = warp_sum(total);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = total;
  __syncthreads();
  total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  float sum = 0.0f;
  for (int s = 0; s < p.splits; ++s) {
    sum += parts[((int64_t(blockIdx.z) * p.splits + s) * p.masks + blockIdx.y) * p.channels + c];
  }
  out[item * p.channels + c] = from_float<T>(sum * inverse(total, p.eps));
}

template <class T, int Wide>
void pool(const T* features, const Maps& maps, Pooling p, TensorView parts, T* out, Stream stream) {
  const auto batch = static_cast<unsigned>(maps.batch);
  for (p.first = 0; p.first < p.masks; p.first += kMasks) {
    if (maps.channels_last) {
      const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, 32 * Wide)),
                      static_cast<unsigned>(p.splits), batch);
      launch("pool_columns", pool_columns<T, Wide>, grid, kThreads, 0, stream, features, p,
             parts.as<float>());
    } else if (blocks_of(maps.channels, kWarps * kRows) * maps.batch >= kEnoughBlocks) {
      const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, kWarps * kRows)), batch);
      launch("pool_rows", pool_rows<T, Wide, kRows>, grid, kThreads, 0, stream, features, p, out);
    } else {
      const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, kWarps)), batch);
      launch("pool_rows", pool_rows<T, Wide, 1>, grid, kThreads, 0, stream, features, p, out);
    }
  }
  if (maps.channels_last) {
    const dim3 grid(static_cast<unsigned>(blocks_of(maps.channels, kThreads)),
                    static_cast<unsigned>(p.masks), batch);
    launch("pool_finish", pool_finish<T>, grid, kThreads, 0, stream, parts.as<const float>(), p,
           out);
  }
}

}  // namespace

// Padded, so that every row of weights begins on 16 bytes and can be read to its end by them.
int64_t pool_row(int64_t positions) { return blocks_of(positions, 8) * 8; }

int pool_splits(int64_t batch, int64_t channels, int64_t positions) {
  return splits_of(batch * blocks_of(channels, 256), positions, kWarps * 8);
}

void masked_average_pool(const MaskedAveragePool& call, Stream stream) {
  const Maps maps(call.features, call.channels_last);
  const TensorView& m = call.masks;
  const MaskView masks{m.data,      m.dtype,     m.stride[0],    m.stride[1],
                       m.stride[2], m.stride[3], int(m.size[2]), int(m.size[3])};
  const int height = int(call.features.size[2]), width = int(call.features.size[3]);
  const int64_t row = pool_row(maps.positions);
  const dim3 grid(static_cast<unsigned>(blocks_of(row, kThreads)), static_cast<unsigned>(m.size[1]),
                  static_cast<unsigned>(maps.batch));
  launch("pool_weights", pool_weights, grid, kThreads, 0, stream, masks, call.shrink_mask,
         call.align_corners, height, width, row, call.weights.as<float>());
  const Pooling p{call.weights.as<const float>(),
                  row,
                  maps.positions,
                  maps.channels,
                  maps.batch_stride,
                  maps.row_stride,
                  int(m.size[1]),
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
