// dense_match with queries and keys the same tensor and bounded logits: S is symmetric, so a block
// of it, computed once, serves its rows and its columns.
//
// Only the selected positions take part here (each is a query and a key); positions that are
// queries alone are left to RowBlock. Panels I < J:
//   E[j][i] = e^{s_ij};   O_I += V_J (w_j E),   O_J += V_I (w_i E^T)
// The transpose costs 0.2 % of the products that it saves.
#pragma once

#include "dense_match_rows.h"

namespace fastfss::FASTFSS_ISA {

// Weights for the queries of one panel of columns from the transpose of scores: values of `panels`
// panels [kPanel of these columns][kPanel rows], `stride` elements apart, become
// weights[row][column] = factor[row] * value. Adds each column's sum to totals. Lanes beyond the
// last position hold whatever the scores held and are never read back.
template <class Engine>
inline void turn(const float* values, int64_t stride, int64_t panels, const float* factor,
                 typename Engine::Element* weights, float* totals) {
  constexpr int kPanel = Engine::kPanel;
  for (int lane = 0; lane < kPanel; lane += kWidth) {
    VFloat total = load(totals + lane);
    for (int64_t row = 0; row < panels * kPanel; row += kWidth) {
      const float* from = values + row / kPanel * stride + lane * kPanel + row % kPanel;
      VFloat square[kWidth];
      for (int r = 0; r < kWidth; ++r) square[r] = load(from + r * kPanel);
      transpose(square);
      for (int r = 0; r < kWidth; r += 2) {
        VFloat first = square[r] * factor[row + r], second = square[r + 1] * factor[row + r + 1];
        Engine::put_weights(weights, row + r, lane, first, second);
        total += first + second;
      }
    }
    store(totals + lane, total);
  }
}

// Accumulators of all selected positions, shared by the threads: one touches a panel at a time.
template <class Engine>
struct PairSums {
  explicit PairSums(const PackedKeys<Engine>& keys)
      : size(Engine::value_rows(keys.value_channels) * Engine::kPanel),
        sums(keys.panels * size),
        denominator(keys.panels * Engine::kPanel),
        started(keys.panels) {
    std::fill_n(denominator.get(), keys.panels * Engine::kPanel, 0.0f);
    std::fill_n(started.get(), keys.panels, false);
  }
  int64_t size;  // of a panel
  Buffer<float> sums;
  Buffer<float> denominator;
  Buffer<bool> started;  // whether the panel's sums hold anything yet
};

// One thread's worker over ranges of panels.
template <class Engine>
class PairBlock {
 public:
  using Element = typename Engine::Element;
  static constexpr int kPanel = Engine::kPanel;

  // right: the selected positions' panels as queries, row_scale: one over their norms.
  PairBlock(const PackedKeys<Engine>& keys, const Element* right, const float* row_scale,
            PairSums<Engine>& result)
      : keys_(keys),
        right_(right),
        row_scale_(row_scale),
        result_(result),
        scores_(kRowPanels * kBlock),
        forward_(kRowPanels * kBlock),
        backward_(kRowPanels * kBlock) {}

  // All pairs within [begin, end): halves, until one panel is left; that one is computed whole.
  void diagonal(typename Engine::Session& session, int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    if (count <= 0) return;
    if (count == 1) return single(session, begin);
    const int64_t half = count / 2;
    const int64_t middle = begin + (half > kRowPanels ? half / kRowPanels * kRowPanels : half);
    diagonal(session, begin, middle);
    rectangle(session, begin, middle, middle, end);
    diagonal(session, middle, end);
  }

  // All pairs of one panel in [first, first_end) with one in [second, second_end), disjoint ranges.
  void rectangle(typename Engine::Session& session, int64_t first, int64_t first_end,
                 int64_t second, int64_t second_end) {
    for (int64_t i = first; i < first_end; i += kRowPanels) {
      for (int64_t j = second; j < second_end; j += kColumnPanels) {
        pair(session, i, std::min<int64_t>(kRowPanels, first_end - i), j,
             std::min<int64_t>(kColumnPanels, second_end - j));
      }
    }
  }

 private:
  static constexpr int64_t kBlock = kColumnPanels * kPanel * kPanel;

  void single(typename Engine::Session& session, int64_t panel) {
    scores<false>(session, panel, 1, panel, 1);
    add(session, panel, 1, forward_.get(), panel, 1);
  }

