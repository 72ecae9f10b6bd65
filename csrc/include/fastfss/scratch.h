// Working memory of a kernel: uninitialised, aligned to a cache line, freed with its scope.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastfss::FASTFSS_ISA {

struct ScratchDelete {
  void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

using Scratch = std::unique_ptr<float[], ScratchDelete>;

inline Scratch scratch(int64_t floats) {
  const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
  return Scratch(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
}

}  // namespace fastfss::FASTFSS_ISA
