// y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + bias, of up to eight channels
// in planes: the first stage of HSNet's levels.
//
// A first kernel copies what the stride leaves of every query position's planes, channels side by
// side (center_pivot.cuh). In the second a block takes query positions along a row, one after the
// other, and multiplies the outputs' weights (16 rows) by the windows of 8 support positions
// (columns) on the tensor cores. The planes of one query position lie in shared memory as they are,
// zeros between them, and so do the pruned ones of the k x k query positions around it; the next
// ones arrive meanwhile. What a window takes from the neighbouring row, beyond its own row's end, a
// mask of its position takes away.
//
// The depth of a product can have any order, and has one in which operands are read as they lie:
// over the support (four channels, dy, two dx), over the query (dy, dx, four channels).
//
// HSNet's first level at batch 8 (four channels, 50 x 50 by 50 x 50, 13 x 13 left) is 400 MB in and
// 108 MB out, 125 us of an H200, and takes 305: 50 for the first kernel. A query position is 22
// tiles of 8 windows, 330 products; what a warp does around its share of them, some 600
// instructions of which a third copies, holds it up.
#include "fastfss/cuda/center_pivot.cuh"
#include "fastfss/cuda/mma.cuh"

namespace fastfss::cuda {
namespace {

using namespace center_pivot;

// Registers: 65536 / (256 * 2) = 128, and 65536 / (128 * 3) = 170.
template <int G>
constexpr int kBlockWarps = G == 1 ? 8 : 4;
template <int G>
constexpr int kResident = G == 1 ? 2 : 3;

// A support position: the element of a plane at which its window's first pair begins, and which
// bits of a row's pairs are within the row and the window.
struct Place {
  int element;
  uint32_t masks[3];
};

// Where the parts of a block's shared memory begin.
template <int K, int G>
struct Parts {
  int ring, places, zeros, taps, sums, end;
  __host__ __device__ explicit Parts(const Shape& s) {
    using D = Depth<K, G>;
    ring = 2 * s.planes;
    places = ring + K * D::kColumns * s.vector;
    zeros = places + s.positions * static_cast<int>(sizeof(Place));
    // As many as a window of a plane spans.
    taps = zeros + (4 * D::kReach * s.support_width + 4 * D::kPairs + 19) / 16 * 16;
    sums = taps + D::kColumns * D::kOverQuery * 16;
    end = sums + 3 * kBlockWarps<G> * kMostOutputs * 4;
  }
};

// Count, mean and squared deviations.
struct Moments {
  float count = 0.0f, mean = 0.0f, deviations = 0.0f;
  // Chan's rule.
  __device__ __forceinline__ void add(const Moments& other) {
    if (other.count == 0.0f) return;
    const float both = count + other.count, apart = other.mean - mean;
    const float share = other.count / both;
    mean += apart * share;
    deviations += other.deviations + apart * apart * (count * share);
    count = both;
  }
};

// A warp takes Tiles times 8 support positions at once.
template <class T, int K, int G, int Tiles, bool Even>
__global__ void __launch_bounds__(32 * kBlockWarps<G>, kResident<G>)
    convolve(const T* x, const uint4* fragments, const char* pruned, const T* query_bias,
             const T* support_bias, const Shape s, T* out, float* statistics) {
  using D = Depth<K, G>;
  constexpr int kWarpsHere = kBlockWarps<G>, kThreadsHere = 32 * kWarpsHere;
  char* shared = dynamic_shared<char>();
  const Parts<K, G> parts(s);
  char* ring = shared + parts.ring;
  Place* places = reinterpret_cast<Place*>(shared + parts.places);
  int* taps = reinterpret_cast<int*>(shared + parts.taps);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
  const int begin = blockIdx.x * s.chunk, end = min(begin + s.chunk, s.queries);
  const int64_t first_query = int64_t(blockIdx.z) * s.queries;
  const int row_bytes = 2 * s.support_width, plane_bytes = row_bytes * s.support_height;
  const char* x_bytes = reinterpret_cast<const char*>(x + blockIdx.z * s.item);
  pruned += first_query * s.vector;
  out += (first_query + begin) * s.positions * s.outputs + lane / 4 * 2;

  // ---- copies

  // Planes are copied from the 16 bytes in which they begin on. Warp c copies the first and the
  // last of channel c, or c - kWarpsHere, and clears what an earlier plane may have had behind
  // them.
  const auto planes_of = [&](int query) { return shared + (query & 1) * s.planes + s.border; };
  const auto fetch_planes = [&](int query) {
    const char* plane = x_bytes + int64_t(query) * plane_bytes;
    char* of_channel = planes_of(query);
#pragma unroll 1
    for (int channel = 0; channel < s.inputs; ++channel) {
      const int before = reinterpret_cast<uintptr_t>(plane) % 16, all = plane_bytes + before;
      const int first = (threadIdx.x + kThreadsHere - channel % kWarpsHere * 32) % kThreadsHere;
      const char* from = plane - before + 16 * first;
      char *to = of_channel + 16 * first, *last = of_channel + all / 16 * 16;
#pragma unroll 1
      for (; to < last; to += 16 * kThreadsHere, from += 16 * kThreadsHere) {
        copy_async(to, from);
      }
      if (first < 4) {
        const int rest = all % 16 - 4 * first;
        uint32_t* word = reinterpret_cast<uint32_t*>(last) + first;
        const char* end_of_plane = plane + plane_bytes;
        if (rest >= 4) {
          copy_word_async(word, end_of_plane - rest);
        } else {
          *word = rest == 2 ? *reinterpret_cast<const uint16_t*>(end_of_plane - 2) : 0;
        }
        if (last + 16 < of_channel + s.copied) word[4] = 0;
      }
      plane += 2 * s.channel, of_channel += s.plane;
    }
  };
  // Takes away what the first 16 bytes hold of the plane before; by the warp that copied them.
  const auto clear_before = [&](int query) {
    __syncwarp();
    if (lane > 0) return;
#pragma unroll 1
    for (int channel = warp; channel < s.inputs; channel += kWarpsHere) {
      const char* plane = x_bytes + int64_t(query) * plane_bytes + 2 * channel * s.channel;
      const int bits = reinterpret_cast<uintptr_t>(plane) % 16 * 8;
      uint64_t* to = reinterpret_cast<uint64_t*>(planes_of(query) + channel * s.plane);
      if (bits >= 64) to[0] = 0;
      to[bits / 64] &= ~uint64_t(0) << (bits % 64);
    }
  };
  // The pruned planes of K rows of one column of the query grid; zeros outside of it. The column
  // that leaves the window makes room for the next one.
  const int vector_bytes = (s.positions * 8 * G + 15) / 16 * 16;
  const auto fetch_column = [&](int query_row, int query_column) {
    const int slot = (query_column + D::kColumns) % D::kColumns;
    for (int down = warp; down < K; down += kWarpsHere) {
      const int row = query_row + down - D::kReach;
      const bool inside =
          row >= 0 && row < s.query_height && query_column >= 0 && query_column < s.query_width;
      const char* from =
          pruned + (inside ? int64_t(row * s.query_width + query_column) * s.vector : 0);
      char* to = ring + (down * D::kColumns + slot) * s.vector;
#pragma unroll 1
      for (int e = 16 * lane; e < vector_bytes; e += 512) {
        copy_async(to + e, from + e, inside);
      }
    }
  };

  // ---- before the first query position

  for (int i = threadIdx.x; i < 2 * s.planes / 16; i += kThreadsHere) {
    reinterpret_cast<uint4*>(shared)[i] = uint4{};
  }
  for (int i = threadIdx.x; i < (parts.taps - parts.zeros) / 16; i += kThreadsHere) {
    reinterpret_cast<uint4*>(shared + parts.zeros)[i] = uint4{};
  }
  for (int i = threadIdx.x; i < s.positions; i += kThreadsHere) {
    const int row = i / s.out_width * s.stride, column = i % s.out_width * s.stride;
    Place place{(row - D::kReach) * s.support_width + column - D::kBefore, {}};
    for (int h = 0; h < 2 * D::kPairs; ++h) {
      const int away = h - D::kBefore, at = column + away;
      const bool used = away >= -D::kReach && away <= D::kReach && at >= 0 && at < s.support_width;
      if (used) place.masks[h / 2] |= 0xffffu << (16 * (h % 2));
    }
    places[i] = place;
  }
  // Where each unit of four channels begins that the windows over the query are made of, for each
  // place that the window's middle can have among the columns of the ring.
  for (int i = threadIdx.x; i < D::kColumns * 4 * D::kOverQuery; i += kThreadsHere) {
    const int unit = i % (4 * D::kOverQuery), column = i / (4 * D::kOverQuery);
    const int tap = unit / G, down = tap / K, right = tap % K;
    const int slot = (column + right + D::kColumns - D::kReach) % D::kColumns;
    taps[i] = unit < D::kUnits ? (down * D::kColumns + slot) * s.vector + unit % G * 8 : 0;
  }
  uint32_t weights[D::kSteps][4];
#pragma unroll
  for (int step = 0; step < D::kSteps; ++step) {
    const uint4 four = __ldg(fragments + step * 32 + lane);
    memcpy(weights[step], &four, sizeof(four));
  }
  const int output = lane / 4 * 2;
  float bias[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    bias[h] = output + h < s.outputs
                  ? to_float(query_bias[output + h]) + to_float(support_bias[output + h])
                  : 0.0f;
  }
  // Of this lane's channels: where the planes of the first query position lie, and where in 16
  // bytes they begin. Behind the last channel: none, and zeros are read.
  int of_channel[G], begins[G];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int channel = 4 * g + quarter;
    of_channel[g] = channel < s.inputs ? s.border + channel * s.plane : -1;
    begins[g] = reinterpret_cast<uintptr_t>(x_bytes + 2 * channel * s.channel) % 16;
  }
  __syncthreads();  // zeros first
  fetch_planes(begin);
  commit_copies();

