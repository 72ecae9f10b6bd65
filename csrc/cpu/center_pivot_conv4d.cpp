// center_pivot_conv4d: for every query position a, support position c and output channel o
//   y[a, c] = bias + sum_p w1[p] x[a + p, s c] + sum_p w2[p] x[a, s c + p]
// and, with a norm, max(0, (y - mean) / sqrt(var + eps) * weight + shift) by group.
//
// An implicit matrix product, channels innermost. A row of the product is a pair (a, c); the rows
// of a tile are neighbours in a row of the query grid at one support position c. So all of them
// have the same taps over the support inside of the grid, and the others cost nothing (on the 2 x 2
// grids of HSNet's mixers 5 of 9); taps over the query that fall outside read zeros. A tile is R
// rows by V vectors of outputs, kept in registers; its operand is broadcast from where it lies, by
// R pointers. Weights are cut into chunks that stay in the L1 while all tiles of a row use them.
//
// Correlations come as planes, a channel each: the rows of the support that a row of outputs looks
// at are interleaved into a buffer that fits the L2 (200 KB of HSNet's finest level), in which the
// window's row is one piece. That is cheaper than a channels-last copy of the whole, 100 MB.
//
// HSNet's learner, ResNet-50 at 400 px: 25 GFLOP inside of the grids, 92 ms at the 274 GFLOP/s of
// one Zen 5 core in float32 (46 ms with vdpbf16ps). Memory: the finest level's correlations, 100 MB
// in float32, are read once (3 ms at the 37 GB/s of a plain read), 27 MB written, read again and
// normalised. Measured with the decoder's 2 GFLOP: 164 ms (93 ms); the slowest is the first
// convolution of the finest level, of four channels, at 90 GFLOP/s. The mixers reach 218 (413).
#include "fastfss/center_pivot_conv4d.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fastfss/gemm_engines.h"
#include "fastfss/parallel.h"
#include "fastfss/thin_product.h"

