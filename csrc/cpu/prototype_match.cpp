// Prototype matching.
//
//   score[b][p][n] = scale <x_n, y_p> / (max(|x_n|, eps) max(|y_p|, eps))
//
// x_n = F[b][:][n]; y_p a prototype, of the image or of the position n. The dot products and |x_n|
// come from one pass over the features.
//
// Floor: one read of the features, 14.7 MB an image at 1024 x 60 x 60 float32, and of the
// prototypes where every position has its own. Measured on one Zen 5 core, cold caches: 16
// images 1.3 to 1.5 times a plain read with two or ten prototypes; one image 1.7 to 1.9 (0.1 ms of
// 0.8 is the operator's own cold code), channels-last 2.0 with two and 2.5 to 3.0 with ten; one
// prototype a position 1.4, channels-last 1.1 to 1.3.
#include "fastfss/prototype_match.h"

#include <algorithm>
#include <cmath>

#include "fastfss/feature_maps.h"
#include "fastfss/pair_product.h"
#include "fastfss/parallel.h"
#include "fastfss/scratch.h"
#include "fastfss/thin_product.h"

namespace fastfss::FASTFSS_ISA {
namespace {

bool one_per_position(const PrototypeMatch& call) { return call.prototypes.rank == 5; }

// ---- prototypes [B, P, C]

// The unit vectors y / max(|y|, eps) of an image, times `factor`, as [P][stride] or [C][P].
template <class T>
void unit_prototypes(const PrototypeMatch& call, int64_t b, float factor, bool transposed,
                     int64_t stride, float* out, float* norms) {
  const TensorView& view = call.prototypes;
  const int64_t count = view.size[1], channels = view.size[2];
  for (int64_t p = 0; p < count; ++p) {
    const T* y = view.as<const T>() + b * view.stride[0] + p * view.stride[1];
    double square = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const float value = to_float(y[c * view.stride[2]]);
      square += static_cast<double>(value) * value;
    }
    const float norm = static_cast<float>(std::sqrt(square));
    if (norms != nullptr) norms[p] = norm;
    const float inverse = factor / std::max(norm, call.eps);
    for (int64_t c = 0; c < channels; ++c) {
      const float value = to_float(y[c * view.stride[2]]) * inverse;
      transposed ? out[c * count + p] = value : out[p * stride + c] = value;
    }
  }
}

template <class T>
void match(const PrototypeMatch& call) {
  const FeatureMaps maps(call.features, call.channels_last);
  const int64_t count = call.prototypes.size[1], channels = maps.channels;
  const int64_t positions = maps.positions();
  const int64_t y_stride = maps.channels_last ? dots_stride(channels) : channels;
  Scratch prototypes = scratch(maps.batch * count * y_stride);
  for (int64_t b = 0; b < maps.batch; ++b) {
    float* y = prototypes.get() + b * count * y_stride;
    unit_prototypes<T>(call, b, call.scale, !maps.channels_last, y_stride, y, nullptr);
    if (maps.channels_last) finish_dots_weights(y, count, channels);
  }
  // A thread takes a range of positions.
  parallel_ranges(
      maps.batch, positions, kWidth, call.threads, [&](int64_t b, int64_t n, int64_t size) {
        const T* x = call.features.as<const T>() + b * maps.batch_stride;
        const float* y = prototypes.get() + b * count * y_stride;
        const int64_t stride = padded(size);
        Scratch dots = scratch((count + 1) * stride);
        float* squares = dots.get() + count * stride;
        if (maps.channels_last) {
          row_dots(x + n * maps.row_stride, maps.row_stride, size, channels, y, count, dots.get(),
                   stride, squares);
        } else {
          row_sums(x + n, maps.row_stride, channels, size, y, count, dots.get(), squares);
        }
        float* norms = call.norms.as<float>() + b * positions + n;
        for (int64_t i = 0; i < size; ++i) norms[i] = std::sqrt(squares[i]);
        for (int64_t i = 0; i < size; ++i) squares[i] = 1.0f / std::max(norms[i], call.eps);
        T* scores = call.scores.as<T>() + b * count * positions + n;
        for (int64_t p = 0; p < count; ++p, scores += positions) {
          float* row = dots.get() + p * stride;
          for (int64_t i = 0; i < size; ++i) row[i] *= squares[i];
          convert(row, size, scores);
        }
      });
}

// With a[p][n] = g[p][n] scale / max(|x_n|, eps) and u_p = y_p / max(|y_p|, eps):
//   dF[c][n] = sum_p u_p[c] a[p][n] - x_n[c] sum_p g[p][n] score[p][n] / |x_n|^2
//   dy_p[c]  = sum_n a[p][n] x_n[c] / max(|y_p|, eps) - y_p[c] sum_n g[p][n] score[p][n] / |y_p|^2
// where a norm of eps or less counts as the constant eps: its term of a quotient falls away.
template <class T>
void match_backward(const PrototypeMatchBackward& backward) {
  const PrototypeMatch& call = backward.forward;
  const FeatureMaps maps(call.features, call.channels_last);
  const int64_t count = call.prototypes.size[1], channels = maps.channels;
  const int64_t positions = maps.positions();
  const int64_t y_stride = dots_stride(channels), n_stride = dots_stride(positions);
  const bool want_features = backward.grad_features.data != nullptr;
  const bool want_prototypes = backward.grad_prototypes.data != nullptr;

  parallel_for(maps.batch, call.threads, [&](int64_t first, int64_t last) {
    Scratch by_position = scratch(positions * count);  // a as [N][P]
    Scratch by_prototype = scratch(count * n_stride);  // a as [P][n_stride]
    Scratch shrink = scratch(n_stride);                // sum_p g score / |x|^2, negative
    Scratch units = scratch(count * y_stride);         // u as [P][y_stride] or [C][P]
    Scratch sums = scratch(count * padded(channels));
    Scratch y_norms = scratch(count), y_shrink = scratch(count);
    for (int64_t b = first; b < last; ++b) {
      const T* x = call.features.as<const T>() + b * maps.batch_stride;
      const T* grad = backward.grad.as<const T>() + b * count * positions;
      const T* scores = call.scores.as<const T>() + b * count * positions;
      const float* norms = call.norms.as<const float>() + b * positions;
      std::fill_n(shrink.get(), n_stride, 0.0f);
      for (int64_t p = 0; p < count; ++p) {
        double total = 0;
        for (int64_t n = 0; n < positions; ++n) {
          const float g = to_float(grad[p * positions + n]);
          const float product = g * to_float(scores[p * positions + n]);
          const float a = g * call.scale / std::max(norms[n], call.eps);
          by_position[n * count + p] = a;
          by_prototype[p * n_stride + n] = a;
          if (norms[n] > call.eps) shrink[n] -= product / norms[n] / norms[n];
          total += product;
        }
        y_shrink[p] = static_cast<float>(total);
      }
      finish_dots_weights(by_prototype.get(), count, positions);
      unit_prototypes<T>(call, b, 1.0f, !maps.channels_last, y_stride, units.get(), y_norms.get());

      if (want_features) {
        const FeatureMaps grads(backward.grad_features, call.channels_last);
        T* to = backward.grad_features.as<T>() + b * grads.batch_stride;
        const auto value = [&](int64_t r, int64_t k, int lanes) {
          const T* from = x + r * maps.row_stride + k;
          return lanes == kWidth ? load(from) : load_first(from, lanes);
        };
        if (maps.channels_last) {
          finish_dots_weights(units.get(), count, channels);
          const auto start = [&](int64_t r, int64_t k, int lanes) {
            return shrink[r] * value(r, k, lanes);
          };
          outer(by_position.get(), count, units.get(), y_stride, start, positions, channels, to,
                grads.row_stride);
        } else {
          const auto start = [&](int64_t r, int64_t k, int lanes) {
            return load(shrink.get() + k) * value(r, k, lanes);
          };
          outer(units.get(), count, by_prototype.get(), n_stride, start, channels, positions, to,
                grads.row_stride);
        }
      }

      if (!want_prototypes) continue;
      const int64_t stride = padded(channels);
      if (maps.channels_last) {
        row_sums(x, maps.row_stride, positions, channels, by_position.get(), count, sums.get(),
                 nullptr);
      } else {
        row_dots(x, maps.row_stride, channels, positions, by_prototype.get(), count, sums.get(),
                 stride, nullptr);
      }
      const TensorView& view = call.prototypes;
      for (int64_t p = 0; p < count; ++p) {
        const T* y = view.as<const T>() + b * view.stride[0] + p * view.stride[1];
        T* to = backward.grad_prototypes.as<T>() + (b * count + p) * channels;
        const float norm = y_norms[p], inverse = 1.0f / std::max(norm, call.eps);
        const float factor = norm > call.eps ? y_shrink[p] / norm / norm : 0.0f;
        for (int64_t c = 0; c < channels; ++c) {
          const float along = factor * to_float(y[c * view.stride[2]]);
          to[c] = from_float<T>(sums[p * stride + c] * inverse - along);
        }
      }
    }
  });
}

// ---- prototypes [B, P, C, h, w]

struct PrototypeMaps {
  int64_t batch_stride, prototype_stride, row_stride;