  // Sums of this lane's results, and of their squares, less its first ones.
  float origin[2] = {}, sums[2] = {}, squares[2] = {};

  for (int query = begin; query < end; ++query) {
    const int query_row = query / s.query_width, query_column = query % s.query_width;
    wait_for_copies<0>();
    clear_before(query);
    __syncthreads();  // this position's planes are there, and nobody reads the last one's
    if (query == begin || query_column == 0) {
      for (int c = -D::kReach; c <= D::kReach; ++c) fetch_column(query_row, query_column + c);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    if (query + 1 < end) {
      fetch_planes(query + 1);
      if (query_column + 1 < s.query_width) {
        fetch_column(query_row, query_column + 1 + D::kReach);
      }
    }
    commit_copies();

    const int* of_taps = taps + query_column % D::kColumns * (4 * D::kOverQuery) + quarter;
#pragma unroll 1
    for (int first = warp * 8; first < s.positions; first += Tiles * kWarpsHere * 8) {
      Place place[Tiles];
      const char* of_ring[Tiles];
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        const int position = min(first + i * kWarpsHere * 8 + lane / 4, s.positions - 1);
        const uint4 four = reinterpret_cast<const uint4*>(places)[position];
        memcpy(&place[i], &four, sizeof(four));
        of_ring[i] = ring + position * (8 * G);
      }
      float products[Tiles][4];
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        products[i][0] = products[i][1] = bias[0], products[i][2] = products[i][3] = bias[1];
      }
      // The byte of shared memory at which the windows of one of this lane's channels begin.
      int window_begins[Tiles] = {};
      const auto begin_channel = [&](int g) {
        const bool none = of_channel[g] < 0;
        const int plane =
            (query & 1) * s.planes + of_channel[g] + (begins[g] + query * (plane_bytes % 16)) % 16;
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
          window_begins[i] = none ? parts.zeros : plane + 2 * place[i].element;
        }
      };
      const auto window = [&](int i, int slot) -> uint32_t {
        const int down = slot / D::kPairs % K, two = slot % D::kPairs;
        const int row = window_begins[i] + down * row_bytes;
        uint32_t both;
        if constexpr (Even) {
          both = *reinterpret_cast<const uint32_t*>(shared + row + 4 * two);
        } else {
          const auto* at = reinterpret_cast<const uint32_t*>(shared + (row & ~3) + 4 * two);
          both = __funnelshift_r(at[0], at[1], row % 4 * 8);
        }
        // In rows of even length the column behind a middle, which is even, is there.
        return Even && two == D::kBefore / 2 ? both : both & place[i].masks[two];
      };
#pragma unroll
      for (int step = 0; step < D::kOverSupport; ++step) {
        uint32_t two[Tiles][2] = {};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int slot = 2 * step + r;
          if (slot >= D::kSlots) continue;
          if (slot % (K * D::kPairs) == 0) begin_channel(slot / (K * D::kPairs));
#pragma unroll
          for (int i = 0; i < Tiles; ++i) two[i][r] = window(i, slot);
        }
#pragma unroll
        for (int i = 0; i < Tiles; ++i) multiply_add<T>(products[i], weights[step], two[i]);
      }
#pragma unroll
      for (int step = 0; step < D::kOverQuery; ++step) {
        const int tap = of_taps[4 * step];
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
          uint2 four = *reinterpret_cast<const uint2*>(of_ring[i] + tap);
          if (4 * step + 4 > D::kUnits && 4 * step + quarter >= D::kUnits) four = uint2{};
          const uint32_t two[2] = {four.x, four.y};
          multiply_add<T>(products[i], weights[D::kOverSupport + step], two);
        }
      }

      // Columns of a product are positions, 2 quarter and the next in each lane.
      if (query == begin && first == warp * 8)
        origin[0] = products[0][0], origin[1] = products[0][2];
      T* to_first = out + (first + 2 * quarter) * s.outputs;
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int away = i * kWarpsHere * 8 + e;
          const bool used = first + 2 * quarter + away < s.positions;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float apart = used ? products[i][2 * h + e] - origin[h] : 0.0f;
            sums[h] += apart, squares[h] += apart * apart;
          }
          if (used && output < s.outputs) {
            *reinterpret_cast<uint32_t*>(to_first + away * s.outputs) =
                pair(from_float<T>(products[i][e]), from_float<T>(products[i][2 + e]));
          }
        }
      }
    }
    out += s.positions * s.outputs;
  }
  if (statistics == nullptr) return;

  // ---- moments of the block

  int count = 0;
  for (int first = warp * 8; first < s.positions; first += kWarpsHere * 8) {
    count += min(max(s.positions - first - 2 * quarter, 0), 2);
  }
  float* of_warps = reinterpret_cast<float*>(shared + parts.sums);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Moments moments;
    if (count > 0) {
      moments.count = float(count) * float(end - begin);
      const float mean = sums[h] / moments.count;
      moments.mean = origin[h] + mean;
      moments.deviations = squares[h] - sums[h] * mean;
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      Moments other;
      other.count = __shfl_xor_sync(0xffffffffu, moments.count, step);
      other.mean = __shfl_xor_sync(0xffffffffu, moments.mean, step);
      other.deviations = __shfl_xor_sync(0xffffffffu, moments.deviations, step);
      moments.add(other);
    }
    if (quarter == 0) {
      float* to = of_warps + (warp * kMostOutputs + output + h) * 3;
      to[0] = moments.count, to[1] = moments.mean, to[2] = moments.deviations;
    }
  }
  __syncthreads();
  if (int(threadIdx.x) < s.outputs) {
    Moments moments;
    for (int w = 0; w < kWarpsHere; ++w) {
      const float* from = of_warps + (w * kMostOutputs + threadIdx.x) * 3;
      moments.add({from[0], from[1], from[2]});
    }
    const int64_t blocks = int64_t(gridDim.z) * gridDim.x;
    float* to = statistics + (blockIdx.z * gridDim.x + blockIdx.x) * s.outputs + threadIdx.x;
    to[0] = moments.mean;
    to[blocks * s.outputs] = moments.deviations;
  }
}

