// y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + bias, of up to eight channels
// in planes: the first stage of HSNet's levels.
//
// The first kernel copies what the stride leaves of every query position's planes, channels side by
// side. In the second a block takes query positions along a row, one after the other, and
// multiplies the outputs' weights (16 rows) by the windows of 8 support positions (columns) on the
// tensor cores. The planes of one query position lie in shared memory with a border of zeros, and
// so do what the first kernel made of the k x k query positions around it; the next ones arrive
// meanwhile.
//
// The depth of a product can have any order, and has one in which operands are read as they lie:
// over the support (four channels, dy, two dx), over the query (dy, dx, four channels).
#include "fastfss/cuda/device.cuh"
#include "fastfss/cuda/mma.cuh"
#include "fastfss/cuda_operations.h"

namespace fastfss::cuda {
namespace {

constexpr int kMostOutputs = 16;

struct Shape {
  int inputs, outputs, query_height, query_width, support_height, support_width, stride;
  int out_width, queries, positions;  // hc wc
  int64_t item, channel;              // strides of x
  int chunk;                          // query positions of a block
  bool even;                          // rows can be copied 4 bytes at a time to where they are read
  // Bytes in shared memory: of a plane with its border, of its row, of all planes, of a plane that
  // waits to be spread into rows; and of one query position's pruned planes, in global memory too.
  int plane, row, planes, raw, vector;
};

// K x K windows, G times four channels. The weights stay in registers: 15 products' of them for
// four channels and K = 5, 28 for eight.
template <int K, int G>
struct Depth {
  static constexpr int kReach = K / 2, kPairs = (K + 1) / 2;
  // A lane's registers over the support, its 8 bytes over the query, and the products they fill.
  static constexpr int kSlots = G * K * kPairs, kUnits = G * K * K;
  static constexpr int kOverSupport = (kSlots + 1) / 2, kOverQuery = (kUnits + 3) / 4;
  static constexpr int kSteps = kOverSupport + kOverQuery;
  static constexpr int kColumns = K + 1;  // of query positions: those of a window and the next
};

// Registers: 65536 / (256 * 2) = 128, and 65536 / (128 * 3) = 170.
template <int G>
constexpr int kBlockWarps = G == 1 ? 8 : 4;
template <int G>
constexpr int kResident = G == 1 ? 2 : 3;

// Where the parts of a block's shared memory begin.
template <int K, int G>
struct Parts {
  int ring, places, taps, sums, counts, end;
  __host__ __device__ explicit Parts(const Shape& s) {
    ring = s.even ? 2 * s.planes : s.planes + s.inputs * s.raw;
    places = ring + K * Depth<K, G>::kColumns * s.vector;
    taps = places + (s.positions + 3) / 4 * 16;
    sums = taps + 2 * Depth<K, G>::kOverQuery * 16;
    counts = sums + 2 * kBlockWarps<G> * kMostOutputs * 8;
    end = counts + 4 * kBlockWarps<G>;
  }
};

// ---- pruned planes and weights

template <class T>
__device__ __forceinline__ uint32_t pair(T low, T high) {
  return low.bits | uint32_t(high.bits) << 16;
}

// The registers of each lane and product: outputs 2 (lane / 4) and the next, at two places of the
// depth each.
template <class T, int K, int G>
__device__ void pack(const T* query_weight, const T* support_weight, const Shape& s,
                     uint32_t* fragments) {
  using D = Depth<K, G>;
  for (int i = threadIdx.x; i < D::kSteps * 128; i += kThreads) {
    const int step = i / 128, lane = i / 4 % 32, r = i / 2 % 2;
    const int output = lane / 4 * 2 + i % 2;
    T two[2] = {};
    for (int k = 0; k < 2; ++k) {
      int channel, down, right;
      bool used;
      if (step < D::kOverSupport) {
        const int slot = 2 * step + r, of_channel = slot % (K * D::kPairs);
        channel = slot / (K * D::kPairs) * 4 + lane % 4;
        down = of_channel / D::kPairs, right = of_channel % D::kPairs * 2 + k;
        used = slot < D::kSlots && right < K;
      } else {
        const int unit = 4 * (step - D::kOverSupport) + lane % 4, tap = unit / G;
        channel = unit % G * 4 + 2 * r + k;
        down = tap / K, right = tap % K;
        used = unit < D::kUnits;
      }
      const T* weight = step < D::kOverSupport ? support_weight : query_weight;
      if (used && channel < s.inputs && output < s.outputs) {
        two[k] = weight[((output * s.inputs + channel) * K + down) * K + right];
      }
    }
    fragments[i] = pair(two[0], two[1]);
  }
}

// pruned[b][query][position][channel]; the last block of the first item packs the weights.
template <class T, int K, int G>
__global__ void __launch_bounds__(kThreads)
    prepare(const T* x, const T* query_weight, const T* support_weight, const Shape s,
            uint32_t* fragments, char* pruned) {
  if (blockIdx.x == gridDim.x - 1) {
    if (blockIdx.z == 0) pack<T, K, G>(query_weight, support_weight, s, fragments);
    return;
  }
  const unsigned n = blockIdx.x * kThreads + threadIdx.x;
  const unsigned query = n / s.positions, position = n % s.positions;
  if (query >= unsigned(s.queries)) return;
  const unsigned row = position / s.out_width * s.stride,
                 column = position % s.out_width * s.stride;
  const T* from = x + blockIdx.z * s.item + int64_t(query) * s.support_height * s.support_width +
                  row * s.support_width + column;
  T channels[4 * G];
#pragma unroll
  for (int c = 0; c < 4 * G; ++c) channels[c] = c < s.inputs ? from[c * s.channel] : T{};
  char* to = pruned + (int64_t(blockIdx.z) * s.queries + query) * s.vector + position * (8 * G);
#pragma unroll
  for (int g = 0; g < G; ++g) {
    uint2 four;
    memcpy(&four, channels + 4 * g, sizeof(four));
    reinterpret_cast<uint2*>(to)[g] = four;
  }
}

// ---- products

// Where a channel's plane begins. Shifted so that four channels of eight windows four columns apart
// lie in all 32 banks; channels behind the last share a plane of zeros.
__device__ __forceinline__ int plane_of(int channel, const Shape& s) {
  const int c = min(channel, s.inputs);
  return c * s.plane + c % 2 * 4 + c / 2 % 2 * 64;
}

// Mean and squared deviations of `count` values.
struct Moments {
  float count = 0.0f, mean = 0.0f, deviations = 0.0f;
  // Chan's rule.
  __device__ __forceinline__ void add(float n, float its_mean, float its_deviations) {
    const float apart = its_mean - mean, share = n / (count + n);
    mean += apart * share;
    deviations += its_deviations + apart * apart * (count * share);
    count += n;
  }
};

// A warp takes Tiles times 8 support positions at once.
template <class T, int K, int G, int Tiles>
__global__ void __launch_bounds__(32 * kBlockWarps<G>, kResident<G>)
    convolve(const T* x, const uint4* fragments, const char* pruned, const T* bias, const Shape s,
             T* out, float* statistics) {
  using D = Depth<K, G>;
  constexpr int kWarpsHere = kBlockWarps<G>, kThreadsHere = 32 * kWarpsHere;
  char* shared = dynamic_shared<char>();
  const Parts<K, G> parts(s);
  char *raw = shared + s.planes, *ring = shared + parts.ring;
  int *places = reinterpret_cast<int*>(shared + parts.places),
      *taps = reinterpret_cast<int*>(shared + parts.taps);
  float2* sums = reinterpret_cast<float2*>(shared + parts.sums);
  float* counts = reinterpret_cast<float*>(shared + parts.counts);  // a warp's support positions
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
  const int begin = blockIdx.x * s.chunk, end = min(begin + s.chunk, s.queries);
  const int64_t first_query = int64_t(blockIdx.z) * s.queries;
  x += blockIdx.z * s.item;
  pruned += first_query * s.vector;

  // ---- copies

  const int plane_elements = s.support_height * s.support_width;
  const auto fetch_planes = [&](int query) {
    const T* from = x + int64_t(query) * plane_elements;
    if (s.even) {
      const int lines = kWarpsHere * s.row, rows = kWarpsHere * s.support_width;
      for (int channel = 0; channel < s.inputs; ++channel) {
        char* line = shared + (query & 1) * s.planes + plane_of(channel, s) +
                     (warp + D::kReach) * s.row + 2 * D::kReach;
        const T* of_row = from + channel * s.channel + warp * s.support_width;
        for (int row = warp; row < s.support_height; row += kWarpsHere) {
          for (int c = 2 * lane; c < s.support_width; c += 64) {
            copy_pair_async(line + 2 * c, of_row + c, 4);
          }
          line += lines, of_row += rows;
        }
      }
      return;
    }
    for (int channel = 0; channel < s.inputs; ++channel) {
      const T* plane = from + channel * s.channel;
      const int before = reinterpret_cast<uintptr_t>(plane) / 2 % 2;
      const int elements = plane_elements + before;
      for (int e = 2 * threadIdx.x; e < elements; e += 2 * kThreadsHere) {
        copy_pair_async(raw + channel * s.raw + 2 * e, plane - before + e,
                        e + 1 < elements ? 4 : 2);
      }
    }
  };
  // From where they have been copied to where they are read.
  const auto spread_planes = [&](int query) {
    for (int channel = 0; channel < s.inputs; ++channel) {
      const T* plane = x + int64_t(query) * plane_elements + channel * s.channel;
      const int before = reinterpret_cast<uintptr_t>(plane) / 2 % 2;
      const T* elements = reinterpret_cast<const T*>(raw + channel * s.raw) + before;
      for (int row = warp; row < s.support_height; row += kWarpsHere) {
        T* line = reinterpret_cast<T*>(shared + plane_of(channel, s) + (row + D::kReach) * s.row) +
                  D::kReach;
        for (int c = lane; c < s.support_width; c += 32) {
          line[c] = elements[row * s.support_width + c];
        }
      }
    }
  };
  // The pruned planes of K rows of one column of the query grid; zeros outside of it. The column
  // that leaves the window makes room for the next one.
  const int chunks = (s.positions * 8 * G + 15) / 16;
  const auto fetch_column = [&](int query_row, int query_column) {
    const int slot = (query_column + D::kColumns) % D::kColumns;
    for (int i = threadIdx.x; i < K * chunks; i += kThreadsHere) {
      const int down = i / chunks, chunk = i % chunks, row = query_row + down - D::kReach;
      const bool inside =
          row >= 0 && row < s.query_height && query_column >= 0 && query_column < s.query_width;
      const int64_t query = inside ? row * s.query_width + query_column : 0;
      copy_async(ring + (down * D::kColumns + slot) * s.vector + 16 * chunk,
                 pruned + query * s.vector + 16 * chunk, inside);
    }
  };
  // Where each unit of four channels begins that the windows over the query are made of.
  const auto place_taps = [&](int query) {
    const int unit = threadIdx.x, query_column = query % s.query_width;
    if (unit < 4 * D::kOverQuery) {
      const int tap = unit / G, down = tap / K, right = tap % K;
      const int slot = (query_column + right + D::kColumns - D::kReach) % D::kColumns;
      taps[(query & 1) * 4 * D::kOverQuery + unit] =
          unit < D::kUnits ? (down * D::kColumns + slot) * s.vector + unit % G * 8 : 0;
    }
  };

  // ---- before the first query position

  for (int i = threadIdx.x; i < (s.even ? 2 : 1) * s.planes / 16; i += kThreadsHere) {
    reinterpret_cast<uint4*>(shared)[i] = uint4{};
  }
  for (int i = threadIdx.x; i < s.positions; i += kThreadsHere) {
    places[i] = i / s.out_width * s.stride * s.row + i % s.out_width * s.stride * 2;
  }
  if (lane == 0) {
    int count = 0;
    for (int first = warp * 8; first < s.positions; first += kWarpsHere * 8) {
      count += min(s.positions - first, 8);
    }
    counts[warp] = float(count);
  }
  place_taps(begin);
  uint32_t weights[D::kSteps][4];
#pragma unroll
  for (int step = 0; step < D::kSteps; ++step) {
    const uint4 four = __ldg(fragments + step * 32 + lane);
    memcpy(weights[step], &four, sizeof(four));
  }
  const int output = lane / 4 * 2;
  float of_bias[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    of_bias[h] = output + h < s.outputs ? to_float(bias[output + h]) : 0.0f;
  }
  int channels[G];
#pragma unroll
  for (int g = 0; g < G; ++g) channels[g] = plane_of(4 * g + quarter, s);
  __syncthreads();  // zeros first
  fetch_planes(begin);
  commit_copies();

  // The warps' moments of a query position, put together after the next barrier.
  const auto keep_statistics = [&](int query) {
    if (int(threadIdx.x) < s.outputs) {
      const float2* of_warp = sums + (query & 1) * kWarpsHere * kMostOutputs + threadIdx.x;
      float mean = 0.0f, deviations = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarpsHere; ++w) mean += counts[w] * of_warp[w * kMostOutputs].x;
      mean /= float(s.positions);
#pragma unroll
      for (int w = 0; w < kWarpsHere; ++w) {
        const float2 one = of_warp[w * kMostOutputs];
        deviations += one.y + counts[w] * (one.x - mean) * (one.x - mean);
      }
      float* to = statistics + (first_query + query) * s.outputs + threadIdx.x;
      to[0] = mean;
      to[int64_t(gridDim.z) * s.queries * s.outputs] = deviations;
    }
  };

