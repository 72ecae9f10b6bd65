// One plain read of a tensor: the floor that the benchmarks compare with; csrc/cpu/stream_read.cpp.
#pragma once

#include <cstdint>

namespace fastfss {

// The sum of the float32 values at `data`, which nobody needs.
float stream_read(const float* data, int64_t count, int threads);

// The code for each instruction set; the function above chooses.
namespace portable {
float stream_read(const float* data, int64_t count, int threads);
}
namespace avx2 {
float stream_read(const float* data, int64_t count, int threads);
}
namespace avx512 {
float stream_read(const float* data, int64_t count, int threads);
}

}  // namespace fastfss
