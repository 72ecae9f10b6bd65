// dense_match, dense_match_sums: for each item of the batch
//   1. select the key positions with a weight; pack them once (values too, where they differ);
//   2. queries and keys the same tensor, bounded logits: pairs of selected panels
//   (dense_match_pairs.h),
//      then the other positions as rows;
//   3. else: all queries as rows (dense_match_rows.h).
//
// Cost of SSP's first pass, N = 3600, C = D = 1024, M = 2700 selected (473 x 473 image):
//   logits   2 C (M^2 / 2 + (N - M) M)     12.4 GFLOP  (19.9 without the symmetry)
//   values   2 D N M                       19.9 GFLOP
//   bytes    read 14.7 MB once, write 14.7 MB once; packed 14.7 MB, sums 11.1 MB, in and out of L3
// Floor: 118 ms at the 274 GFLOP/s of one Zen 5 core in float32 (59 ms with vdpbf16ps at 547).
// Measured on it, other programs running: 136 to 146 ms (72 to 80 in bfloat16), of which packing is
// 3 ms, writing 2; without the symmetry 161 (87). bench/ops/test_dense_match.py measures it again.
#include "fastfss/dense_match.h"

#include <array>

#include "dense_match_items.h"
#include "dense_match_pairs.h"
#include "dense_match_rows.h"
#include "fastfss/parallel.h"

namespace fastfss::FASTFSS_ISA {
namespace {

// The matching of one item.
template <class Engine>
class ItemMatch {
 public:
  using Element = typename Engine::Element;
  static constexpr int kPanel = Engine::kPanel;

  ItemMatch(const DenseMatchArgs& args, int64_t b, int threads)
      : args_(args),
        batch_(b),
        threads_(threads),
        query_(item(args.query, b)),
        key_(item(args.key, b)),
        selection_(args.mask, b, args.key.size[2]),
        has_value_(args.reduce != MatchReduce::kMax),
        value_is_key_(has_value_ && same(args.value, args.key)) {
    const bool bounded = args.normalize && std::fabs(args.scale) <= kBoundedScale;
    mode_ = !has_value_ ? MatchMode::kMaximum : bounded ? MatchMode::kBounded : MatchMode::kOnline;
    keys_.channels = key_.channels;
    keys_.value_channels = has_value_ ? args_.value.size[1] : 0;
    keys_.count = selection_.count();
    keys_.panels = (keys_.count + kPanel - 1) / kPanel;
    // With few keys the pairs save little: M / 4N of the work, at the price of scattered output.
    paired_ = mode_ == MatchMode::kBounded && same(args.query, args.key) && keys_.panels >= 2 &&
              4 * keys_.count >= query_.positions;
  }

  void run() {
    if (keys_.count == 0) return clear();
    pack();
    if (!paired_) return rows({nullptr, 0, 0}, query_.positions, nullptr, nullptr);
    PairSums<Engine> result(keys_);
    match_pairs(keys_, right_.get(), row_scale_.get(), result, threads_);
    parallel_for(keys_.panels, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        write(result.sums.get() + panel * result.size, result.denominator.get() + panel * kPanel,
              selected_positions(panel));
      }
    });
    rows({selection_.order(), keys_.count, 0}, query_.positions - keys_.count,
         right_.get() + keys_.panels * Engine::right_size(query_.channels),
         row_scale_.get() + keys_.panels * kPanel);
  }

