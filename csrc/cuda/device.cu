#include <cuda_runtime.h>

#include <stdexcept>

#include "fastfss/cuda_device.h"

namespace fastfss {

std::vector<std::string> cuda_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return {};
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
  std::vector<std::string> lines;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    lines.push_back(std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
                    std::to_string(properties.minor) + ")");
  }
  return lines;
}

}  // namespace fastfss
