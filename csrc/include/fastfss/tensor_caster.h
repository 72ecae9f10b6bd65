// How Python hands a tensor over: (data_ptr: int, dtype: int, sizes: tuple, strides: tuple), as
// fastfss/ops/_native_call.py makes it.
#pragma once

#include <pybind11/pybind11.h>

#include "fastfss/tensor.h"

namespace pybind11::detail {

// Read with the C API: 0.1 us against 1 us through generic casts.
template <>
struct type_caster<fastfss::TensorView> {
  PYBIND11_TYPE_CASTER(fastfss::TensorView, const_name("tuple[int, int, tuple, tuple]"));

  bool load(handle source, bool) {
    PyObject* tuple = source.ptr();
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) return false;
    PyObject* sizes = PyTuple_GET_ITEM(tuple, 2);
    PyObject* strides = PyTuple_GET_ITEM(tuple, 3);
    if (!PyTuple_Check(sizes) || !PyTuple_Check(strides)) return false;
    const Py_ssize_t rank = PyTuple_GET_SIZE(sizes);
    if (rank > fastfss::kMaxRank || PyTuple_GET_SIZE(strides) != rank) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, 0));
    value.dtype = static_cast<fastfss::DType>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 1)));
    value.rank = static_cast<int>(rank);
    for (Py_ssize_t i = 0; i < rank; ++i) {
      value.size[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, i));
      value.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, i));
    }
    return PyErr_Occurred() == nullptr;
  }
};

}  // namespace pybind11::detail