 private:
  void pack() {
    const int64_t others = paired_ ? query_.positions - keys_.count : 0;
    const int64_t all = keys_.panels + (others + kPanel - 1) / kPanel;
    const int64_t key_size = Engine::right_size(keys_.channels);
    const int64_t value_size = Engine::value_size(keys_.value_channels);
    const bool own_value = has_value_ && !(value_is_key_ && Engine::kValueIsRight);
    if (paired_ || Engine::kLeftIsRight) right_ = Buffer<Element>(all * key_size);
    if (!Engine::kLeftIsRight) left_ = Buffer<Element>(keys_.panels * key_size);
    if (own_value) value_ = Buffer<Element>(keys_.panels * value_size);
    row_scale_ = Buffer<float>(all * kPanel);
    column_scale_ = Buffer<float>(keys_.panels * kPanel);
    weight_ = Buffer<float>(keys_.panels * kPanel);

    const Matrix value = has_value_ ? item(args_.value, batch_) : Matrix{};
    parallel_for(all, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const bool selected = panel < keys_.panels;
        const int64_t done = (panel - keys_.panels) * kPanel;
        const Positions positions =
            selected ? selected_positions(panel)
                     : selection_.positions(keys_.count + done,
                                            std::min<int64_t>(kPanel, others - done));
        Forms<Element> forms;
        if (right_.get()) forms.right = right_.get() + panel * key_size;
        if (left_.get() && selected) forms.left = left_.get() + panel * key_size;
        if (own_value && value_is_key_ && selected) {
          forms.value = value_.get() + panel * value_size;
        }
        float* scale = row_scale_.get() + panel * kPanel;
        pack_panel<Engine>(key_, positions, forms, args_.normalize ? scale : nullptr);
        invert(scale);
        if (!selected) continue;
        weigh(panel, positions.count, scale);
        if (own_value && !value_is_key_) {
          Forms<Element> own;
          (Engine::kValueIsRight ? own.right : own.value) = value_.get() + panel * value_size;
          pack_panel<Engine>(value, positions, own, nullptr);
        }
      }
    });
    keys_.left = Engine::kLeftIsRight ? right_.get() : left_.get();
    keys_.value = own_value ? value_.get() : right_.get();
    keys_.scale = column_scale_.get();
    keys_.weight = weight_.get();
  }

  Positions selected_positions(int64_t panel) const {
    return selection_.positions(panel * kPanel, keys_.rows(panel, 1));
  }

  // Of one panel; without normalisation the factors are 1.
  void invert(float* squares) const {
    if (args_.normalize) {
      invert_norms(squares, kPanel, args_.eps);
    } else {
      std::fill_n(squares, kPanel, 1.0f);
    }
  }

  void weigh(int64_t panel, int count, const float* inverse_norm) {
    for (int p = 0; p < kPanel; ++p) {
      const int64_t at = panel * kPanel + p;
      column_scale_[at] = p < count ? args_.scale * inverse_norm[p] : 0.0f;
      weight_[at] = p < count ? selection_.weight(selection_.order()[at]) : 0.0f;
    }
  }

  // The queries `from` (first and index; `count` of them), packed already at right or packed here.
  void rows(const Positions& from, int64_t count, const Element* right, const float* row_scale) {
    const int64_t size = Engine::right_size(query_.channels);
    parallel_for((count + kPanel - 1) / kPanel, threads_, [&](int64_t begin, int64_t end) {
      typename Engine::Session session;
      RowBlock<Engine> block(keys_, mode_);
      Buffer<Element> packed(right == nullptr ? kRowPanels * size : 0);
      alignas(64) float scale[kRowPanels * kPanel];
      for (int64_t first = begin; first < end; first += kRowPanels) {
        const int panels = static_cast<int>(std::min<int64_t>(kRowPanels, end - first));
        Positions positions[kRowPanels];
        for (int p = 0; p < panels; ++p) {
          const int64_t done = (first + p) * kPanel;
          const int64_t here = std::min<int64_t>(kPanel, count - done);
          positions[p] = from.index == nullptr
                             ? Positions{nullptr, from.first + done, static_cast<int>(here)}
                             : selection_.positions(from.first + done, here);
          if (right != nullptr) continue;
          Forms<Element> forms;
          forms.right = packed.get() + p * size;
          pack_panel<Engine>(query_, positions[p], forms,
                             args_.normalize ? scale + p * kPanel : nullptr);
          invert(scale + p * kPanel);
        }
        block.run(session, right == nullptr ? packed.get() : right + first * size,
                  right == nullptr ? scale : row_scale + first * kPanel, panels);
        for (int p = 0; p < panels; ++p) {
          if (mode_ == MatchMode::kMaximum) {
            write_positions<kPanel>(block.maximum(p), ones(), positions[p],
                                    row_item(args_.out, batch_));
          } else {
            write(block.sums(p), block.denominator(p), positions[p]);
          }
        }
      }
    });
  }

  static const float* ones() {
    alignas(64) static constexpr auto values = [] {
      std::array<float, kPanel> all{};
      for (float& value : all) value = 1.0f;
      return all;
    }();
    return values.data();
  }

  // One panel's sums, divided unless the sums themselves are asked for.
  void write(const float* sums, const float* denominator, const Positions& positions) const {
    if (args_.reduce == MatchReduce::kSums) {
      write_positions<kPanel>(sums, ones(), positions, item(args_.out, batch_));
      write_positions<kPanel>(denominator, ones(), positions, row_item(args_.denominator, batch_));
      return;
    }
    alignas(64) float factor[kPanel];
    for (int p = 0; p < kPanel; ++p) {
      factor[p] = denominator[p] != 0.0f ? 1.0f / denominator[p] : 0.0f;
    }
    write_positions<kPanel>(sums, factor, positions, item(args_.out, batch_));
  }

  // No key at all: zero.
  void clear() const {
    alignas(64) static constexpr float zeros[kPanel] = {};
    for (int64_t first = 0; first < query_.positions; first += kPanel) {
      const Positions positions{
          nullptr, first, static_cast<int>(std::min<int64_t>(kPanel, query_.positions - first))};
      if (args_.reduce != MatchReduce::kSoftmax) {
        const auto& rows = args_.reduce == MatchReduce::kMax ? args_.out : args_.denominator;
        write_positions<kPanel>(zeros, ones(), positions, row_item(rows, batch_));
      }
      if (!has_value_) continue;
      Matrix channel = item(args_.out, batch_);
      const int64_t bytes = channel.dtype == DType::kFloat32 ? 4 : 2;
      const int64_t channels = channel.channels;
      channel.channels = 1;
      for (int64_t c = 0; c < channels; ++c) {
        write_positions<kPanel>(zeros, ones(), positions, channel);
        channel.data = static_cast<char*>(channel.data) + channel.channel_stride * bytes;
      }
    }
  }

  const DenseMatchArgs& args_;
  const int64_t batch_;
  const int threads_;
  const Matrix query_, key_;
  const Selection selection_;
  const bool has_value_, value_is_key_;
  MatchMode mode_;
  bool paired_;
  PackedKeys<Engine> keys_;
  Buffer<Element> right_, left_, value_;
  Buffer<float> row_scale_, column_scale_, weight_;
};

template <class Engine>
void match(const DenseMatchArgs& args) {
  const int64_t batch = args.query.size[0];
  // Threads within an item hold one item's packed operands at a time and share the work evenly;
  // small items, below about a millisecond, go to the threads as a whole.
  const double products = static_cast<double>(args.query.size[2]) * args.key.size[2] *
                          (args.query.size[1] + (args.value.data ? args.value.size[1] : 0));
  const int outer = batch >= args.threads && products < 1e8 ? args.threads : 1;
  const int inner = outer > 1 ? 1 : args.threads;
  parallel_for(batch, outer, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) ItemMatch<Engine>(args, b, inner).run();
  });
}

}  // namespace

void dense_match(const DenseMatchArgs& args) {
  if (args.query.dtype == DType::kFloat32) {
    match<BestEngine<float>>(args);
  } else {
    match<BestEngine<BFloat16>>(args);
  }
}

#if !defined(__AVX2__)  // the portable set alone
void dense_match_emulated_amx(const DenseMatchArgs& args) {
  match<TileEngine<EmulatedTiles>>(args);
}
#endif

}  // namespace fastfss::FASTFSS_ISA