  for (int query = begin; query < end; ++query) {
    const int query_row = query / s.query_width, query_column = query % s.query_width;
    wait_for_copies<0>();
    __syncthreads();  // this position's planes are there, and nobody reads the last one's
    const bool starts = query == begin || query_column == 0;
    if (starts) {
      for (int c = -D::kReach; c <= D::kReach; ++c) fetch_column(query_row, query_column + c);
      commit_copies();
    }
    if (!s.even) spread_planes(query);
    if (starts) wait_for_copies<0>();
    if (starts || !s.even) __syncthreads();
    if (query + 1 < end) {
      fetch_planes(query + 1);
      if (query_column + 1 < s.query_width) {
        fetch_column(query_row, query_column + 1 + D::kReach);
      }
      place_taps(query + 1);
    }
    commit_copies();
    if (statistics != nullptr && query > begin) keep_statistics(query - 1);

    const char* planes = shared + (s.even ? (query & 1) * s.planes : 0);
    const int* of_taps = taps + (query & 1) * 4 * D::kOverQuery + quarter;
    T* to = out + (first_query + query) * s.positions * s.outputs + output;
    Moments moments[2];
    for (int first = warp * 8; first < s.positions; first += Tiles * kWarpsHere * 8) {
      const char *of_planes[Tiles], *of_ring[Tiles];
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        const int position = min(first + i * kWarpsHere * 8 + lane / 4, s.positions - 1);
        of_planes[i] = planes + places[position];
        of_ring[i] = ring + position * (8 * G);
      }
      float products[Tiles][4] = {};
#pragma unroll
      for (int step = 0; step < D::kOverSupport; ++step) {
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
          uint32_t window[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int slot = 2 * step + r, of_channel = slot % (K * D::kPairs);
            const int down = of_channel / D::kPairs, two = of_channel % D::kPairs;
            if (slot >= D::kSlots) {
              window[r] = 0;
              continue;
            }
            window[r] = *reinterpret_cast<const uint32_t*>(
                of_planes[i] + channels[slot / (K * D::kPairs)] + down * s.row + 4 * two);
            if (2 * two + 1 >= K) window[r] &= 0xffff;  // its weight is 0, and 0 times NaN is not
          }
          multiply_add<T>(products[i], weights[step], window);
        }
      }
#pragma unroll
      for (int step = 0; step < D::kOverQuery; ++step) {
        const int tap = of_taps[4 * step];
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
          uint2 four = *reinterpret_cast<const uint2*>(of_ring[i] + tap);
          if (4 * step + 4 > D::kUnits && 4 * step + quarter >= D::kUnits) four = uint2{};
          const uint32_t window[2] = {four.x, four.y};
          multiply_add<T>(products[i], weights[D::kOverSupport + step], window);
        }
      }