namespace fastfss::FASTFSS_ISA {
namespace {

// bfloat16 maps on a CPU without its dot product: widened as they are read.
struct WideningDot : FloatDot {
  static Unit broadcast(const BFloat16* from) { return splat(to_float(*from)); }
};

template <class T>
struct DotFor {
  using type = WideningDot;
};
template <>
struct DotFor<float> {
  using type = FloatDot;
};
#if defined(__AVX512BF16__)
template <>
struct DotFor<BFloat16> {
  using type = Bfloat16Dot;
};
#endif

// Vectors of outputs in a tile. With four, ten loads serve 24 multiply-adds.
constexpr int kMostVectors = kAccumulators == 24 ? 4 : 2;
constexpr int kMostRows = 8;  // as many pointers as the registers hold
constexpr int most_rows(int vectors) { return std::min(kMostRows, kAccumulators / vectors); }

// Weights used by all tiles of a row before the next ones: 32 of the L1's 48 KiB.
constexpr int64_t kChunkBytes = 32 << 10;

// Products of `units` consecutive operands of each row with as many rows of weights. The operands
// of row r begin at line[r] + offset.
template <class T, class Element>
struct Segment {
  const T* const* line;
  int64_t offset;
  int64_t units;
  const Element* weights;
};

// sums[R][stride] += the segments' products, from column `first` of their lines on.
template <class Dot, class T, int R, int V>
[[gnu::noinline]] void multiply(const Segment<T, typename Dot::Element>* segment, int64_t count,
                                int64_t first, float* sums, int64_t stride) {
  VFloat total[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[r][v] = load(sums + r * stride + v * kWidth);
  }
  for (; count > 0; --count, ++segment) {
    const T* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = segment->line[first + r] + segment->offset;
    const typename Dot::Element* weights = segment->weights;
    const int64_t length = segment->units * Dot::kPerUnit;
    for (int64_t k = 0; k < length; k += Dot::kPerUnit) {
      typename Dot::Unit w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = Dot::load_unit(weights + v * kWidth * Dot::kPerUnit);
      weights += V * kWidth * Dot::kPerUnit;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Dot::Unit x = Dot::broadcast(row[r] + k);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[r][v] = Dot::multiply_add(total[r][v], x, w[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + r * stride + v * kWidth, total[r][v]);
  }
}

// A map [B, ha, wa, hb, wb, I] as its addresses are computed.
template <class T>
struct Map {
  explicit Map(const TensorView& view) : data(view.as<const T>()), view(view) {}
  // Channel 0 of a position.
  const T* at(int64_t b, int64_t query_row, int64_t query_column, int64_t row,
              int64_t column) const {
    return data + b * view.stride[0] + query_row * view.stride[1] + query_column * view.stride[2] +
           row * view.stride[3] + column * view.stride[4];
  }
  explicit operator bool() const { return data != nullptr; }
  const T* data;
  const TensorView& view;
};

// Mean and sum of squared deviations of each output channel in one row of the query grid.
struct Moments {
  double count = 0;
  std::vector<double> mean, squares;

  explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

  // Chan's rule: `n` more values of channel c.
  void add(int64_t c, double n, double their_mean, double their_squares) {
    const double apart = their_mean - mean[c], all = count + n;
    mean[c] += apart * n / all;
    squares[c] += their_squares + apart * apart * count * n / all;
  }
};

template <class T, class Out>
class Convolution {
  using Dot = typename DotFor<T>::type;
  using Element = typename Dot::Element;
  static constexpr int kPerUnit = Dot::kPerUnit;

 public:
  explicit Convolution(const CenterPivotConv4dArgs& args)
      : args_(args),
        x_(args.x),
        pruned_(args.pruned),
        batch_(args.out.size[0]),
        query_height_(args.out.size[1]),
        query_width_(args.out.size[2]),
        height_(args.out.size[3]),
        width_(args.out.size[4]),
        outputs_(args.out.size[5]) {
    const TensorView& weight = x_ ? args.support_weight : args.query_weight;
    inputs_ = weight.size[1];
    kernel_ = weight.size[2];
    padding_ = kernel_ / 2;
    units_ = inputs_ / kPerUnit;
    vectors_ = (outputs_ + kWidth - 1) / kWidth;
    if (x_) support_weights_ = packed(args.support_weight);
    if (pruned_) query_weights_ = packed(args.query_weight);
    zeros_ = Buffer<T>(inputs_);
    std::fill_n(zeros_.get(), inputs_, T{});
    copies_rows_ = x_ && !is_dense(args.x);
  }

  void run() {
    const bool norm = args_.norm_weight.data != nullptr;
    // Taps over the query are next to each other in a copy of the positions that are left, padded
    // with zeros; a cache line of the original would give one tap of few channels each.
    window_ =
        pruned_ && (inputs_ * static_cast<int64_t>(sizeof(T)) <= 64 || !is_dense(args_.pruned));
    std::vector<Moments> moments(norm ? batch_ * query_height_ : 0, Moments(outputs_));
    if (window_) pack_window();
    parallel_for(batch_ * query_height_, args_.threads, [&](int64_t begin, int64_t end) {
      Work work(*this);
      for (int64_t row = begin; row < end; ++row) {
        convolve_row(work, row / query_height_, row % query_height_,
                     norm ? &moments[row] : nullptr);
      }
    });
    if (norm) normalize(moments);
  }

 private:
  // What a thread needs for a row of the query grid.
  struct Work {
    explicit Work(const Convolution& of)
        : sums(of.query_width_ * kMostVectors * kWidth),
          rows(of.copies_rows_ ? of.query_width_ * of.kernel_ * of.x_.view.size[4] * of.inputs_
                               : 0),
          support_line(of.query_width_),
          query_lines(of.window_ ? of.query_width_
                                 : of.kernel_ * (of.query_width_ + 2 * of.padding_)) {}
    Buffer<float> sums;
    Buffer<T> rows;  // [wa][k][wb][I], of the support
    std::vector<const T*> support_line, query_lines;
    std::vector<Segment<T, Element>> segments;
  };

  // [vectors in groups][tap][unit][vectors of the group][kWidth lanes]: a group's taps in a row.
  Buffer<Element> packed(const TensorView& weight) const {
    const int64_t taps = kernel_ * kernel_;
    Buffer<Element> to(vectors_ * kWidth * taps * inputs_);
    const T* from = weight.as<const T>();
    in_groups<kMostVectors>(vectors_, [&](int64_t first, int vectors) {
      // Read as they lie, kWidth outputs at a time: written in order, every read is a cache miss.
      const int64_t row = vectors * kWidth * kPerUnit;
      Element* group = to.get() + first * kWidth * taps * inputs_;
      for (int64_t lane = 0; lane < vectors * kWidth; ++lane) {
        const int64_t o = first * kWidth + lane;
        const T* weights = from + o * inputs_ * taps;
        for (int64_t i = 0; i < inputs_; ++i) {
          Element* at = group + i / kPerUnit * row + lane * kPerUnit + i % kPerUnit;
          for (int64_t tap = 0; tap < taps; ++tap, at += units_ * row) {
            *at = from_float<Element>(o < outputs_ ? to_float(*weights++) : 0.0f);
          }
        }
      }
    });
    return to;
  }

  // pruned as [B][hc][wc][ha + 2 p][wa + 2 p][I], zeros around the query grid.
  void pack_window() {
    const int64_t height = query_height_ + 2 * padding_, width = query_width_ + 2 * padding_;
    plane_ = height * width * inputs_;
    windows_ = Buffer<T>(batch_ * height_ * width_ * plane_);
    parallel_for(batch_ * height, args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / height, y = row % height - padding_;
        for (int64_t x = -padding_; x < query_width_ + padding_; ++x) {
          const bool inside = y >= 0 && y < query_height_ && x >= 0 && x < query_width_;
          T* to = windows_.get() + b * height_ * width_ * plane_ +
                  ((y + padding_) * width + x + padding_) * inputs_;
          for (int64_t r = 0; r < height_; ++r) {
            for (int64_t c = 0; c < width_; ++c, to += plane_) {
              if (inside) {
                interleave(pruned_.at(b, y, x, r, c), args_.pruned, 1, to);
              } else {
                std::fill_n(to, inputs_, T{});
              }
            }
          }
        }
      }
    });
  }

  bool is_dense(const TensorView& view) const {
    return view.size[5] == inputs_ && (view.stride[5] == 1 || inputs_ == 1);
  }

  // `count` neighbouring columns of the support, channels together; channels that the map lacks
  // are zero.
  void interleave(const T* from, const TensorView& view, int64_t count, T* to) const {
    const int64_t channels = view.size[5], column = view.stride[4], channel = view.stride[5];
    if (channels < inputs_) std::fill_n(to, count * inputs_, T{});
    const auto run = [&]<int kChannels>() {  // known, so that the compiler makes shuffles of it
      for (int64_t c = 0; c < count; ++c) {
#pragma GCC unroll 8
        for (int i = 0; i < kChannels; ++i) to[c * kChannels + i] = from[c + i * channel];
      }
    };
    if (column == 1 && channels == inputs_ && inputs_ <= 8) {
      return with_constant<8>(static_cast<int>(channels), run);
    }
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t i = 0; i < channels; ++i) to[c * inputs_ + i] = from[c * column + i * channel];
    }
  }

