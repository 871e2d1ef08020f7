#include "heads_access.hpp"

#include <pybind11/pybind11.h>

#include <cmath>

namespace py = pybind11;

namespace glimprouter::bindings {

void check_place(const Arena& arena, const BorrowedTensor& tensor, const std::string& name) {
  if (arena.reaches(tensor.device_type, tensor.device_id)) return;
  const std::string place = arena.name();
  throw py::value_error(name + " must be on " + (place == "cpu" ? "the CPU" : place) +
                        ", where the pages are; move it there, or let the pool live where it is");
}

HeadsView heads_view(const Arena& arena, const BorrowedTensor& tensor, const char* what, Axes axes,
                     bool written) {
  const std::string name(what);
  HeadsView view{};
  check_place(arena, tensor, name);
  view.dtype = float_type(tensor, what);
  if (written && tensor.read_only) throw py::value_error(name + " is read-only");
  const int dimensions = tensor.dimensions;
  if (dimensions != 3 && !(dimensions == 4 && tensor.shape[0] == 1)) {
    throw py::value_error(name +
                          " must have the shape [tokens, heads, size] or one of four "
                          "dimensions with a batch of 1, got " +
                          std::to_string(dimensions) + " dimensions");
  }
  const bool swapped = dimensions == 4 && axes == Axes::kHeadsFirst;
  const int token_axis = dimensions - (swapped ? 2 : 3);
  const int head_axis = dimensions - (swapped ? 3 : 2);
  if (tensor.strides[dimensions - 1] != 1 && tensor.shape[dimensions - 1] > 1) {
    throw py::value_error(name + " must be contiguous along the head; call .contiguous() first");
  }
  view.data = tensor.data;
  view.tokens = tensor.shape[token_axis];
  view.heads = static_cast<std::int32_t>(tensor.shape[head_axis]);
  view.head_dim = static_cast<std::int32_t>(tensor.shape[dimensions - 1]);
  view.token_stride = tensor.strides[token_axis];
  view.head_stride = tensor.strides[head_axis];
  if (written &&
      ((view.token_stride == 0 && view.tokens > 1) || (view.head_stride == 0 && view.heads > 1))) {
    throw py::value_error(name +
                          " has several elements in one place (stride 0), so it cannot be written; "
                          "pass a tensor of its own memory");
  }
  return view;
}

BorrowedHeads::BorrowedHeads(const Arena& arena, const py::object& heads, const char* what,
                             bool written)
    : object_(heads.ptr()) {
  if (heads.is_none()) return;
  view = heads_view(arena, tensor_.emplace(object_, what), what, Axes::kHeadsFirst, written);
}

DeviceStream BorrowedHeads::stream() const {
  return tensor_ ? current_stream(object_, *tensor_) : nullptr;
}

AttentionOptions attention_options(float scale, std::int32_t window, float softcap,
                                   std::int32_t chunk_size) {
  if (!std::isfinite(scale)) throw py::value_error("scale must be finite");
  if (window < 0) throw py::value_error("window must be >= 0 (0: off)");
  if (chunk_size < 0) throw py::value_error("chunk_size must be >= 0 (0: off)");
  if (!(softcap >= 0.0f) || std::isinf(softcap)) {
    throw py::value_error("softcap must be >= 0 (0: off)");
  }
  AttentionOptions options;
  options.scale = scale;
  options.window = window;
  options.softcap = softcap;
  options.chunk_size = chunk_size;
  return options;
}

BorrowedSinks::BorrowedSinks(const Arena& arena, const py::object& sinks) {
  if (sinks.is_none()) return;
  const BorrowedTensor& tensor = tensor_.emplace(sinks.ptr(), "sinks");
  check_place(arena, tensor, "sinks");
  const DataType dtype = float_type(tensor, "sinks");
  // None at all would look as if there were none: a tensor without elements has no address.
  if (tensor.dimensions != 1 || tensor.shape[0] < 1 ||
      (tensor.strides[0] != 1 && tensor.shape[0] > 1)) {
    throw py::value_error("sinks must be contiguous, of one dimension: a score for each head");
  }
  view = {tensor.data, dtype, tensor.shape[0]};
}

}  // namespace glimprouter::bindings
