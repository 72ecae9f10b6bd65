// fastfss._native: the operations, bound for Python. Tensors arrive as (address, dtype, sizes,
// strides); the checks are made in Python (fastfss/ops), where the error messages are.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "fastfss/center_pivot_conv4d.h"
#include "fastfss/dense_correlation.h"
#include "fastfss/dense_match.h"
#include "fastfss/dense_match_backward.h"
#include "fastfss/isa.h"
#include "fastfss/masked_average_pool.h"
#include "fastfss/probe.h"
#include "fastfss/prototype_match.h"
#include "fastfss/stream_read.h"
#include "fastfss/tensor.h"
#include "fastfss/tensor_caster.h"
#include "fastfss/workspace.h"
#ifdef FASTFSS_CUDA_ARCHS
#include "fastfss/cuda_bindings.h"
#include "fastfss/cuda_device.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_native, module) {
  using namespace fastfss;
  module.doc() = "The native core of fastfss; use fastfss.ops.";

  py::enum_<Isa>(module, "Isa", py::arithmetic())
      .value("portable", Isa::kPortable)
      .value("avx2", Isa::kAvx2)
      .value("avx512", Isa::kAvx512)
      .value("avx512_bf16", Isa::kAvx512Bf16)
      .value("amx", Isa::kAmx);
  module.def("best_isa", &best_isa);
  module.def("active_isa", &active_isa);
  module.def("set_isa", &set_isa, py::arg("isa"));
  module.def("cpu_features", &cpu_features);
  module.def(
      "masked_average_pool",
      [](const TensorView& features, bool channels_last, const TensorView& masks, bool shrink_mask,
         bool align_corners, float eps, const TensorView& out, int threads) {
        masked_average_pool(
            {features, channels_last, {masks, shrink_mask, align_corners, eps}, out, threads});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "masked_average_pool_backward",
      [](const TensorView& grad, const TensorView& features, bool channels_last,
         const TensorView& masks, bool shrink_mask, bool align_corners, float eps,
         const TensorView& grad_features, const TensorView& grad_weights, int threads) {
        masked_average_pool_backward({grad,
                                      features,
                                      channels_last,
                                      {masks, shrink_mask, align_corners, eps},
                                      grad_features,
                                      grad_weights,
                                      threads});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "prototype_match",
      [](const TensorView& features, const TensorView& prototypes, bool channels_last, float scale,
         float eps, const TensorView& scores, const TensorView& norms, int threads) {
        prototype_match({features, prototypes, channels_last, scale, eps, scores, norms, threads});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "prototype_match_backward",
      [](const TensorView& features, const TensorView& prototypes, bool channels_last, float scale,
         float eps, const TensorView& scores, const TensorView& norms, const TensorView& grad,
         const TensorView& grad_features, const TensorView& grad_prototypes, int threads) {
        prototype_match_backward(
            {{features, prototypes, channels_last, scale, eps, scores, norms, threads},
             grad,
             grad_features,
             grad_prototypes});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "stream_read",
      [](const TensorView& x, int64_t count, int threads) {
        return stream_read(x.as<const float>(), count, threads);
      },
      py::call_guard<py::gil_scoped_release>());

  module.attr("compiled_isas") = FASTFSS_COMPILED_ISAS;
#ifdef FASTFSS_CUDA_ARCHS
  module.attr("cuda_architectures") = FASTFSS_CUDA_ARCHS;
  module.def("cuda_devices", &cuda_devices);
  cuda::bind(module);
#else
  module.attr("cuda_architectures") = py::none();
#endif

  module.def(
      "dense_match",
      [](const TensorView& query, const TensorView& key, const std::optional<TensorView>& value,
         const std::optional<TensorView>& mask, const TensorView& out,
         const std::optional<TensorView>& denominator, float scale, bool normalize, float eps,
         int reduce, int threads, bool emulate_amx) {
        const TensorView none{};
        const DenseMatchArgs args{query,
                                  key,
                                  value.value_or(none),
                                  mask.value_or(none),
                                  out,
                                  denominator.value_or(none),
                                  scale,
                                  eps,
                                  normalize,
                                  static_cast<MatchReduce>(reduce),
                                  threads};
        emulate_amx ? dense_match_emulated_amx(args) : dense_match(args);
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "dense_match_backward",
      [](const TensorView& query, const TensorView& key, const TensorView& value,
         const std::optional<TensorView>& weights, const TensorView& grad,
         const TensorView& grad_denominator, const std::optional<TensorView>& grad_query,
         const std::optional<TensorView>& grad_key, const std::optional<TensorView>& grad_value,
         float scale, float eps, int threads) {
        const TensorView none{};
        dense_match_backward({query, key, value, weights.value_or(none), grad, grad_denominator,
                              grad_query.value_or(none), grad_key.value_or(none),
                              grad_value.value_or(none), scale, eps, threads});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "dense_correlation",
      [](const TensorView& query, const TensorView& support, const TensorView& out, float eps,
         bool clamp, int threads, bool emulate_amx) {
        const DenseCorrelationArgs args{query, support, out, eps, clamp, threads};
        emulate_amx ? dense_correlation_emulated_amx(args) : dense_correlation(args);
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "center_pivot_conv4d",
      [](const std::optional<TensorView>& x, const std::optional<TensorView>& pruned,
         const std::optional<TensorView>& support_weight,
         const std::optional<TensorView>& query_weight, const TensorView& bias,
         const std::optional<TensorView>& start, const TensorView& out,
         const std::optional<TensorView>& norm_weight, const std::optional<TensorView>& norm_bias,
         int64_t stride, int64_t groups, float eps, int threads, bool emulate_amx) {
        const TensorView none{};
        const CenterPivotConv4dArgs args{x.value_or(none),
                                         pruned.value_or(none),
                                         support_weight.value_or(none),
                                         query_weight.value_or(none),
                                         bias,
                                         start.value_or(none),
                                         out,
                                         norm_weight.value_or(none),
                                         norm_bias.value_or(none),
                                         stride,
                                         groups,
                                         eps,
                                         threads};
        emulate_amx ? center_pivot_conv4d_emulated_amx(args) : center_pivot_conv4d(args);
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("release_workspace", &release_workspace);
  // For tests: the kernels' own exponential.
  module.def("probe_exp", [](const TensorView& from, const TensorView& to) {
    probe_exp(from.as<float>(), to.as<float>(), from.size[0]);
  });
  // For benchmarks: (multiply-adds done, their sum).
  module.def("probe_multiply_adds", [](int64_t count, bool bfloat16) {
    float sum = 0;
    const int64_t done = probe_multiply_adds(count, bfloat16, &sum);
    return std::make_pair(done, sum);
  });
}
