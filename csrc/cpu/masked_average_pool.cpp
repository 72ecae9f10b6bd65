// Masked average pooling.
//
//   out[b][m][c] = sum_n F[b][c][n] w[b][m][n],     w = m' / (sum_n m'[n] + eps)
//
// m' is the mask on the grid of the features: resized to it (SSP), or, where the features were to
// be enlarged to the mask (PANet, MLC), the adjoint of that resize applied to the mask, because
// sum_pixels (U F)(p) m(p) = sum_n F(n) (U^T m)(n). The sum of m' is then the mask's own.
//
// Floor: one read of the features, 14.7 MB an image at 1024 x 60 x 60 float32. Measured on one Zen
// 5 core, foreground and background, cold caches: 16 images 1.25 times a plain read (channels-last
// and bfloat16 1.6), of which a tenth of a read is the masks; one image 1.6, of which 0.1 ms of 0.7
// is the operator's own cold code. The gradient of the features takes what fresh memory takes to be
// filled.
#include "fastfss/masked_average_pool.h"

#include <algorithm>
#include <optional>

#include "fastfss/bilinear.h"
#include "fastfss/feature_maps.h"
#include "fastfss/parallel.h"
#include "fastfss/scratch.h"
#include "fastfss/thin_product.h"

namespace fastfss::FASTFSS_ISA {
namespace {

// The weights w of all masks, in the layout that the product with the features wants.
struct Weights {
  int64_t stride;  // channels-first [B][M][stride]; channels-last [B][positions][M]
  Scratch values;
  Scratch inverse;  // [B][M]: 1 / (sum m' + eps)