      // Columns of a product are positions, 2 quarter and the next in each lane.
      float total[2] = {}, count = 0.0f;
#pragma unroll
      for (int i = 0; i < Tiles; ++i) {
        const int begin_of_tile = first + i * kWarpsHere * 8;
        count += float(max(0, min(8, s.positions - begin_of_tile)));
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int position = begin_of_tile + 2 * quarter + e;
          float (&p)[4] = products[i];
          p[e] += of_bias[0], p[2 + e] += of_bias[1];
          if (position < s.positions) {
            total[0] += p[e], total[1] += p[2 + e];
            if (output < s.outputs) {
              *reinterpret_cast<uint32_t*>(to + int64_t(position) * s.outputs) =
                  pair(from_float<T>(p[e]), from_float<T>(p[2 + e]));
            }
          }
        }
      }
      if (statistics == nullptr) continue;
      const auto over_quarters = [](float sum) {
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
      };
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mean = over_quarters(total[h]) / count;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < Tiles; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float apart = products[i][2 * h + e] - mean;
            if (first + i * kWarpsHere * 8 + 2 * quarter + e < s.positions) {
              squares += apart * apart;
            }
          }
        }
        moments[h].add(count, mean, over_quarters(squares));
      }
    }
    if (statistics != nullptr && quarter == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sums[((query & 1) * kWarpsHere + warp) * kMostOutputs + output + h] = {
            moments[h].mean, moments[h].deviations};
      }
    }
  }
  if (statistics != nullptr) {
    __syncthreads();
    keep_statistics(end - 1);
  }
}

