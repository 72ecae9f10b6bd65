// center_pivot_conv4d: for every query position a, support position c and output channel o
//   y[a, c] = bias + sum_p w1[p] x[a + p, s c] + sum_p w2[p] x[a, s c + p]
// and, with a norm, max(0, (y - mean) / sqrt(var + eps) * weight + shift) by group.
//
// An implicit matrix product, channels innermost. A row of the product is a pair (a, c); the rows
// of a tile are neighbours in a row of the query grid at one support position c. So all of them
// have the same taps over the support inside of the grid, and the others cost nothing (on the 2 x 2
// grids of HSNet's mixers 5 of 9); taps over the query that fall outside read zeros. How rows meet
// weights is in center_pivot_products.h, and for AMX in center_pivot_tiles.h.
//
// Correlations come as planes, a channel each: the rows of the support that a row of outputs looks
// at are interleaved into a buffer that fits the L2 (200 KB of HSNet's finest level), in which the
// window's row is one piece. That is cheaper than a channels-last copy of the whole, 100 MB.
//
// HSNet's learner, ResNet-50 at 400 px: 25 GFLOP inside of the grids, 92 ms at the 274 GFLOP/s of
// one Zen 5 core in float32 (46 ms with vdpbf16ps). Memory: the finest level's correlations, 100 MB
// in float32, are read once (3 ms at the 37 GB/s of a plain read), 27 MB written, read again and
// normalised. Measured with the decoder's 2 GFLOP: 156 ms (91 ms); the slowest is the first
// convolution of the finest level, of four channels, at 80 GFLOP/s (130): 6 of its 32 ms are the
// interleaving, and its 27 MB are written, read and written. The mixers reach 214 (410).
#include "fastfss/center_pivot_conv4d.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "center_pivot_products.h"
#include "center_pivot_tiles.h"
#include "fastfss/parallel.h"

namespace fastfss::FASTFSS_ISA {
namespace {

template <class T>
struct ProductFor {
  using type = VectorProduct<typename DotFor<T>::type, T>;
};
#if defined(__AMX_BF16__)
template <>
struct ProductFor<BFloat16> {
  using type = TileProduct<HardwareTiles>;
};
#endif

// Sums of a row of outputs, written together: one by one they lie kilobytes apart, often at the
// same place of a page, and the stores wait for each other. Half of an L1; a cache line is left
// between the positions, which would else lie at the same place of a page here.
constexpr int64_t kStageBytes = 32 << 10;
constexpr int64_t kStageGap = 16;

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

template <class T, class Out, class Product>
class Convolution {
  using Element = typename Product::Element;

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
    vectors_ = (outputs_ + kWidth - 1) / kWidth;
    lanes_ = round_up(outputs_, std::max(kWidth, 16));
    if (x_) support_weights_ = Product::pack(args.support_weight);
    if (pruned_) query_weights_ = Product::pack(args.query_weight);
    zeros_ = Buffer<T>(inputs_);
    std::fill_n(zeros_.get(), inputs_, T{});
    copies_rows_ = x_ && !is_dense(args.x);
    window_ = pruned_ && Product::copies_window(inputs_ * static_cast<int64_t>(sizeof(T)),
                                                is_dense(args.pruned));
    strip_rows_ = std::max<int64_t>(1, Product::kPositions / query_width_);
    const int64_t column_bytes = query_width_ * lanes_ * static_cast<int64_t>(sizeof(float));
    stage_columns_ = std::clamp<int64_t>(kStageBytes / column_bytes, 1, width_);
  }

  void run() {
    const bool norm = args_.norm_weight.data != nullptr;
    std::vector<Moments> moments(norm ? batch_ * query_height_ : 0, Moments(outputs_));
    if (window_) pack_window();
    const int64_t strips = (query_height_ + strip_rows_ - 1) / strip_rows_;
    parallel_for(batch_ * strips, args_.threads, [&](int64_t begin, int64_t end) {
      Work work(*this);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / strips, row = i % strips * strip_rows_;
        const Strip strip{b, row, std::min(strip_rows_, query_height_ - row)};
        convolve(work, strip, norm ? &moments[b * query_height_ + row] : nullptr);
      }
    });
    if (norm) normalize(moments);
  }

 private:
  // Rows of the query grid that are convolved together.
  struct Strip {
    int64_t b, row, rows;
  };

  // What a thread needs for a strip. Positions are all of its rows'.
  struct Work {
    explicit Work(const Convolution& of) : positions(of.strip_rows_ * of.query_width_) {
      const int64_t padding = Product::kPositionPadding;
      const int64_t size = round_up(positions, padding) * of.stage_stride();
      stage = Buffer<float>(size);
      std::fill_n(stage.get(), size, 0.0f);
      if (of.copies_rows_) {
        rows = Buffer<T>(positions * of.kernel_ * of.x_.view.size[4] * of.inputs_);
      }
      maps.resize(positions);
      support_line.resize(positions);
      query_line.resize(of.window_ ? positions : of.kernel_ * (of.query_width_ + 2 * of.padding_));
    }
    int64_t positions;
    Buffer<float> stage;         // [positions][stage_stride]: columns, of each its lanes
    Buffer<T> rows;              // [positions][k][wb][I], of the support
    std::vector<const T*> maps;  // of x, at each position
    std::vector<const T*> support_line, query_line;
    std::vector<Run<T>> support_runs, query_runs;
    Product product;
  };