  const float* of_image(int64_t b, int64_t masks) const {
    return values.get() + b * masks * stride;
  }
};

template <class Mask>
void make_weights(const PoolMasks& pool, const FeatureMaps& maps, int threads, Weights& weights) {
  const TensorView& view = pool.masks;
  const int64_t masks = view.size[1], positions = maps.positions();
  const int64_t mask_height = view.size[2], mask_width = view.size[3];
  const auto taps = [&](int64_t feature_size, int64_t mask_size) {
    return pool.shrink_mask ? Taps(mask_size, feature_size, pool.align_corners)
                            : Taps(feature_size, mask_size, pool.align_corners);
  };
  const Taps rows = taps(maps.height, mask_height), columns = taps(maps.width, mask_width);
  std::optional<AdjointResize> adjoint;
  if (!pool.shrink_mask) adjoint.emplace(rows, columns);
  parallel_for(maps.batch * masks, threads, [&](int64_t begin, int64_t end) {
    Scratch resized = scratch(positions);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / masks, m = i % masks;
      const Mask* mask = view.as<Mask>() + b * view.stride[0] + m * view.stride[1];
      if (pool.shrink_mask) {
        resize(mask, view.stride[2], rows, columns, resized.get());
      } else {
        (*adjoint)(mask, view.stride[2], resized.get());
      }
      const float divisor = sum(resized.get(), positions) + pool.eps;
      const float inverse = divisor != 0.0f ? 1.0f / divisor : 0.0f;  // eps = 0 and an empty mask
      weights.inverse[i] = inverse;
      float* to = weights.values.get() + b * masks * weights.stride;
      if (maps.channels_last) {
        for (int64_t n = 0; n < positions; ++n) to[n * masks + m] = resized[n] * inverse;
      } else {
        to += m * weights.stride;
        for (int64_t n = 0; n < positions; ++n) to[n] = resized[n] * inverse;
        finish_dots_weights(to, 1, positions);
      }
    }
  });
}

Weights make_weights(const PoolMasks& pool, const FeatureMaps& maps, int threads) {
  const int64_t masks = pool.masks.size[1];
  const int64_t stride = maps.channels_last ? maps.positions() : dots_stride(maps.positions());
  Weights weights{stride, scratch(maps.batch * masks * stride), scratch(maps.batch * masks)};
  switch (pool.masks.dtype) {
    case DType::kFloat32: make_weights<float>(pool, maps, threads, weights); break;
    case DType::kBFloat16: make_weights<BFloat16>(pool, maps, threads, weights); break;
    case DType::kUInt8: make_weights<uint8_t>(pool, maps, threads, weights); break;
  }
  return weights;
}

template <class T>
void pool(const MaskedAveragePool& call) {
  const FeatureMaps maps(call.features, call.channels_last);
  const int64_t masks = call.pool.masks.size[1], channels = maps.channels;
  const Weights weights = make_weights(call.pool, maps, call.threads);
  // Channels are independent of each other: a thread takes a range of them.
  parallel_ranges(
      maps.batch, channels, kWidth, call.threads, [&](int64_t b, int64_t c, int64_t count) {
        const T* x = call.features.as<const T>() + b * maps.batch_stride;
        const float* w = weights.of_image(b, masks);
        const int64_t stride = padded(count);
        Scratch sums = scratch(masks * stride);
        if (maps.channels_last) {
          row_sums(x + c, maps.row_stride, maps.positions(), count, w, masks, sums.get(), nullptr);
        } else {
          row_dots(x + c * maps.row_stride, maps.row_stride, count, maps.positions(), w, masks,
                   sums.get(), stride, nullptr);
        }
        T* out = call.out.as<T>() + b * masks * channels + c;
        for (int64_t m = 0; m < masks; ++m) {
          convert(sums.get() + m * stride, count, out + m * channels);
        }
      });
}

// dF[c][n] = sum_m g[m][c] w[m][n]
// dm'[m][n] = (s[m][n] - sum_k w[m][k] s[m][k]) / (sum m' + eps),   s[m][n] = sum_c g[m][c] F[c][n]
template <class T>
void pool_backward(const MaskedAveragePoolBackward& call) {
  const FeatureMaps maps(call.features, call.channels_last);
  const int64_t masks = call.pool.masks.size[1], channels = maps.channels;
  const int64_t positions = maps.positions();
  const Weights weights = make_weights(call.pool, maps, call.threads);

  // g as [C][M] and as [M][g_stride].
  const int64_t g_stride = dots_stride(channels);
  Scratch by_channel = scratch(maps.batch * channels * masks);
  Scratch by_mask = scratch(maps.batch * masks * g_stride);
  for (int64_t b = 0; b < maps.batch; ++b) {
    const T* from = call.grad.as<const T>() + b * masks * channels;
    for (int64_t m = 0; m < masks; ++m) {
      for (int64_t c = 0; c < channels; ++c) {
        const float value = to_float(from[m * channels + c]);
        by_channel[(b * channels + c) * masks + m] = value;
        by_mask[(b * masks + m) * g_stride + c] = value;
      }
    }
    finish_dots_weights(by_mask.get() + b * masks * g_stride, masks, channels);
  }

  if (call.grad_features.data != nullptr) {
    const FeatureMaps grads(call.grad_features, call.channels_last);
    const auto zero = [](int64_t, int64_t, int) { return VFloat{}; };
    parallel_ranges(
        maps.batch, maps.rows(), 4, call.threads, [&](int64_t b, int64_t r, int64_t count) {
          T* to = call.grad_features.as<T>() + b * grads.batch_stride + r * grads.row_stride;
          const float* w = weights.of_image(b, masks);
          if (maps.channels_last) {
            outer(w + r * masks, masks, by_mask.get() + b * masks * g_stride, g_stride, zero, count,
                  channels, to, grads.row_stride);
          } else {
            outer(by_channel.get() + (b * channels + r) * masks, masks, w, weights.stride, zero,
                  count, positions, to, grads.row_stride);
          }
        });
  }

  if (call.grad_weights.data == nullptr) return;
  float* to = call.grad_weights.as<float>();
  parallel_ranges(
      maps.batch, positions, kWidth, call.threads, [&](int64_t b, int64_t n, int64_t count) {
        const T* x = call.features.as<const T>() + b * maps.batch_stride;
        const int64_t stride = padded(count);
        Scratch sums = scratch(masks * stride);
        if (maps.channels_last) {
          row_dots(x + n * maps.row_stride, maps.row_stride, count, channels,
                   by_mask.get() + b * masks * g_stride, masks, sums.get(), stride, nullptr);
        } else {
          row_sums(x + n, maps.row_stride, channels, count, by_channel.get() + b * channels * masks,
                   masks, sums.get(), nullptr);
        }
        for (int64_t m = 0; m < masks; ++m) {
          std::copy_n(sums.get() + m * stride, count, to + (b * masks + m) * positions + n);
        }
      });
  for (int64_t i = 0; i < maps.batch * masks; ++i) {
    const float* w = weights.of_image(i / masks, masks);
    const int64_t m = i % masks;
    const auto weight = [&](int64_t n) {
      return maps.channels_last ? w[n * masks + m] : w[m * weights.stride + n];
    };
    float* grad = to + i * positions;
    double mean = 0;
    for (int64_t n = 0; n < positions; ++n) mean += weight(n) * grad[n];
    for (int64_t n = 0; n < positions; ++n) {
      grad[n] = weights.inverse[i] * (grad[n] - static_cast<float>(mean));
    }
  }
}

}  // namespace

void masked_average_pool(const MaskedAveragePool& call) {
  call.features.dtype == DType::kFloat32 ? pool<float>(call) : pool<BFloat16>(call);
}

void masked_average_pool_backward(const MaskedAveragePoolBackward& call) {
  call.features.dtype == DType::kFloat32 ? pool_backward<float>(call)
                                         : pool_backward<BFloat16>(call);
}

}  // namespace fastfss::FASTFSS_ISA