// ---- launches

// Calls `function` with the kernel's size and the groups of four channels as constants.
template <class Function>
void with_depth(int kernel, int groups, Function function) {
  const auto with_groups = [&](auto k) {
    groups == 1 ? function(k, std::integral_constant<int, 1>{})
                : function(k, std::integral_constant<int, 2>{});
  };
  kernel == 3 ? with_groups(std::integral_constant<int, 3>{})
              : with_groups(std::integral_constant<int, 5>{});
}

// All blocks at once, each of equally many query positions.
int chunk_of(const Shape& s, int64_t batch, int groups) {
  const int64_t room = multiprocessors() * (groups == 1 ? kResident<1> : kResident<2>) / batch;
  return static_cast<int>(blocks_of(s.queries, room < 1 ? 1 : room));
}

template <class T, int K, int G>
void run(const CenterPivotConv4d& call, Shape s, Stream stream) {
  const auto batch = static_cast<unsigned>(call.x.size[0]);
  const T* x = call.x.as<const T>();
  uint32_t* fragments = call.scratch.as<uint32_t>();
  char* pruned = call.scratch.as<char>() + Depth<K, G>::kSteps * 512;
  const auto parts = blocks_of(int64_t(s.queries) * s.positions, kThreads);
  launch("prepare", prepare<T, K, G>, dim3(static_cast<unsigned>(parts + 1), 1, batch), kThreads, 0,
         stream, x, call.query_weight.as<const T>(), call.support_weight.as<const T>(), s,
         fragments, pruned);

  s.chunk = chunk_of(s, batch, G);
  const dim3 grid(static_cast<unsigned>(blocks_of(s.queries, s.chunk)), 1, batch);
  constexpr int threads = 32 * kBlockWarps<G>;
  const auto start = [&](auto* kernel) {
    launch("convolve", kernel, grid, threads, Parts<K, G>(s).end, stream, x,
           reinterpret_cast<const uint4*>(fragments), pruned, call.query_bias.as<const T>(),
           call.support_bias.as<const T>(), s, call.out.as<T>(), call.statistics.as<float>());
  };
  const auto with_tiles = [&](auto even) {
    constexpr bool kEven = decltype(even)::value;
    if constexpr (G == 2) {
      start(convolve<T, K, G, 2, kEven>);
    } else {
      s.positions <= 8 * kBlockWarps<G> ? start(convolve<T, K, G, 1, kEven>)
                                        : start(convolve<T, K, G, 3, kEven>);
    }
  };
  s.even ? with_tiles(std::true_type{}) : with_tiles(std::false_type{});
}

}  // namespace

