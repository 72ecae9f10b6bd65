// Reads memory from one end to the other as fast as this instruction set can, and adds it up so
// that the reading is not optimised away.
#include "fastfss/stream_read.h"

#include <atomic>

#include "fastfss/parallel.h"
#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

float stream_read(const float* data, int64_t count, int threads) {
  std::atomic<float> result = 0;
  parallel_for(count, threads, [&](int64_t begin, int64_t end) {
    constexpr int kVectors = 8;
    VFloat total[kVectors] = {};
    for (int64_t i = begin; i + kVectors * kWidth <= end; i += kVectors * kWidth) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) total[v] += load(data + i + v * kWidth);
    }
    VFloat all{};
    for (const VFloat& v : total) all += v;
    result = sum(all);
  });
  return result;
}

}  // namespace fastfss::FASTFSS_ISA
