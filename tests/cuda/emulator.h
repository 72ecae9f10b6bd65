// The CUDA runtime's part in a kernel, on the CPU: what csrc/include/fastfss/cuda/device.cuh and
// mma.cuh include under FASTFSS_CUDA_EMULATED. For tests: slow, and exact about what a GPU's
// threads may see of each other.
//
// A block's threads are fibers that run in turn until each waits at a barrier or is done; a block
// runs to its end before the next one. Dynamic shared memory begins as NaN in every block.
// Asynchronous copies land when they are waited for, and not before. Tensor cores are emulated by
// the layouts that PTX gives to the lanes.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct uint4 {
  uint32_t x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct float2 {
  float x, y;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  bool done = false;
  // Asynchronous copies, by group; the last group is still open.
  std::deque<std::vector<std::function<void()>>> copies{1};
};

struct Barrier {
  int arrived = 0, generation = 0;
};

// One block. Warps of the last threads may be partial.
class Block {
 public:
  Block(dim3 index, dim3 grid, int threads, size_t shared)
      : index(index), grid(grid), warps_((threads + 31) / 32), fibers_(threads) {
    // NaN in float32, bfloat16 and float16.
    shared_.assign((shared + 15) / 16, uint4{~0u, ~0u, ~0u, ~0u});
  }

  void run(const std::function<void()>& kernel) {
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.thread = dim3(static_cast<unsigned>(i));
      fiber.stack.reset(new char[kStack]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    kernel_ = &kernel;
    current = this;
    for (size_t left = fibers_.size(); left > 0;) {
      const int before = progress_;
      for (Fiber& fiber : fibers_) {
        if (fiber.done) continue;
        running_ = &fiber;
        swapcontext(&scheduler_, &fiber.context);
        if (failure_) std::rethrow_exception(failure_);
        if (fiber.done) --left, ++progress_;
      }
      if (progress_ == before) throw std::runtime_error("emulation: the threads wait for ever");
    }
    current = nullptr;
  }

  Fiber& fiber() { return *running_; }
  int lane() const { return static_cast<int>(running_->thread.x % 32); }

  void wait(Barrier& barrier, int threads) {
    const int generation = barrier.generation;
    if (++barrier.arrived == threads) {
      barrier.arrived = 0;
      ++barrier.generation;
    }
    ++progress_;
    while (barrier.generation == generation) swapcontext(&running_->context, &scheduler_);
  }
  void wait_for_block() { wait(of_block_, static_cast<int>(fibers_.size())); }
  void wait_for_warp() { wait(warps_[running_->thread.x / 32].barrier, 32); }

  // What every lane of the warp has given; valid until the warp's next exchange.
  template <class T>
  std::vector<T> exchange(const T& mine) {
    Warp& warp = warps_[running_->thread.x / 32];
    warp.given[lane()].assign(reinterpret_cast<const char*>(&mine),
                              reinterpret_cast<const char*>(&mine) + sizeof(T));
    wait_for_warp();
    std::vector<T> all(32);
    for (int i = 0; i < 32; ++i) std::memcpy(&all[i], warp.given[i].data(), sizeof(T));
    wait_for_warp();
    return all;
  }

  static inline Block* current = nullptr;
  const dim3 index, grid;
  std::vector<uint4> shared_;

 private:
  static constexpr size_t kStack = 128 << 10;
  struct Warp {
    Barrier barrier;
    std::vector<char> given[32];
  };

  static void enter() {
    Block& block = *current;
    try {
      (*block.kernel_)();
    } catch (...) {  // no exception leaves a fiber's stack
      block.failure_ = std::current_exception();
    }
    block.running_->done = true;
  }

  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  Barrier of_block_;
  ucontext_t scheduler_;
  Fiber* running_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr failure_;
  int progress_ = 0;
};

inline Block& block() { return *Block::current; }

}  // namespace emulation

#define threadIdx (emulation::block().fiber().thread)
#define blockIdx (emulation::block().index)
#define gridDim (emulation::block().grid)

inline void __syncthreads() { emulation::block().wait_for_block(); }
inline void __syncwarp() { emulation::block().wait_for_warp(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::block().exchange(value)[emulation::block().lane() ^ mask];
}

template <class T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) {
    throw std::runtime_error("emulation: misaligned load");
  }
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

using std::max;
using std::memcpy;
using std::min;
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, int bits) {
  return static_cast<uint32_t>((uint64_t(high) << 32 | low) >> (bits % 32));
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float __half2float(_Float16 x) { return static_cast<float>(x); }
inline _Float16 __float2half_rn(float x) { return static_cast<_Float16>(x); }
inline _Float16 __ushort_as_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint16_t __half_as_ushort(_Float16 x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline uint16_t __float2bfloat16_rn(float x) {  // as its bits
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint16_t __bfloat16_as_ushort(uint16_t bits) { return bits; }

namespace fastfss::cuda {

template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
            void*, Arguments&&... arguments) {
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        emulation::Block block(dim3(x, y, z), grid, threads, shared);
        block.run([&] { kernel(static_cast<Parameters>(arguments)...); });
      }
    }
  }
}

// Few, so that small tests fill them.
inline int64_t multiprocessors() { return 8; }
inline int64_t most_shared_memory() { return 99 << 10; }

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::block().shared_.data());
}

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Given {
    uint32_t a[4], b[2];
  } mine;
  std::copy(a, a + 4, mine.a);
  std::copy(b, b + 2, mine.b);
  const auto all = emulation::block().exchange(mine);
  const int lane = emulation::block().lane();
  const auto element = [](uint32_t pair, int half) {
    return to_float(T{static_cast<uint16_t>(pair >> (16 * half))});
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2, half = k % 2;
      const Given& of_a = all[row % 8 * 4 + holder];
      const Given& of_b = all[column * 4 + holder];
      sum += double(element(of_a.a[k / 8 * 2 + row / 8], half)) * element(of_b.b[k / 8], half);
    }
    d[i] = static_cast<float>(sum);
  }
}

inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto rows = emulation::block().exchange(row);
  const int lane = emulation::block().lane();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const void* from = rows[matrix * 8 + lane / 4];
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
      throw std::runtime_error("emulation: misaligned row of a matrix");
    }
    std::memcpy(&to[matrix], static_cast<const char*>(from) + lane % 4 * 4, 4);
  }
}

inline void copy_async(void* to, const void* from, bool inside = true) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    throw std::runtime_error("emulation: misaligned copy");
  }
  emulation::block().fiber().copies.back().push_back(
      [=] { inside ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); });
}
inline void copy_word_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 4 || reinterpret_cast<uintptr_t>(from) % 4) {
    throw std::runtime_error("emulation: misaligned copy");
  }
  emulation::block().fiber().copies.back().push_back([=] { std::memcpy(to, from, 4); });
}
inline void commit_copies() { emulation::block().fiber().copies.emplace_back(); }

template <int Groups>
void wait_for_copies() {
  auto& copies = emulation::block().fiber().copies;
  while (copies.size() > Groups + 1) {  // the open group is not counted
    for (const auto& copy : copies.front()) copy();
    copies.pop_front();
  }
}

}  // namespace fastfss::cuda
