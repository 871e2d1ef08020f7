// rms_norm and rotate_heads: what stands between the matrix products of a layer.
#include "ops/layer_ops.hpp"

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

FloatTensor float_tensor(const BorrowedTensor& tensor, const char* what, int least_dimensions) {
  const std::string name(what);
  if (tensor.device_type != kCpuDevice) throw py::value_error(name + " must be on the CPU");
  if (float_type(tensor, what) != DataType::kFloat32) {
    throw py::type_error(name + " must be float32");
  }
  if (tensor.dimensions < least_dimensions || tensor.dimensions > kLayerAxes) {
    throw py::value_error(name + " must have " + std::to_string(least_dimensions) + " to " +
                          std::to_string(kLayerAxes) + " dimensions, got " +
                          std::to_string(tensor.dimensions));
  }
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % alignof(float) != 0) {
    throw py::value_error(name + " must be aligned to its elements; copy it first");
  }
  FloatTensor view{static_cast<const float*>(tensor.data), {1, 1, 1, 1}, {0, 0, 0, 0}};
  const int missing = kLayerAxes - tensor.dimensions;
  for (int axis = 0; axis < tensor.dimensions; ++axis) {
    view.shape[missing + axis] = tensor.shape[axis];
    view.strides[missing + axis] = tensor.strides[axis];
  }
  return view;
}

// A contiguous tensor of the source's shape, to be written.
float* output(const BorrowedTensor& tensor, const char* what, const FloatTensor& source) {
  const FloatTensor view = float_tensor(tensor, what, 1);
  std::int64_t size = 1;
  bool fits = true;
  for (int axis = kLayerAxes - 1; axis >= 0; --axis) {
    fits = fits && view.shape[axis] == source.shape[axis] &&
           (view.shape[axis] <= 1 || view.strides[axis] == size);
    size *= view.shape[axis];
  }
  if (!fits) {
    throw py::value_error(std::string(what) + " must be contiguous, of the shape of the input");
  }
  if (tensor.read_only) throw py::value_error(std::string(what) + " is read-only");
  return static_cast<float*>(tensor.data);
}

void norm(const py::object& hidden, const py::object& weight, double epsilon, float offset,
          const py::object& out) {
  const BorrowedTensor h(hidden.ptr(), "hidden", StorageCheck::kSkipped);
  const BorrowedTensor w(weight.ptr(), "weight", StorageCheck::kSkipped);
  const BorrowedTensor o(out.ptr(), "out", StorageCheck::kSkipped);
  const FloatTensor source = float_tensor(h, "hidden", 1);
  const FloatTensor weights = float_tensor(w, "weight", 1);
  float* const target = output(o, "out", source);
  if (w.dimensions != 1 || w.shape[0] != source.shape[3] || (w.shape[0] > 1 && w.strides[0] != 1)) {
    throw py::value_error("weight must be contiguous, as long as the last axis of hidden (" +
                          std::to_string(source.shape[3]) + ")");
  }
  if (!(epsilon >= 0.0) || std::isinf(epsilon)) throw py::value_error("epsilon must be >= 0");
  const py::gil_scoped_release release;
  rms_norm(source, {weights.data, epsilon, offset}, target);
}

// Queries and keys in one call: tensors are read once for both.
void rotate(const py::object& queries, const py::object& keys, const py::object& cosine,
            const py::object& sine, const py::object& queries_out, const py::object& keys_out) {
  const BorrowedTensor q(queries.ptr(), "queries", StorageCheck::kSkipped);
  const BorrowedTensor k(keys.ptr(), "keys", StorageCheck::kSkipped);
  const BorrowedTensor c(cosine.ptr(), "cosine", StorageCheck::kSkipped);
  const BorrowedTensor s(sine.ptr(), "sine", StorageCheck::kSkipped);
  const BorrowedTensor q_out(queries_out.ptr(), "queries_out", StorageCheck::kSkipped);
  const BorrowedTensor k_out(keys_out.ptr(), "keys_out", StorageCheck::kSkipped);
  const FloatTensor query = float_tensor(q, "queries", 4);
  const FloatTensor key = float_tensor(k, "keys", 4);
  const FloatTensor cosines = float_tensor(c, "cosine", 3);
  const FloatTensor sines = float_tensor(s, "sine", 3);
  float* const query_target = output(q_out, "queries_out", query);
  float* const key_target = output(k_out, "keys_out", key);
  const py::gil_scoped_release release;
  rotate_heads(query, cosines, sines, query_target);
  rotate_heads(key, cosines, sines, key_target);
}

}  // namespace

void bind_layer_ops(py::module_& module) {
  // Positional only: they are called several times a layer.
  module.def("rms_norm", &norm);
  module.def("rotate_heads", &rotate);
}

}  // namespace glimprouter::bindings
