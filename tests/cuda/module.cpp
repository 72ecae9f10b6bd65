// The CUDA kernels, compiled for the CPU: the functions of csrc/include/fastfss/cuda_bindings.h.
#include "fastfss/cuda_bindings.h"

PYBIND11_MODULE(emulated_cuda, module) { fastfss::cuda::bind(module); }