CenterPivotPlan center_pivot_plan(const TensorView& x, int kernel, int stride) {
  CenterPivotPlan plan{};
  // Planes that fit nowhere, and whose bytes may not fit an int.
  if (x.size[4] * x.size[5] > (1 << 20)) return plan;
  const int groups = groups_of(x);
  with_depth(kernel, groups, [&](auto k, auto g) {
    constexpr int K = decltype(k)::value, G = decltype(g)::value;
    const Shape s = shape_of(x, kMostOutputs, kernel, stride);
    if (Parts<K, G>(s).end > most_shared_memory()) return;
    plan.scratch = Depth<K, G>::kSteps * 512 + x.size[0] * s.queries * s.vector;
    plan.together = chunk_of(s, x.size[0], groups);
  });
  return plan;
}

void center_pivot_conv4d(const CenterPivotConv4d& call, Stream stream) {
  const int outputs = int(call.query_weight.size[0]), kernel = int(call.query_weight.size[3]);
  const Shape s = shape_of(call.x, outputs, kernel, call.stride);
  with_depth(kernel, groups_of(call.x), [&](auto k, auto groups) {
    constexpr int K = decltype(k)::value, G = decltype(groups)::value;
    call.x.dtype == DType::kBFloat16 ? run<BF16, K, G>(call, s, stream)
                                     : run<F16, K, G>(call, s, stream);
  });
}

}  // namespace fastfss::cuda