  // pruned as [B][ha + 2 p][hc wc][wa + 2 p][I], zeros around the query grid: the taps of a row of
  // outputs are next to each other, and neighbouring rows find what they share in the L2.
  void pack_window() {
    const int64_t height = query_height_ + 2 * padding_, width = query_width_ + 2 * padding_;
    const int64_t cells = height_ * width_;
    windows_ = Buffer<T>(batch_ * height * cells * width * inputs_);
    parallel_for(batch_ * height, args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / height, y = row % height - padding_;
        T* to = windows_.get() + row * cells * width * inputs_;
        if (y < 0 || y >= query_height_) {
          std::fill_n(to, cells * width * inputs_, T{});
          continue;
        }
        for (int64_t cell = 0; cell < cells; ++cell) {
          T* edge = to + cell * width * inputs_;
          std::fill_n(edge, padding_ * inputs_, T{});
          std::fill_n(edge + (padding_ + query_width_) * inputs_, padding_ * inputs_, T{});
        }
        for (int64_t x = 0; x < query_width_; ++x) {
          T* at = to + (padding_ + x) * inputs_;
          for (int64_t r = 0; r < height_; ++r) {
            for (int64_t c = 0; c < width_; ++c, at += width * inputs_) {
              interleave(pruned_.at(b, y, x, r, c), args_.pruned, 1, at);
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
    if (count == 1 && channel == 1) {
      std::copy_n(from, channels, to);
      std::fill_n(to + channels, inputs_ - channels, T{});
      return;
    }
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
  void copy_rows(Work& work, const Strip& strip, int64_t row) const {
    const TensorView& view = x_.view;
    const int64_t top = row * args_.stride - padding_;
    const int64_t first = std::max<int64_t>(0, -top), last = std::min(kernel_, view.size[3] - top);
    const bool joined = view.stride[3] == view.size[4] * view.stride[4];
    for (int64_t p = 0; p < strip.rows * query_width_; ++p) {
      T* to = work.rows.get() + (p * kernel_ + first) * view.size[4] * inputs_;
      const T* from = work.maps[p] + (top + first) * view.stride[3];
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

  void convolve(Work& work, const Strip& strip, Moments* moments) const {
    const int64_t positions = strip.rows * query_width_;
    for (int64_t p = 0; p < positions; ++p) {
      const int64_t y = strip.row + p / query_width_, a = p % query_width_;
      if (x_) {
        work.maps[p] = x_.at(strip.b, y, a, 0, 0);
        work.support_line[p] =
            copies_rows_ ? work.rows.get() + p * kernel_ * x_.view.size[4] * inputs_ : work.maps[p];
      }
      if (window_) {
        const int64_t row = strip.b * (query_height_ + 2 * padding_) + y;
        work.query_line[p] = windows_.get() + row * window_step() + a * inputs_;
      }
    }
    for (int64_t row = 0; row < height_; ++row) {
      if (copies_rows_) copy_rows(work, strip, row);
      for (int64_t column = 0; column < width_; column += stage_columns_) {
        const int64_t columns = std::min(stage_columns_, width_ - column);
        const int64_t stride = stage_stride();
        const int64_t place = (row * width_ + column) * outputs_;
        start(work, strip, place, columns);
        for (int64_t c = 0; c < columns; ++c) {
          if (x_) add_support_runs(work, row, column + c);
          if (pruned_) add_query_runs(work, strip, row, column + c);
          in_groups<Product::kMostVectors>(vectors_, [&](int64_t first, int vectors) {
            with_constant<Product::kMostVectors>(vectors, [&]<int V>() {
              float* sums = work.stage.get() + c * lanes_ + first * kWidth;
              work.product.template multiply<V>(support_weights_, first, work.support_runs,
                                                positions, sums, stride);
              work.product.template multiply<V>(query_weights_, first, work.query_runs, positions,
                                                sums, stride);
            });
          });
          for (int64_t r = 0; moments != nullptr && r < strip.rows; ++r) {
            add_moments(work.stage.get() + r * query_width_ * stride + c * lanes_, stride,
                        moments[r]);
          }
        }
        finish(work, strip, place, columns);
      }
    }
  }

  // Elements from one row of the query to the next in windows_.
  int64_t window_step() const { return height_ * width_ * (query_width_ + 2 * padding_) * inputs_; }

  void add_support_runs(Work& work, int64_t row, int64_t column) const {
    work.support_runs.clear();
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
      const int64_t taps = dense ? to - from : 1;
      for (int64_t tap = from; tap < to; tap += taps) {
        work.support_runs.push_back({work.support_line.data(), offset + tap * column_step,
                                     tap * inputs_, taps * inputs_, y, 0});
      }
    }
  }

  void add_query_runs(Work& work, const Strip& strip, int64_t row, int64_t column) const {
    work.query_runs.clear();
    const int64_t width = query_width_ + 2 * padding_;
    if (window_) {
      const int64_t cell = (row * width_ + column) * width * inputs_;
      for (int64_t y = 0; y < kernel_; ++y) {
        work.query_runs.push_back({work.query_line.data(), cell + y * window_step(), 0,
                                   kernel_ * inputs_, y, strip.rows == 1 ? inputs_ : 0});
      }
      return;
    }
    // By row of the window, into the maps; beside the grid into zeros.
    const T** line = work.query_line.data();
    for (int64_t y = 0; y < kernel_; ++y) {
      const int64_t at = strip.row + y - padding_;
      for (int64_t a = -padding_; a < query_width_ + padding_; ++a) {
        const bool inside = at >= 0 && at < query_height_ && a >= 0 && a < query_width_;
        *line++ = inside ? pruned_.at(strip.b, at, a, row, column) : zeros_.get();
      }
      for (int64_t tap = 0; tap < kernel_; ++tap) {
        work.query_runs.push_back(
            {&work.query_line[y * width + tap], 0, tap * inputs_, inputs_, y, 0});
      }
    }
  }

  int64_t stage_stride() const { return stage_columns_ * lanes_ + kStageGap; }

  // body(sums, values) for each position of a strip: in the stage, and in a tensor from output
  // `place` of the position on.
  template <class Value, class Body>
  void each_position(const Work& work, const Strip& strip, const TensorView& view, int64_t place,
                     const Body& body) const {
    float* sums = work.stage.get();
    for (int64_t r = 0; r < strip.rows; ++r) {
      Value* at =
          view.as<Value>() + strip.b * view.stride[0] + (strip.row + r) * view.stride[1] + place;
      for (int64_t a = 0; a < query_width_; ++a) {
        body(sums, at);
        sums += stage_stride();
        at += height_ * width_ * outputs_;
      }
    }
  }

  void start(const Work& work, const Strip& strip, int64_t place, int64_t columns) const {
    const float* bias = args_.bias.as<const float>();
    const bool more = args_.start.data != nullptr;
    each_position<const float>(work, strip, more ? args_.start : args_.out, place,
                               [&](float* to, const float* from) {
                                 for (int64_t c = 0; c < columns; ++c, to += lanes_) {
                                   std::copy_n(bias, outputs_, to);
                                   if (!more) continue;
                                   for (int64_t o = 0; o < outputs_; ++o) to[o] += from[o];
                                   from += outputs_;
                                 }
                               });
  }

  void finish(const Work& work, const Strip& strip, int64_t place, int64_t columns) const {
    each_position<Out>(work, strip, args_.out, place, [&](const float* from, Out* to) {
      if (lanes_ == outputs_) return convert(from, columns * lanes_, to);
      for (int64_t c = 0; c < columns; ++c) convert(from + c * lanes_, outputs_, to + c * outputs_);
    });
  }

  void add_moments(const float* sums, int64_t stride, Moments& moments) const {
    const float count = static_cast<float>(query_width_);
    for (int64_t begin = 0; begin < outputs_; begin += kWidth) {
      VFloat mean{}, squares{};
      for (int64_t a = 0; a < query_width_; ++a) mean += load(sums + a * stride + begin);
      mean /= splat(count);
      for (int64_t a = 0; a < query_width_; ++a) {
        const VFloat apart = load(sums + a * stride + begin) - mean;
        squares += apart * apart;
      }
      for (int64_t i = 0; i < kWidth && begin + i < outputs_; ++i) {
        moments.add(begin + i, count, mean[i], squares[i]);
      }
    }
    moments.count += query_width_;
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
  int64_t inputs_, kernel_, padding_, vectors_;
  int64_t lanes_;  // outputs as they are padded in the stage
  int64_t strip_rows_, stage_columns_;
  bool window_ = false, copies_rows_ = false;
  PackedWeights<Element> support_weights_, query_weights_;
  Buffer<T> zeros_, windows_;
};

}  // namespace

void center_pivot_conv4d(const CenterPivotConv4dArgs& args) {
  using Floats = typename ProductFor<float>::type;
  using Halves = typename ProductFor<BFloat16>::type;
  const bool single = (args.x.data ? args.x : args.pruned).dtype == DType::kFloat32;
  if (single) {
    Convolution<float, float, Floats>(args).run();
  } else if (args.out.dtype == DType::kFloat32) {
    Convolution<BFloat16, float, Halves>(args).run();
  } else {
    Convolution<BFloat16, BFloat16, Halves>(args).run();
  }
}

#if !defined(__AVX2__)  // the portable set alone
void center_pivot_conv4d_emulated_amx(const CenterPivotConv4dArgs& args) {
  using Product = TileProduct<EmulatedTiles>;
  if (args.out.dtype == DType::kFloat32) {
    Convolution<BFloat16, float, Product>(args).run();
  } else {
    Convolution<BFloat16, BFloat16, Product>(args).run();
  }
}
#endif

}  // namespace fastfss::FASTFSS_ISA
