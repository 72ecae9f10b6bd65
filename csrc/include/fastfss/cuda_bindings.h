// The CUDA kernels for Python. One function, since two modules have it: fastfss._native, and the
// one that tests/cuda builds of the same sources for the CPU.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "fastfss/cuda_operations.h"
#include "fastfss/tensor_caster.h"

namespace fastfss::cuda {

inline void bind(pybind11::module_& module) {
  namespace py = pybind11;
  const TensorView none{};
  module.def("cuda_pool_row", &pool_row);
  module.def("cuda_pool_splits", &pool_splits);
  module.def(
      "cuda_masked_average_pool",
      [none](const TensorView& features, bool channels_last, const TensorView& masks,
             bool shrink_mask, bool align_corners, float eps, const TensorView& weights,
             const std::optional<TensorView>& parts, const TensorView& out, uintptr_t stream) {
        masked_average_pool({features, channels_last, masks, shrink_mask, align_corners, eps,
                             weights, parts.value_or(none), out},
                            reinterpret_cast<Stream>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "cuda_prototype_match",
      [](const TensorView& features, bool channels_last, const TensorView& prototypes, float scale,
         float eps, const TensorView& scores, const TensorView& norms, uintptr_t stream) {
        prototype_match({features, channels_last, prototypes, scale, eps, scores, norms},
                        reinterpret_cast<Stream>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("cuda_correlation_packed", &correlation_packed);
  using Views = std::tuple<TensorView, TensorView, std::optional<TensorView>,
                           std::optional<TensorView>, TensorView, TensorView>;
  module.def(
      "cuda_dense_correlation",
      [none](const std::vector<Views>& views, const TensorView& out, float eps, bool clamp,
             uintptr_t stream) {
        DenseCorrelation call{{}, out, eps, clamp};
        for (const auto& [query, support, query_packed, support_packed, query_scales,
                          support_scales] : views) {
          call.layers.push_back({query, support, query_packed.value_or(none),
                                 support_packed.value_or(none), query_scales, support_scales});
        }
        dense_correlation(call, reinterpret_cast<Stream>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("cuda_center_pivot_plan", [](const TensorView& x, int kernel, int stride) {
    const CenterPivotPlan plan = center_pivot_plan(x, kernel, stride);
    return std::pair(plan.scratch, plan.together);
  });
  module.def(
      "cuda_center_pivot_conv4d",
      [none](const TensorView& x, const TensorView& query_weight, const TensorView& support_weight,
             const TensorView& query_bias, const TensorView& support_bias, int stride,
             const TensorView& scratch, const TensorView& out,
             const std::optional<TensorView>& statistics, uintptr_t stream) {
        center_pivot_conv4d({x, query_weight, support_weight, query_bias, support_bias, stride,
                             scratch, out, statistics.value_or(none)},
                            reinterpret_cast<Stream>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastfss::cuda