// ---- launches

int round_up(int64_t count, int to) { return static_cast<int>((count + to - 1) / to * to); }

int groups_of(const TensorView& x) { return x.size[1] <= 4 ? 1 : 2; }

Shape shape_of(const TensorView& x, int outputs, int kernel, int stride) {
  Shape s{};
  s.inputs = int(x.size[1]), s.outputs = outputs, s.stride = stride;
  s.query_height = int(x.size[2]), s.query_width = int(x.size[3]);
  s.support_height = int(x.size[4]), s.support_width = int(x.size[5]);
  s.out_width = (s.support_width + stride - 1) / stride;
  s.queries = s.query_height * s.query_width;
  s.positions = (s.support_height + stride - 1) / stride * s.out_width;
  s.item = x.size[0] == 1 ? 0 : x.stride[0];
  s.channel = x.size[1] == 1 ? 0 : x.stride[1];
  const int reach = kernel / 2, groups = groups_of(x);
  // An odd reach would put a row's first pair between two words.
  s.even = reach % 2 == 0 && s.support_width % 2 == 0 && s.item % 2 == 0 && s.channel % 2 == 0 &&
           reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
  // Windows begin at even columns, so the last pair of the last one ends within this too.
  s.row = 2 * round_up(s.support_width + 2 * reach, 2);
  s.plane = round_up(int64_t(s.row) * (s.support_height + 2 * reach) + 68, 128);
  s.planes = s.plane * (s.inputs % 4 == 0 ? s.inputs : s.inputs + 1);
  s.raw = round_up((int64_t(s.support_height) * s.support_width + 1) * 2, 16);
  // Two or four query positions are read at once, 64 or 32 bytes of each: then from other banks.
  s.vector = round_up(int64_t(s.positions) * 8 * groups - 32 * groups, 128) + 32 * groups;
  return s;
}

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

