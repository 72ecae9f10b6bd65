// What an operation sees of a torch tensor: an address, a dtype, sizes and strides. No torch
// headers.
#pragma once

#include <array>
#include <cstdint>

namespace fastfss {

// The values are shared with fastfss/ops/_native_call.py.
// kUInt8: masks; bool too. kFloat16: on GPUs alone.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kUInt8 = 2, kFloat16 = 3 };

constexpr int kMaxRank = 6;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<int64_t, kMaxRank> size{};
  std::array<int64_t, kMaxRank> stride{};  // in elements

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// bfloat16 is stored as its 16 bits; csrc/include/fastfss/vec.h converts.
using BFloat16 = uint16_t;

}  // namespace fastfss