  PrototypeMaps(const TensorView& view, bool channels_last)
      : batch_stride(view.stride[0]),
        prototype_stride(view.stride[1]),
        row_stride(!channels_last ? view.stride[2]
                                  : (view.size[4] > 1 ? view.stride[4] : view.stride[3])) {}
};

template <class T>
void match_positions(const PrototypeMatch& call) {
  const FeatureMaps maps(call.features, call.channels_last);
  const PrototypeMaps others(call.prototypes, call.channels_last);
  const int64_t count = call.prototypes.size[1], positions = maps.positions();
  parallel_ranges(
      maps.batch, positions, kWidth, call.threads, [&](int64_t b, int64_t n, int64_t size) {
        const int64_t first = maps.channels_last ? n * maps.row_stride : n;
        const int64_t other_first = maps.channels_last ? n * others.row_stride : n;
        const T* x = call.features.as<const T>() + b * maps.batch_stride + first;
        const T* y = call.prototypes.as<const T>() + b * others.batch_stride + other_first;
        Scratch sums = scratch(3 * padded(size));
        float *xy = sums.get(), *yy = xy + padded(size), *xx = yy + padded(size);
        float* x_norms = call.norms.as<float>() + b * (1 + count) * positions + n;
        for (int64_t p = 0; p < count; ++p, y += others.prototype_stride) {
          const PairSums out{xy, yy, p == 0 ? xx : nullptr};
          if (maps.channels_last) {
            pair_row_dots(x, maps.row_stride, y, others.row_stride, size, maps.channels, out);
          } else {
            pair_row_sums(x, maps.row_stride, y, others.row_stride, maps.channels, size, out);
          }
          if (p == 0) {
            for (int64_t i = 0; i < size; ++i) x_norms[i] = std::sqrt(xx[i]);
          }
          float* y_norms = x_norms + (1 + p) * positions;
          for (int64_t i = 0; i < size; ++i) y_norms[i] = std::sqrt(yy[i]);
          for (int64_t i = 0; i < size; ++i) {
            xy[i] *= call.scale / std::max(x_norms[i], call.eps) / std::max(y_norms[i], call.eps);
          }
          convert(xy, size, call.scores.as<T>() + (b * count + p) * positions + n);
        }
      });
}

// With a[p][n] = g scale / (max(|x|, eps) max(|y|, eps)), every position for itself:
//   dx = sum_p a_p y_p - x sum_p g score / |x|^2,       dy_p = a_p x - y_p g score / |y_p|^2
template <class T, bool kChannelsLast>
void match_positions_backward(const PrototypeMatchBackward& backward) {
  const PrototypeMatch& call = backward.forward;
  const FeatureMaps maps(call.features, kChannelsLast);
  const PrototypeMaps others(call.prototypes, kChannelsLast);
  const int64_t count = call.prototypes.size[1], positions = maps.positions();
  const bool want_features = backward.grad_features.data != nullptr;
  const bool want_prototypes = backward.grad_prototypes.data != nullptr;
  // Either may be missing; its layout is then never used.
  const FeatureMaps grads(want_features ? backward.grad_features : call.features, kChannelsLast);
  const PrototypeMaps other_grads(want_prototypes ? backward.grad_prototypes : call.prototypes,
                                  kChannelsLast);
  parallel_for(maps.batch, call.threads, [&](int64_t from, int64_t to) {
    const int64_t stride = padded(positions);
    Scratch mixed = scratch(count * stride);  // a
    Scratch x_shrink = scratch(stride);       // sum_p g score / |x|^2
    Scratch y_shrink = scratch(count * stride);
    for (int64_t b = from; b < to; ++b) {
      const float* x_norms = call.norms.as<const float>() + b * (1 + count) * positions;
      std::fill_n(x_shrink.get(), stride, 0.0f);
      for (int64_t p = 0; p < count; ++p) {
        const T* grad = backward.grad.as<const T>() + (b * count + p) * positions;
        const T* scores = call.scores.as<const T>() + (b * count + p) * positions;
        const float* y_norms = x_norms + (1 + p) * positions;
        for (int64_t n = 0; n < positions; ++n) {
          const float g = to_float(grad[n]), product = g * to_float(scores[n]);
          const float x_norm = x_norms[n], y_norm = y_norms[n];
          mixed[p * stride + n] =
              g * call.scale / std::max(x_norm, call.eps) / std::max(y_norm, call.eps);
          if (x_norm > call.eps) x_shrink[n] += product / x_norm / x_norm;
          y_shrink[p * stride + n] = y_norm > call.eps ? product / y_norm / y_norm : 0.0f;
        }
      }
      const T* x = call.features.as<const T>() + b * maps.batch_stride;
      const T* y = call.prototypes.as<const T>() + b * others.batch_stride;
      T* dx = want_features ? backward.grad_features.as<T>() + b * grads.batch_stride : nullptr;
      T* dy = want_prototypes ? backward.grad_prototypes.as<T>() + b * other_grads.batch_stride
                              : nullptr;
      const int64_t length = maps.row_length();
      const auto step = [&](int64_t r, int64_t k, int lanes) {
        const auto get = [&](const T* at) {
          return lanes == kWidth ? load(at) : load_first(at, lanes);
        };
        const auto put = [&](T* at, VFloat v) {
          lanes == kWidth ? store(at, v) : store_first(at, v, lanes);
        };
        const auto factor = [&](const float* of) {
          return kChannelsLast ? splat(of[r]) : load(of + k);
        };
        const VFloat a = get(x + r * maps.row_stride + k);
        VFloat total = -factor(x_shrink.get()) * a;
        for (int64_t p = 0; p < count; ++p) {
          const VFloat other = get(y + p * others.prototype_stride + r * others.row_stride + k);
          const VFloat mix = factor(mixed.get() + p * stride);
          total += mix * other;
          if (!want_prototypes) continue;
          put(dy + p * other_grads.prototype_stride + r * other_grads.row_stride + k,
              mix * a - factor(y_shrink.get() + p * stride) * other);
        }
        if (want_features) put(dx + r * grads.row_stride + k, total);
      };
      for (int64_t r = 0; r < maps.rows(); ++r) {
        int64_t k = 0;
        for (; k + kWidth <= length; k += kWidth) step(r, k, kWidth);
        if (k == length) continue;
        // The last whole vector again, which gives the same values.
        length >= kWidth ? step(r, length - kWidth, kWidth) : step(r, 0, static_cast<int>(length));
      }
    }
  });
}

}  // namespace

void prototype_match(const PrototypeMatch& call) {
  const bool single = call.features.dtype == DType::kFloat32;
  if (one_per_position(call)) {
    single ? match_positions<float>(call) : match_positions<BFloat16>(call);
  } else {
    single ? match<float>(call) : match<BFloat16>(call);
  }
}

void prototype_match_backward(const PrototypeMatchBackward& call) {
  const bool single = call.forward.features.dtype == DType::kFloat32;
  if (!one_per_position(call.forward)) {
    single ? match_backward<float>(call) : match_backward<BFloat16>(call);
  } else if (call.forward.channels_last) {
    single ? match_positions_backward<float, true>(call)
           : match_positions_backward<BFloat16, true>(call);
  } else {
    single ? match_positions_backward<float, false>(call)
           : match_positions_backward<BFloat16, false>(call);
  }
}

}  // namespace fastfss::FASTFSS_ISA