  // The rows of the support under the window of a row of outputs.
  void copy_rows(Work& work, int64_t b, int64_t query_row, int64_t row) const {
    const TensorView& view = x_.view;
    const int64_t top = row * args_.stride - padding_;
    const int64_t first = std::max<int64_t>(0, -top), last = std::min(kernel_, view.size[3] - top);
    const bool joined = view.stride[3] == view.size[4] * view.stride[4];
    for (int64_t a = 0; a < query_width_; ++a) {
      T* to = work.rows.get() + (a * kernel_ + first) * view.size[4] * inputs_;
      const T* from = x_.at(b, query_row, a, top + first, 0);
      if (joined) {
        interleave(from, view, (last - first) * view.size[4], to);
        continue;
      }
      for (int64_t y = first; y < last; ++y) {
        interleave(from, view, view.size[4], to);
        from += view.stride[3];
        to += view.size[4] * inputs_;
      }
    }
  }

  void convolve_row(Work& work, int64_t b, int64_t query_row, Moments* moments) const {
    for (int64_t a = 0; x_ && a < query_width_; ++a) {
      work.support_line[a] = copies_rows_
                                 ? work.rows.get() + a * kernel_ * x_.view.size[4] * inputs_
                                 : x_.at(b, query_row, a, 0, 0);
    }
    for (int64_t row = 0; row < height_; ++row) {
      if (copies_rows_) copy_rows(work, b, query_row, row);
      for (int64_t column = 0; column < width_; ++column) {
        if (pruned_) set_query_lines(work, b, query_row, row, column);
        in_groups<kMostVectors>(vectors_, [&](int64_t first, int vectors) {
          with_constant<kMostVectors>(vectors, [&]<int V>() {
            work.segments.clear();
            if (x_) add_support_segments<V>(work, first, row, column);
            if (pruned_) add_query_segments<V>(work, first);
            convolve<V>(work, first, b, query_row, row, column, moments);
          });
        });
        if (moments != nullptr) moments->count += query_width_;
      }
    }
  }

