// The gradient of dense_match_sums, with E and its slopes in blocks that stay in the L2.
//
//   P[j][i] = w_j exp(scale q^_i . k^_j)
//   T[j][i] = v_j . g_i + h_i,   ds = scale P T
//   dq^_i = sum_j k^_j ds[j][i],   dk^_j = sum_i q^_i ds[j][i],   dv_j = sum_i g_i P[j][i]
//   dx = (dx^ - x^ (x^ . dx^)) / |x|
//
// Block by block of queries: the threads share the keys, each with its own sum of dq^, added up in
// their order. Norms are folded into the weights, so every operand is packed once, as it came. In
// float32 throughout: gradients of bfloat16 tensors are rounded once, at the end.
//
// Cost of SSP's first pass (N = 3600, M = 2700, C = D = 1024): five products of 19.9 GFLOP, floor
// 363 ms at the 274 GFLOP/s of one Zen 5 core. Measured with the forward's 140 ms: 590 ms.
#include "fastfss/dense_match_backward.h"

#include <array>
#include <vector>

#include "dense_match_items.h"
#include "dense_match_pairs.h"
#include "fastfss/parallel.h"

namespace fastfss::FASTFSS_ISA {
namespace {

using Engine = FloatEngine;
constexpr int kPanel = Engine::kPanel;

int64_t panels_of(int64_t positions) { return (positions + kPanel - 1) / kPanel; }

// Vectors of positions [first, first + count) as panels; their norms' inverses where asked for.
void pack(const Matrix& from, const Positions& positions, float* panel, float* inverse_norm,
          float eps) {
  Forms<float> forms;
  forms.right = panel;
  pack_panel<Engine>(from, positions, forms, inverse_norm);
  if (inverse_norm != nullptr) invert_norms(inverse_norm, kPanel, eps);
}

// A panel of dx^ [channels][kPanel] and the vectors x -> dx, in place. Where the norm is below eps,
// x^ = x / eps has no part along itself to lose.
void through_norm(const float* x, const float* inverse_norm, float eps, int64_t channels,
                  float* gradient) {
  for (int lane = 0; lane < kPanel; lane += kWidth) {
    VFloat along{};
    for (int64_t c = 0; c < channels; ++c) {
      along += load(x + c * kPanel + lane) * load(gradient + c * kPanel + lane);
    }
    const VFloat inverse = load(inverse_norm + lane);
    const VFloat factor = inverse < 1.0f / eps ? along * inverse * inverse : VFloat{};
    for (int64_t c = 0; c < channels; ++c) {
      float* at = gradient + c * kPanel + lane;
      store(at, (load(at) - load(x + c * kPanel + lane) * factor) * inverse);
    }
  }
}

const float* ones() {
  alignas(64) static constexpr auto values = [] {
    std::array<float, kRowPanels * kPanel> all{};
    for (float& value : all) value = 1.0f;
    return all;
  }();
  return values.data();
}

// Sums of one panel a key, [panels][rows][kPanel], and which of them hold anything.
struct KeySums {
  KeySums(bool wanted, int64_t panels, int64_t channels)
      : wanted(wanted),
        size(Engine::value_rows(channels) * kPanel),
        sums(wanted ? panels * size : 0),
        started(panels) {
    std::fill_n(started.get(), panels, false);
  }

  void add(Engine::Session& session, const float* values, int64_t rows, const float* weights,
           int64_t first, int panels, int64_t channels) {
    Engine::accumulate(session, values, rows, weights, panels, channels, sums.get() + first * size,
                       started.get() + first);
    std::fill_n(started.get() + first, panels, true);
  }

  bool wanted;
  int64_t size;
  Buffer<float> sums;
  Buffer<bool> started;
};

class ItemBackward {
 public:
  ItemBackward(const DenseMatchBackwardArgs& args, int64_t b)
      : args_(args),
        batch_(b),
        query_(item(args.query, b)),
        key_(item(args.key, b)),
        value_(item(args.value, b)),
        grad_(item(args.grad, b)),
        selection_(args.weights, b, args.key.size[2]),
        key_panels_(panels_of(selection_.count())),
        value_is_key_(same(args.value, args.key)),
        queries_(args.query.size[1], args.value.size[1]),
        for_key_(args.grad_key.data != nullptr, key_panels_, key_.channels),
        for_value_(args.grad_value.data != nullptr, key_panels_, value_.channels) {}

  void run() {
    pack_keys();
    for (int64_t first = 0; first < query_.positions; first += kRowPanels * kPanel) {
      rows(first, std::min<int64_t>(kRowPanels * kPanel, query_.positions - first));
    }
    write_keys();
  }

 private:
  // The queries of one block and the gradients of their results, packed.
  struct Queries {
    Queries(int64_t channels, int64_t value_channels)
        : vectors(kRowPanels * Engine::right_size(channels)),
          gradients(kRowPanels * Engine::right_size(value_channels)) {}
    Buffer<float> vectors, gradients;
    alignas(64) float inverse_norm[kRowPanels * kPanel];
    alignas(64) float scale[kRowPanels * kPanel];        // of the logits: scale / norm
    alignas(64) float denominator[kRowPanels * kPanel];  // its gradient h
  };

