// dense_match: a block of query positions against all selected key positions.
//
//   S[j][i] = k_j . q_i        scaled: s_ij = S[j][i] row_scale_i column_scale_j
//   W[j][i] = w_j exp(s_ij - m_i)          rounded to the engine's dtype
//   O[d][i] = sum_j v_j[d] W[j][i],        z_i = sum_j W[j][i]
//
// m_i = 0 where the logits are bounded; else the largest logit so far, and when it grows O and z
// are scaled (online softmax). S and W of one block of keys are all that exists of the N x M
// matrices.
#pragma once

#include <algorithm>
#include <limits>

#include "fastfss/exp.h"
#include "fastfss/gemm_engines.h"

namespace fastfss::FASTFSS_ISA {

// Panels of query and of key positions in a block. With 4 x 4 panels of 48 the scores and the
// weights take 147 KiB each of the L2; 2 x 4, 6 x 4 and 8 x 4 are within 2 % of it on a Zen 5 (1
// MiB of L2), 8 x 8 is 6 % slower.
constexpr int kRowPanels = 4;
constexpr int kColumnPanels = 4;

// Logits up to this size need no maximum subtracted: e^40 * 1e15 terms fit a float32.
constexpr float kBoundedScale = 40.0f;

enum class MatchMode { kBounded, kOnline, kMaximum };

// What all threads read: the selected key positions, packed.
template <class Engine>
struct PackedKeys {
  using Element = typename Engine::Element;
  int64_t channels = 0;        // of queries and keys
  int64_t value_channels = 0;  // 0 for the maximum
  int64_t count = 0;           // selected positions
  int64_t panels = 0;
  const Element* left = nullptr;
  const Element* value = nullptr;
  // [panels * kPanel], zero beyond count.
  const float* scale = nullptr;   // the logits' factor over the key's norm
  const float* weight = nullptr;  // the mask's

  // Positions in `panels` panels from `first` on.
  int64_t rows(int64_t first, int64_t panels) const {
    return std::min<int64_t>(count - first * Engine::kPanel, panels * Engine::kPanel);
  }
};

// e^s times the key's weight, for a tile of `count` keys x kPanel queries; kKeep leaves e^s in
// values.
template <class Engine, bool kKeep>
inline void weigh_tile(float* values, int64_t row, int count, const float* row_scale,
                       const float* column_scale, const float* weight,
                       typename Engine::Element* weights, float* denominator) {
  constexpr int kPanel = Engine::kPanel;
  for (int lane = 0; lane < kPanel; lane += kWidth) {
    const VFloat scale = load(row_scale + lane);
    VFloat total = load(denominator + lane);
    for (int r = 0; r < count; r += 2) {
      float* at = values + r * kPanel + lane;
      VFloat first = exp(load(at) * (scale * column_scale[r]));
      VFloat second = exp(load(at + kPanel) * (scale * column_scale[r + 1]));
      if constexpr (kKeep) {
        store(at, first);
        store(at + kPanel, second);
      }
      first *= weight[r];
      second *= weight[r + 1];
      Engine::put_weights(weights, row + r, lane, first, second);
      total += first + second;
    }
    store(denominator + lane, total);
  }
}

// One thread's scratch and results for up to kRowPanels panels of queries.
template <class Engine>
class RowBlock {
 public:
  using Element = typename Engine::Element;
  static constexpr int kPanel = Engine::kPanel;

  RowBlock(const PackedKeys<Engine>& keys, MatchMode mode)
      : keys_(keys),
        mode_(mode),
        sums_size_(Engine::value_rows(keys.value_channels) * kPanel),
        scores_(kRowPanels * kBlock),
        weights_(mode == MatchMode::kMaximum ? 0 : kRowPanels * kBlock),
        sums_(mode == MatchMode::kMaximum ? 0 : kRowPanels * sums_size_) {}