template <class T, int K, int G>
void run(const CenterPivotConv4d& call, Shape s, Stream stream) {
  const auto batch = static_cast<unsigned>(call.x.size[0]);
  const T *x = call.x.as<const T>(), *bias = call.bias.as<const T>();
  uint32_t* fragments = call.scratch.as<uint32_t>();
  char* pruned = call.scratch.as<char>() + Depth<K, G>::kSteps * 512;
  const auto parts = blocks_of(int64_t(s.queries) * s.positions, kThreads);
  launch("prepare", prepare<T, K, G>, dim3(static_cast<unsigned>(parts + 1), 1, batch), kThreads, 0,
         stream, x, call.query_weight.as<const T>(), call.support_weight.as<const T>(), s,
         fragments, pruned);

  // All blocks at once, each of equally many query positions.
  const int64_t room = multiprocessors() * kResident<G> / batch;
  s.chunk = static_cast<int>(blocks_of(s.queries, room < 1 ? 1 : room));
  const dim3 grid(static_cast<unsigned>(blocks_of(s.queries, s.chunk)), 1, batch);
  constexpr int threads = 32 * kBlockWarps<G>;
  const auto start = [&](auto* kernel) {
    launch("convolve", kernel, grid, threads, Parts<K, G>(s).end, stream, x,
           reinterpret_cast<const uint4*>(fragments), pruned, bias, s, call.out.as<T>(),
           call.statistics.as<float>());
  };
  if constexpr (G == 2) {
    start(convolve<T, K, G, 2>);
  } else {
    s.positions <= 8 * kBlockWarps<G> ? start(convolve<T, K, G, 1>) : start(convolve<T, K, G, 3>);
  }
}

}  // namespace

int64_t center_pivot_scratch(const TensorView& x, int kernel, int stride) {
  // Planes that fit nowhere, and whose bytes may not fit an int.
  if (x.size[4] * x.size[5] > (1 << 20)) return 0;
  int64_t bytes = 0;
  with_depth(kernel, groups_of(x), [&](auto k, auto groups) {
    constexpr int K = decltype(k)::value, G = decltype(groups)::value;
    const Shape s = shape_of(x, kMostOutputs, kernel, stride);
    if (Parts<K, G>(s).end <= most_shared_memory()) {
      bytes = Depth<K, G>::kSteps * 512 + x.size[0] * s.queries * s.vector;
    }
  });
  return bytes;
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
