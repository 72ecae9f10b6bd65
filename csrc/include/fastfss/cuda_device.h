// The GPUs that the CUDA runtime sees.
#pragma once

#include <string>
#include <vector>

namespace fastfss {

// One line a GPU, "NVIDIA H200 (sm_90)". Empty without a GPU; throws std::runtime_error with the
// runtime's own words where there is no usable driver.
std::vector<std::string> cuda_devices();

}  // namespace fastfss