  void pair(typename Engine::Session& session, int64_t i, int64_t i_panels, int64_t j,
            int64_t j_panels) {
    scores<true>(session, i, i_panels, j, j_panels);
    const int64_t block = j_panels * kPanel * kPanel;
    add(session, i, i_panels, forward_.get(), j, j_panels);
    for (int64_t p = 0; p < j_panels; ++p) {
      turn<Engine>(scores_.get() + p * kPanel * kPanel, block, i_panels, keys_.weight + i * kPanel,
                   backward_.get() + p * i_panels * kPanel * kPanel,
                   result_.denominator.get() + (j + p) * kPanel);
    }
    add(session, j, j_panels, backward_.get(), i, i_panels);
  }

  // Weights for the queries i from the keys j; kKeep leaves e^s in scores_ for turn().
  template <bool kKeep>
  void scores(typename Engine::Session& session, int64_t i, int64_t i_panels, int64_t j,
              int64_t j_panels) {
    const float* scale = keys_.scale + j * kPanel;
    const float* weight = keys_.weight + j * kPanel;
    const int64_t block = j_panels * kPanel * kPanel;
    const auto epilogue = [&](int panel, int64_t row, int count, float* values) {
      weigh_tile<Engine, kKeep>(values, row, count, row_scale_ + (i + panel) * kPanel, scale + row,
                                weight + row, forward_.get() + panel * block,
                                result_.denominator.get() + (i + panel) * kPanel);
    };
    Engine::product(session, keys_.left + j * Engine::left_size(keys_.channels),
                    keys_.rows(j, j_panels), right_ + i * Engine::right_size(keys_.channels),
                    static_cast<int>(i_panels), keys_.channels, scores_.get(), epilogue);
  }

  // Adds the weighted values of `key_panels` panels of keys to `panels` panels of queries.
  void add(typename Engine::Session& session, int64_t first, int64_t panels, const Element* weights,
           int64_t keys, int64_t key_panels) {
    Engine::accumulate(session, keys_.value + keys * Engine::value_size(keys_.value_channels),
                       keys_.rows(keys, key_panels), weights, static_cast<int>(panels),
                       keys_.value_channels, result_.sums.get() + first * result_.size,
                       result_.started.get() + first);
    std::fill_n(result_.started.get() + first, panels, true);
  }

  const PackedKeys<Engine>& keys_;
  const Element* right_;
  const float* row_scale_;
  PairSums<Engine>& result_;
  Buffer<float> scores_;
  Buffer<Element> forward_;
  Buffer<Element> backward_;
};

// Every pair of panels once, over threads: 2T groups of panels meet as in a tournament, T disjoint
// pairs of groups a round, so that no two threads add to one panel and the order of the sums
// depends on the number of threads alone.
template <class Engine>
void match_pairs(const PackedKeys<Engine>& keys, const typename Engine::Element* right,
                 const float* row_scale, PairSums<Engine>& result, int threads) {
  const int used = static_cast<int>(
      std::clamp<int64_t>(keys.panels / (2 * kRowPanels), 1, std::max(threads, 1)));
  if (used == 1) {
    typename Engine::Session session;
    PairBlock<Engine>(keys, right, row_scale, result).diagonal(session, 0, keys.panels);
    return;
  }
  const int groups = 2 * used;
  const auto start = [&](int group) { return keys.panels * group / groups; };
  // Round by round; in round 0 each thread also does the diagonals of two groups. The last group
  // stays, the others rotate.
  for (int round = -1; round < groups - 1; ++round) {
    parallel_for(used, used, [&](int64_t begin, int64_t end) {
      typename Engine::Session session;
      PairBlock<Engine> worker(keys, right, row_scale, result);
      for (int64_t t = begin; t < end; ++t) {
        if (round < 0) {
          for (int64_t group = 2 * t; group < 2 * t + 2; ++group) {
            worker.diagonal(session, start(group), start(group + 1));
          }
          continue;
        }
        const int a = t == 0 ? groups - 1 : (round + t) % (groups - 1);
        const int b = (round + groups - 1 - t) % (groups - 1);
        const int low = std::min(a, b), high = std::max(a, b);
        worker.rectangle(session, start(low), start(low + 1), start(high), start(high + 1));
      }
    });
  }
}

}  // namespace fastfss::FASTFSS_ISA