  // Pointers to the query's positions, by row of the window; or by position, into the copy.
  void set_query_lines(Work& work, int64_t b, int64_t query_row, int64_t row,
                       int64_t column) const {
    const T** line = work.query_lines.data();
    if (window_) {
      const T* plane = windows_.get() + ((b * height_ + row) * width_ + column) * plane_;
      const int64_t width = query_width_ + 2 * padding_;
      for (int64_t a = 0; a < query_width_; ++a) {
        *line++ = plane + (query_row * width + a) * inputs_;
      }
      return;
    }
    for (int64_t y = query_row - padding_; y <= query_row + padding_; ++y) {
      for (int64_t a = -padding_; a < query_width_ + padding_; ++a) {
        const bool inside = y >= 0 && y < query_height_ && a >= 0 && a < query_width_;
        *line++ = inside ? pruned_.at(b, y, a, row, column) : zeros_.get();
      }
    }
  }

  // `taps` neighbouring taps from `tap` on, cut where a chunk of weights ends.
  template <int V>
  void add(Work& work, const T* const* line, int64_t offset, const Element* weights, int64_t tap,
           int64_t taps) const {
    constexpr int64_t kRow = V * kWidth * kPerUnit;  // weights of one unit
    constexpr int64_t kMostUnits = kChunkBytes / (kRow * sizeof(Element));
    weights += tap * units_ * kRow;
    for (int64_t units = taps * units_; units > 0; units -= kMostUnits) {
      work.segments.push_back({line, offset, std::min(units, kMostUnits), weights});
      offset += kMostUnits * kPerUnit;
      weights += kMostUnits * kRow;
    }
  }