  // One thread's blocks, and its part of the gradient of the queries.
  struct Worker {
    explicit Worker(int64_t channels)
        : weights(kRowPanels * kBlock),
          slopes(kRowPanels * kBlock),
          packed(kRowPanels * kBlock),
          for_query(kRowPanels * Engine::value_rows(channels) * kPanel) {}
    Buffer<float> weights, slopes, packed, for_query;
    bool started = false;
  };

  static constexpr int64_t kBlock = kColumnPanels * kPanel * kPanel;

  Positions selected(int64_t panel) const {
    const int64_t first = panel * kPanel;
    return selection_.positions(first, std::min<int64_t>(kPanel, selection_.count() - first));
  }

  void pack_keys() {
    key_size_ = Engine::right_size(key_.channels);
    value_size_ = Engine::right_size(value_.channels);
    keys_ = Buffer<float>(key_panels_ * key_size_);
    if (!value_is_key_) values_ = Buffer<float>(key_panels_ * value_size_);
    inverse_norm_ = Buffer<float>(key_panels_ * kPanel);
    weight_ = Buffer<float>(key_panels_ * kPanel);
    parallel_for(key_panels_, args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const Positions positions = selected(panel);
        pack(key_, positions, keys_.get() + panel * key_size_, inverse_norm_.get() + panel * kPanel,
             args_.eps);
        if (!value_is_key_) {
          pack(value_, positions, values_.get() + panel * value_size_, nullptr, args_.eps);
        }
        for (int p = 0; p < kPanel; ++p) {
          weight_[panel * kPanel + p] =
              p < positions.count ? selection_.weight(positions[p]) : 0.0f;
        }
      }
    });
  }

