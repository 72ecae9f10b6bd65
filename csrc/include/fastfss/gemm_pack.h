// Packing for gemm.h: positions of a tensor, in any memory format, into an engine's panels.
//
// A panel is made in blocks of kBlock channels: the block is gathered as floats [channel][position]
// in the L1, its squares are added up for the norms, and it is written in each form asked for. So a
// tensor is read once. Reading is by vectors where positions (channels-first) or channels
// (channels-last) are next to each other, else by elements.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

#include "fastfss/gemm.h"
#include "fastfss/transpose.h"
#include "fastfss/workspace.h"

namespace fastfss::FASTFSS_ISA {

// Uninitialised memory for `count` elements on a cache line, freed with the object. From 1 MiB on
// it comes from the workspace that is kept between calls.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (bytes >= std::size_t{1} << 20) {
      block_ = take_workspace(bytes);
    } else if (bytes > 0) {
      block_.memory = std::aligned_alloc(64, round_up(bytes, 64));
      if (block_.memory == nullptr) throw std::bad_alloc();
    }
  }
  Buffer(Buffer&& other) noexcept { std::swap(block_, other.block_); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() {
    if (block_.bytes > 0) {
      give_workspace(block_);
    } else {
      std::free(block_.memory);
    }
  }

  T* get() const { return static_cast<T*>(block_.memory); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  WorkspaceBlock block_;  // bytes = 0: plain memory
};

// One item of a batch as a matrix [channels][positions]; strides in elements.
struct Matrix {
  void* data;
  DType dtype;
  int64_t channels, positions;
  int64_t channel_stride, position_stride;
};

// Item b of [B, channels, positions].
inline Matrix item(const TensorView& tensor, int64_t b) {
  const int64_t bytes = tensor.dtype == DType::kFloat32 ? 4 : 2;
  return {static_cast<char*>(tensor.data) + b * tensor.stride[0] * bytes,
          tensor.dtype,
          tensor.size[1],
          tensor.size[2],
          tensor.stride[1],
          tensor.stride[2]};
}

// Which positions: first, first + 1, ... or index[first], index[first + 1], ...
struct Positions {
  const int32_t* index = nullptr;
  int64_t first = 0;
  int count = 0;
  int64_t operator[](int64_t i) const { return index ? index[first + i] : first + i; }
};

// Where to write one panel; null: not wanted. Forms that an engine says are the same need one
// pointer.
template <class Element>
struct Forms {
  Element* left = nullptr;
  Element* right = nullptr;
  Element* value = nullptr;
};

constexpr int kBlock = 32;  // channels gathered at a time

// The rows of channels-first maps lie kilobytes apart, on pages of their own, where no hardware
// prefetcher follows. Asked for kAhead rows early, 1024 x 60 x 60 floats pack in 0.9 ms instead
// of 1.5, picked positions in 2.8 instead of 5.
constexpr int kAhead = 16;

template <int kWrite, class T>
inline void prefetch_row(const T* row, int count) {
  for (int p = 0; p < count; p += static_cast<int>(64 / sizeof(T))) {
    __builtin_prefetch(row + p, kWrite);
  }
}

// block[c][p] for channels [begin, begin + channels), zero for positions [count, panel).
template <int kPanel, class T>
void gather(const Matrix& from, const Positions& positions, int64_t begin, int channels,
            float* block) {
  const T* data = static_cast<const T*>(from.data) + begin * from.channel_stride;
  const int count = positions.count;
  if (count < kPanel) std::memset(block, 0, sizeof(float) * kPanel * channels);
  if (from.position_stride == 1 && positions.index == nullptr) {
    data += positions.first;
    for (int c = 0; c < channels; ++c, data += from.channel_stride, block += kPanel) {
      prefetch_row<0>(data + kAhead * from.channel_stride, count);
      int p = 0;
      for (; p + kWidth <= count; p += kWidth) store(block + p, load(data + p));
      if (p < count) store(block + p, load_first(data + p, count - p));
    }
  } else if (from.channel_stride == 1) {
    for (int p = 0; p < count; p += kWidth) {
      const T* rows[kWidth];
      for (int r = 0; r < kWidth; ++r) {
        // Lanes beyond the last position repeat it, and are cleared below.
        rows[r] = data + positions[p + r < count ? p + r : count - 1] * from.position_stride;
      }
      for (int c = 0; c < channels; c += kWidth) {
        VFloat square[kWidth];
        const int wanted = channels - c;
        for (int r = 0; r < kWidth; ++r) {
          square[r] = wanted >= kWidth ? load(rows[r] + c) : load_first(rows[r] + c, wanted);
        }
        transpose(square);
        for (int r = 0; r < kWidth && r < wanted; ++r) {
          float* to = block + (c + r) * kPanel + p;
          if (p + kWidth <= count) {
            store(to, square[r]);
          } else {
            store_first(to, square[r], count - p);
          }
        }
      }
    }
  } else {
    int64_t offsets[kPanel];
    for (int p = 0; p < count; ++p) offsets[p] = positions[p] * from.position_stride;
    for (int c = 0; c < channels; ++c, data += from.channel_stride, block += kPanel) {
      const T* ahead = data + kAhead * from.channel_stride;
      for (int p = 0; p < count; p += 8) __builtin_prefetch(ahead + offsets[p]);
      for (int p = 0; p < count; ++p) block[p] = to_float(data[offsets[p]]);
    }
  }
}

// The forms of the engine of float32 are one; the others write theirs with the functions below.
inline void write_forms(FloatEngine, const float* block, int64_t begin, int channels,
                        Forms<float> to) {
  constexpr int kPanel = FloatEngine::kPanel;
  std::memcpy(to.right + begin * kPanel, block, sizeof(float) * channels * kPanel);
}

// Pairs of channels: [channels / 2][kPanel].
template <int kPanel>
void write_channel_pairs(const float* block, int channels, BFloat16* to) {
  for (int c = 0; c < channels; c += 2) {
    for (int p = 0; p < kPanel; p += kWidth) {
      VFloat low = load(block + c * kPanel + p), high = load(block + (c + 1) * kPanel + p);
      put_pair(to + c * kPanel + 2 * p, low, high);
    }
  }
}

// Pairs of positions: [channels][kPanel / 2].
template <int kPanel>
void write_position_pairs(const float* block, int channels, BFloat16* to) {
  for (int64_t i = 0; i < channels * kPanel; i += kWidth) store(to + i, load(block + i));
}

#if defined(__AVX512BF16__)
inline void write_forms(Bfloat16Engine, const float* block, int64_t begin, int channels,
                        Forms<BFloat16> to) {
  constexpr int kPanel = Bfloat16Engine::kPanel;
  if (to.right) write_channel_pairs<kPanel>(block, channels, to.right + begin * kPanel);
  if (to.value) write_position_pairs<kPanel>(block, channels, to.value + begin * kPanel);
}
#endif

// Packs one panel. squares (null: not wanted) receives the sum of squares of each of the panel's
// positions, zero beyond the last.
template <class Engine>
void pack_panel(const Matrix& from, const Positions& positions, Forms<typename Engine::Element> to,
                float* squares) {
  constexpr int kPanel = Engine::kPanel;
  alignas(64) float block[(kBlock + Engine::kPadding) * kPanel];
  VFloat totals[kPanel / kWidth] = {};
  for (int64_t begin = 0; begin < from.channels; begin += kBlock) {
    const int channels =
        static_cast<int>(from.channels - begin < kBlock ? from.channels - begin : kBlock);
    if (from.dtype == DType::kFloat32) {
      gather<kPanel, float>(from, positions, begin, channels, block);
    } else {
      gather<kPanel, BFloat16>(from, positions, begin, channels, block);
    }
    const bool last = begin + kBlock >= from.channels;
    const int padded =
        last ? static_cast<int>(round_up(from.channels, Engine::kPadding) - begin) : channels;
    std::memset(block + channels * kPanel, 0, sizeof(float) * kPanel * (padded - channels));
    if (squares != nullptr) {
      for (int v = 0; v < kPanel / kWidth; ++v) {
        VFloat sum{};  // of a block first: fewer terms a sum, smaller rounding errors
        for (int c = 0; c < channels; ++c) {
          const VFloat x = load(block + c * kPanel + v * kWidth);
          sum += x * x;
        }
        totals[v] += sum;
      }
    }
    write_forms(Engine(), block, begin, padded, to);
  }
  for (int v = 0; squares != nullptr && v < kPanel / kWidth; ++v) {
    store(squares + v * kWidth, totals[v]);
  }
}

// ---- The way back: accumulator panels [channels][kPanel] to a tensor

// to[c][positions[p]] = sums[c][p] * factor[p].
template <int kPanel, class T>
void write_positions(const float* sums, const float* factor, const Positions& positions,
                     const Matrix& to) {
  T* data = static_cast<T*>(to.data);
  const int count = positions.count;
  if (to.position_stride == 1 && positions.index == nullptr) {
    data += positions.first;
    for (int64_t c = 0; c < to.channels; ++c, data += to.channel_stride, sums += kPanel) {
      prefetch_row<1>(data + kAhead * to.channel_stride, count);
      int p = 0;
      for (; p + kWidth <= count; p += kWidth) store(data + p, load(sums + p) * load(factor + p));
      if (p < count) store_first(data + p, load(sums + p) * load(factor + p), count - p);
    }
  } else if (to.channel_stride == 1) {
    for (int p = 0; p < count; p += kWidth) {
      const VFloat lanes = load(factor + p);
      for (int64_t c = 0; c < to.channels; c += kWidth) {
        VFloat square[kWidth];  // rows beyond the last channel are clamped and not stored
        for (int r = 0; r < kWidth; ++r) {
          const int64_t row = c + r < to.channels ? c + r : to.channels - 1;
          square[r] = load(sums + row * kPanel + p) * lanes;
        }
        transpose(square);
        const int wanted = static_cast<int>(to.channels - c < kWidth ? to.channels - c : kWidth);
        for (int r = 0; r < kWidth && p + r < count; ++r) {
          T* at = data + positions[p + r] * to.position_stride + c;
          if (wanted == kWidth) {
            store(at, square[r]);
          } else {
            store_first(at, square[r], wanted);
          }
        }
      }
    }
  } else {
    int64_t offsets[kPanel];
    for (int p = 0; p < count; ++p) offsets[p] = positions[p] * to.position_stride;
    for (int64_t c = 0; c < to.channels; ++c, data += to.channel_stride, sums += kPanel) {
      T* ahead = data + kAhead * to.channel_stride;
      for (int p = 0; p < count; p += 8) __builtin_prefetch(ahead + offsets[p], 1);
      for (int p = 0; p < count; ++p) data[offsets[p]] = from_float<T>(sums[p] * factor[p]);
    }
  }
}

template <int kPanel>
void write_positions(const float* sums, const float* factor, const Positions& positions,
                     const Matrix& to) {
  if (to.dtype == DType::kFloat32) {
    write_positions<kPanel, float>(sums, factor, positions, to);
  } else {
    write_positions<kPanel, BFloat16>(sums, factor, positions, to);
  }
}

}  // namespace fastfss::FASTFSS_ISA