  template <int V>
  void add_support_segments(Work& work, int64_t first, int64_t row, int64_t column) const {
    const Element* weights = support_weights_.get() + first * kWidth * kernel_ * kernel_ * inputs_;
    const int64_t left = column * args_.stride - padding_, top = row * args_.stride - padding_;
    const int64_t from = std::max<int64_t>(0, -left);
    const int64_t to = std::min(kernel_, x_.view.size[4] - left);
    // From one column or row of the support to the next; the buffer begins at the window's top.
    const int64_t column_step = copies_rows_ ? inputs_ : x_.view.stride[4];
    const int64_t row_step = copies_rows_ ? x_.view.size[4] * inputs_ : x_.view.stride[3];
    const int64_t origin = copies_rows_ ? 0 : top;
    const bool dense = column_step == inputs_;  // a row of the window in one piece
    for (int64_t y = std::max<int64_t>(0, -top); y < std::min(kernel_, x_.view.size[3] - top);
         ++y) {
      const int64_t offset = (origin + y) * row_step + left * column_step;
      const int64_t step = dense ? to - from : 1;
      for (int64_t tap = from; tap < to; tap += step) {
        add<V>(work, work.support_line.data(), offset + tap * column_step, weights,
               y * kernel_ + tap, step);
      }
    }
  }

  template <int V>
  void add_query_segments(Work& work, int64_t first) const {
    const Element* weights = query_weights_.get() + first * kWidth * kernel_ * kernel_ * inputs_;
    const int64_t width = query_width_ + 2 * padding_;
    for (int64_t y = 0; y < kernel_; ++y) {
      if (window_) {
        add<V>(work, work.query_lines.data(), y * width * inputs_, weights, y * kernel_, kernel_);
        continue;
      }
      for (int64_t tap = 0; tap < kernel_; ++tap) {
        add<V>(work, work.query_lines.data() + y * width + tap, 0, weights, y * kernel_ + tap, 1);
      }
    }
  }

  // All positions of a row of the query grid, outputs [first, first + V) vectors.
  template <int V>
  void convolve(Work& work, int64_t first, int64_t b, int64_t query_row, int64_t row,
                int64_t column, Moments* moments) const {
    constexpr int64_t kStride = V * kWidth;
    constexpr int64_t kMostUnits = kChunkBytes / (kStride * kPerUnit * sizeof(Element));
    float* sums = work.sums.get();
    const int64_t begin = first * kWidth;
    const int64_t used = std::min<int64_t>(kStride, outputs_ - begin);
    const int64_t position = height_ * width_ * outputs_;  // from one query position to the next
    const int64_t place = (row * width_ + column) * outputs_ + begin;
    start<kStride>(sums, begin, used, offset(args_.start, b, query_row) + place, position);
    const auto& segments = work.segments;
    for (std::size_t from = 0; from < segments.size();) {
      std::size_t to = from;
      for (int64_t units = 0; to < segments.size(); ++to) {
        units += segments[to].units;
        if (to > from && units > kMostUnits) break;
      }
      in_groups<most_rows(V)>(query_width_, [&](int64_t a, int rows) {
        with_constant<most_rows(V)>(rows, [&]<int R>() {
          multiply<Dot, T, R, V>(&segments[from], to - from, a, sums + a * kStride, kStride);
        });
      });
      from = to;
    }
    if (moments != nullptr) add_moments<V>(sums, begin, used, *moments);
    Out* out = args_.out.as<Out>() + offset(args_.out, b, query_row) + place;
    for (int64_t a = 0; a < query_width_; ++a, out += position) {
      write(sums + a * kStride, used, out);
    }
  }

  static int64_t offset(const TensorView& view, int64_t b, int64_t query_row) {
    return b * view.stride[0] + query_row * view.stride[1];
  }

  template <int64_t kStride>
  void start(float* sums, int64_t begin, int64_t used, int64_t place, int64_t position) const {
    alignas(64) float bias[kStride] = {};
    std::copy_n(args_.bias.as<const float>() + begin, used, bias);
    const float* from = args_.start.as<const float>();
    for (int64_t a = 0; a < query_width_; ++a, sums += kStride) {
      std::copy_n(bias, kStride, sums);
      if (from == nullptr) continue;
      for (int64_t i = 0; i < used; ++i) sums[i] += from[place + a * position + i];
    }
  }