  // right: `panels` packed panels of queries; row_scale: [panels * kPanel].
  void run(typename Engine::Session& session, const Element* right, const float* row_scale,
           int panels) {
    std::fill_n(denominator_, kRowPanels * kPanel, 0.0f);
    std::fill_n(maximum_, kRowPanels * kPanel, -std::numeric_limits<float>::infinity());
    for (int64_t first = 0; first < keys_.panels; first += kColumnPanels) {
      const int64_t rows = keys_.rows(first, kColumnPanels);
      const int64_t block = Engine::weights_size(rows);  // scores have as many
      const float* scale = keys_.scale + first * kPanel;
      const float* weight = keys_.weight + first * kPanel;
      const auto epilogue = [&](int panel, int64_t row, int count, float* values) {
        const float* lanes = row_scale + panel * kPanel;
        if (mode_ == MatchMode::kBounded) {
          weigh_tile<Engine, false>(values, row, count, lanes, scale + row, weight + row,
                                    weights_.get() + panel * block, denominator(panel));
        } else {
          scale_tile(values, static_cast<int>(std::min<int64_t>(count, rows - row)), lanes,
                     scale + row, maximum_ + panel * kPanel);
        }
      };
      if (mode_ == MatchMode::kOnline) std::copy_n(maximum_, kRowPanels * kPanel, previous_);
      Engine::product(session, keys_.left + first * Engine::left_size(keys_.channels), rows, right,
                      panels, keys_.channels, scores_.get(), epilogue);
      if (mode_ == MatchMode::kMaximum) continue;
      for (int panel = 0; panel < panels && mode_ == MatchMode::kOnline; ++panel) {
        if (first > 0) rescale(panel);
        weigh_online(scores_.get() + panel * block, rows, weight, weights_.get() + panel * block,
                     panel);
      }
      bool started[kRowPanels];
      std::fill_n(started, kRowPanels, first > 0);
      Engine::accumulate(session, keys_.value + first * Engine::value_size(keys_.value_channels),
                         rows, weights_.get(), panels, keys_.value_channels, sums(0), started);
    }
  }

  float* sums(int panel) { return sums_.get() + panel * sums_size_; }
  float* denominator(int panel) { return denominator_ + panel * kPanel; }
  const float* maximum(int panel) const { return maximum_ + panel * kPanel; }

 private:
  static constexpr int64_t kBlock = kColumnPanels * kPanel * kPanel;

  // values become logits; maximum takes the largest of the first `count` rows. A NaN logit is the
  // maximum where that is the result, and otherwise reaches the sums through its weight.
  void scale_tile(float* values, int count, const float* row_scale, const float* column_scale,
                  float* maximum) const {
    const bool keep_nan = mode_ == MatchMode::kMaximum;
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const VFloat scale = load(row_scale + lane);
      VFloat largest = load(maximum + lane);
      for (int r = 0; r < count; ++r) {
        float* at = values + r * kPanel + lane;
        const VFloat logit = load(at) * (scale * column_scale[r]);
        store(at, logit);
        const VFloat greater = max(logit, largest);
        largest = keep_nan ? (logit != logit ? logit : greater) : greater;
      }
      store(maximum + lane, largest);
    }
  }

  // Sums so far were made with the previous maximum.
  void rescale(int panel) {
    float factor[kPanel];
    bool changed = false;
    for (int p = 0; p < kPanel; ++p) {
      changed |= maximum_[panel * kPanel + p] != previous_[panel * kPanel + p];
    }
    if (!changed) return;
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const int at = panel * kPanel + lane;
      const VFloat lanes = exp(load(previous_ + at) - load(maximum_ + at));
      store(factor + lane, lanes);
      store(denominator_ + at, load(denominator_ + at) * lanes);
    }
    for (int64_t i = 0; i < sums_size_; i += kPanel) {
      for (int lane = 0; lane < kPanel; lane += kWidth) {
        float* at = sums(panel) + i + lane;
        store(at, load(at) * load(factor + lane));
      }
    }
  }

  void weigh_online(const float* logits, int64_t rows, const float* weight, Element* weights,
                    int panel) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const VFloat largest = load(maximum_ + panel * kPanel + lane);
      VFloat total = load(denominator(panel) + lane);
      // Rows up to the engine's tile exist in weights; those beyond the last key are zero.
      for (int64_t r = 0; r < round_up(rows, Engine::kRows); r += 2) {
        VFloat pair[2] = {};
        for (int64_t i = 0; i < 2 && r + i < rows; ++i) {
          pair[i] = exp(load(logits + (r + i) * kPanel + lane) - largest) * weight[r + i];
        }
        Engine::put_weights(weights, r, lane, pair[0], pair[1]);
        total += pair[0] + pair[1];
      }
      store(denominator(panel) + lane, total);
    }
  }

  const PackedKeys<Engine>& keys_;
  const MatchMode mode_;
  const int64_t sums_size_;
  Buffer<float> scores_;
  Buffer<Element> weights_;
  Buffer<float> sums_;
  alignas(64) float denominator_[kRowPanels * kPanel];
  alignas(64) float maximum_[kRowPanels * kPanel];
  alignas(64) float previous_[kRowPanels * kPanel];
};

}  // namespace fastfss::FASTFSS_ISA