  // All that the queries [first, first + count) contribute.
  void rows(int64_t first, int64_t count) {
    const int panels = static_cast<int>(panels_of(count));
    const Queries& queries = pack_queries(first, count, panels);
    const int64_t blocks = (key_panels_ + kColumnPanels - 1) / kColumnPanels;
    const int threads =
        static_cast<int>(std::min<int64_t>(args_.threads, std::max<int64_t>(blocks, 1)));
    while (static_cast<int>(workers_.size()) < threads) {
      workers_.push_back(Worker(args_.grad_query.data ? query_.channels : 0));
    }
    parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
      Engine::Session session;
      for (int64_t t = begin; t < end; ++t) {
        workers_[t].started = false;
        for (int64_t block = blocks * t / threads; block < blocks * (t + 1) / threads; ++block) {
          pair(session, workers_[t], queries, count, panels, block * kColumnPanels);
        }
      }
    });
    if (args_.grad_query.data != nullptr) write_queries(queries, first, count, panels, threads);
  }

  const Queries& pack_queries(int64_t first, int64_t count, int panels) {
    const Matrix denominator = row_item(args_.grad_denominator, batch_);
    parallel_for(panels, args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t done = p * kPanel;
        const Positions positions{nullptr, first + done,
                                  static_cast<int>(std::min<int64_t>(kPanel, count - done))};
        float* inverse = queries_.inverse_norm + done;
        pack(query_, positions, queries_.vectors.get() + p * key_size_, inverse, args_.eps);
        pack(grad_, positions, queries_.gradients.get() + p * value_size_, nullptr, args_.eps);
        gather<kPanel, float>(denominator, positions, 0, 1, queries_.denominator + done);
        for (int lane = 0; lane < kPanel; ++lane) {
          queries_.scale[done + lane] = args_.scale * inverse[lane];
        }
      }
    });
    return queries_;
  }

  // One block of queries with the block of keys from panel `first` on.
  void pair(Engine::Session& session, Worker& worker, const Queries& queries, int64_t count,
            int panels, int64_t first) {
    const int64_t rows =
        std::min<int64_t>(selection_.count() - first * kPanel, kColumnPanels * kPanel);
    const int key_panels = static_cast<int>(panels_of(rows));
    const float* inverse_norm = inverse_norm_.get() + first * kPanel;
    const int64_t block = Engine::weights_size(rows);
    Engine::product(session, keys_.get() + first * key_size_, rows, queries.vectors.get(), panels,
                    key_.channels, worker.weights.get(),
                    [&](int panel, int64_t row, int tile, float* values) {
                      weights_tile(values, tile, queries.scale + panel * kPanel, inverse_norm + row,
                                   weight_.get() + first * kPanel + row);
                    });
    if (for_value_.wanted) {
      turn_all(worker.weights.get(), block, key_panels, panels, ones(), worker.packed.get());
      for_value_.add(session, queries.gradients.get(), count, worker.packed.get(), first,
                     key_panels, value_.channels);
    }
    if (args_.grad_query.data == nullptr && !for_key_.wanted) return;
    const float* values = (value_is_key_ ? keys_ : values_).get() + first * value_size_;
    Engine::product(session, values, rows, queries.gradients.get(), panels, value_.channels,
                    worker.slopes.get(), [&](int panel, int64_t row, int tile, float* slopes) {
                      const int64_t at = slopes - worker.slopes.get();
                      slopes_tile(slopes, tile, queries.denominator + panel * kPanel,
                                  inverse_norm + row, worker.weights.get() + at,
                                  worker.packed.get() + at);
                    });
    if (args_.grad_query.data != nullptr) {
      bool started[kRowPanels];
      std::fill_n(started, kRowPanels, worker.started);
      Engine::accumulate(session, keys_.get() + first * key_size_, rows, worker.packed.get(),
                         panels, key_.channels, worker.for_query.get(), started);
      worker.started = true;
    }
    if (for_key_.wanted) {
      turn_all(worker.slopes.get(), block, key_panels, panels, queries.inverse_norm,
               worker.packed.get());
      for_key_.add(session, queries.vectors.get(), count, worker.packed.get(), first, key_panels,
                   key_.channels);
    }
  }

  // Dot products become P.
  static void weights_tile(float* values, int count, const float* scale, const float* inverse_norm,
                           const float* weight) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const VFloat lanes = load(scale + lane);
      for (int r = 0; r < count; ++r) {
        float* at = values + r * kPanel + lane;
        store(at, exp(load(at) * (lanes * inverse_norm[r])) * weight[r]);
      }
    }
  }

  // v_j . g_i becomes ds, and for_query what multiplies the keys as they came.
  void slopes_tile(float* values, int count, const float* denominator, const float* inverse_norm,
                   const float* weights, float* for_query) const {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const VFloat shift = load(denominator + lane);
      for (int r = 0; r < count; ++r) {
        const int at = r * kPanel + lane;
        const VFloat slope = (load(values + at) + shift) * load(weights + at) * args_.scale;
        store(values + at, slope);
        store(for_query + at, slope * inverse_norm[r]);
      }
    }
  }

  static void turn_all(const float* values, int64_t block, int key_panels, int panels,
                       const float* factor, float* to) {
    alignas(64) float totals[kPanel] = {};  // not wanted
    for (int p = 0; p < key_panels; ++p) {
      turn<Engine>(values + p * kPanel * kPanel, block, panels, factor,
                   to + p * panels * kPanel * kPanel, totals);
    }
  }

  void write_queries(const Queries& queries, int64_t first, int64_t count, int panels,
                     int threads) {
    const int64_t size = Engine::value_rows(query_.channels) * kPanel;
    const Matrix to = item(args_.grad_query, batch_);
    parallel_for(panels, args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        float* total = workers_[0].for_query.get() + p * size;
        if (!workers_[0].started) std::fill_n(total, size, 0.0f);
        for (int t = 1; t < threads; ++t) {
          const float* part = workers_[t].for_query.get() + p * size;
          for (int64_t i = 0; i < size && workers_[t].started; i += kWidth) {
            store(total + i, load(total + i) + load(part + i));
          }
        }
        through_norm(queries.vectors.get() + p * key_size_, queries.inverse_norm + p * kPanel,
                     args_.eps, query_.channels, total);
        const int64_t done = p * kPanel;
        write_positions<kPanel>(
            total, ones(),
            {nullptr, first + done, static_cast<int>(std::min<int64_t>(kPanel, count - done))}, to);
      }
    });
  }

  void write_keys() {
    const int64_t others = key_.positions - selection_.count();
    const int64_t size = std::max(for_key_.size, for_value_.size);
    const Buffer<float> zeros(others > 0 ? size : 0);
    std::fill_n(zeros.get(), others > 0 ? size : 0, 0.0f);
    parallel_for(key_panels_ + panels_of(others), args_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const bool chosen = panel < key_panels_;
        const int64_t done = (panel - key_panels_) * kPanel;
        const Positions positions =
            chosen ? selected(panel)
                   : selection_.positions(selection_.count() + done,
                                          std::min<int64_t>(kPanel, others - done));
        if (for_key_.wanted) {
          float* sums = for_key_.sums.get() + panel * for_key_.size;
          if (chosen) {
            through_norm(keys_.get() + panel * key_size_, inverse_norm_.get() + panel * kPanel,
                         args_.eps, key_.channels, sums);
          }
          write_positions<kPanel>(chosen ? sums : zeros.get(), ones(), positions,
                                  item(args_.grad_key, batch_));
        }
        if (for_value_.wanted) {
          const float* sums = for_value_.sums.get() + panel * for_value_.size;
          write_positions<kPanel>(chosen ? sums : zeros.get(), ones(), positions,
                                  item(args_.grad_value, batch_));
        }
      }
    });
  }

  const DenseMatchBackwardArgs& args_;
  const int64_t batch_;
  const Matrix query_, key_, value_, grad_;
  const Selection selection_;
  const int64_t key_panels_;
  const bool value_is_key_;
  int64_t key_size_ = 0, value_size_ = 0;
  Buffer<float> keys_, values_, inverse_norm_, weight_;
  Queries queries_;
  std::vector<Worker> workers_;
  KeySums for_key_, for_value_;
};

}  // namespace

void dense_match_backward(const DenseMatchBackwardArgs& args) {
  for (int64_t b = 0; b < args.query.size[0]; ++b) ItemBackward(args, b).run();
}

}  // namespace fastfss::FASTFSS_ISA