  template <int V>
  void add_moments(const float* sums, int64_t begin, int64_t used, Moments& moments) const {
    const float count = static_cast<float>(query_width_);
    for (int v = 0; v * kWidth < used; ++v) {
      VFloat mean{}, squares{};
      for (int64_t a = 0; a < query_width_; ++a) mean += load(sums + (a * V + v) * kWidth);
      mean /= splat(count);
      for (int64_t a = 0; a < query_width_; ++a) {
        const VFloat apart = load(sums + (a * V + v) * kWidth) - mean;
        squares += apart * apart;
      }
      for (int64_t i = 0; i < kWidth && v * kWidth + i < used; ++i) {
        moments.add(begin + v * kWidth + i, count, mean[i], squares[i]);
      }
    }
  }

  static void write(const float* from, int64_t count, Out* to) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
    if (i < count) store_first(to + i, load(from + i), static_cast<int>(count - i));
  }

  // Group norm and ReLU in place, from the moments of the rows.
  void normalize(const std::vector<Moments>& moments) const {
    const int64_t padded_outputs = padded(outputs_);
    Buffer<float> scales(batch_ * padded_outputs), shifts(batch_ * padded_outputs);
    const int64_t channels = outputs_ / args_.groups;
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t group = 0; group < args_.groups; ++group) {
        Moments all(1);
        for (int64_t row = b * query_height_; row < (b + 1) * query_height_; ++row) {
          for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
            all.add(0, moments[row].count, moments[row].mean[c], moments[row].squares[c]);
            all.count += moments[row].count;
          }
        }
        const double inverse = 1 / std::sqrt(all.squares[0] / all.count + args_.eps);
        for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
          const double scale = args_.norm_weight.as<const float>()[c] * inverse;
          scales[b * padded_outputs + c] = static_cast<float>(scale);
          shifts[b * padded_outputs + c] =
              static_cast<float>(args_.norm_bias.as<const float>()[c] - all.mean[0] * scale);
        }
      }
    }
    const int64_t positions = query_height_ * query_width_ * height_ * width_;
    parallel_for(batch_ * positions, args_.threads, [&](int64_t begin, int64_t end) {
      Out* at = args_.out.as<Out>() + begin * outputs_;
      for (int64_t i = begin; i < end; ++i, at += outputs_) {
        const float* scale = scales.get() + i / positions * padded_outputs;
        const float* shift = shifts.get() + i / positions * padded_outputs;
        const auto apply = [&](VFloat value, int64_t c) {
          const VFloat normed = value * load(scale + c) + load(shift + c);
          return normed < 0.0f ? VFloat{} : normed;  // keeps NaN
        };
        int64_t c = 0;
        for (; c + kWidth <= outputs_; c += kWidth) store(at + c, apply(load(at + c), c));
        const int rest = static_cast<int>(outputs_ - c);
        if (rest > 0) store_first(at + c, apply(load_first(at + c, rest), c), rest);
      }
    });
  }

  const CenterPivotConv4dArgs& args_;
  const Map<T> x_, pruned_;
  int64_t batch_, query_height_, query_width_, height_, width_, outputs_;
  int64_t inputs_, kernel_, padding_, units_, vectors_;
  bool window_ = false, copies_rows_ = false;
  int64_t plane_ = 0;
  Buffer<Element> support_weights_, query_weights_;
  Buffer<T> zeros_, windows_;
};

}  // namespace

void center_pivot_conv4d(const CenterPivotConv4dArgs& args) {
  const bool single = (args.x.data ? args.x : args.pruned).dtype == DType::kFloat32;
  if (single) {
    Convolution<float, float>(args).run();
  } else if (args.out.dtype == DType::kFloat32) {
    Convolution<BFloat16, float>(args).run();
  } else {
    Convolution<BFloat16, BFloat16>(args).run();
  }
}

}  // namespace fastfss::FASTFSS_ISA
