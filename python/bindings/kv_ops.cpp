// append_kv, paged_attention, gather_kv.
#include "glimprouter/kv_ops.hpp"

#include <pybind11/pybind11.h>

#include <cmath>
#include <memory>
#include <string>

#include "glimprouter/device_arena.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

// Which axes of a four-dimensional tensor hold heads and tokens (the batch axis has one entry).
enum class Axes : std::uint8_t { kHeadsFirst, kTokensFirst };

void check_place(const PagePool& pool, const BorrowedTensor& tensor, const std::string& name) {
  const DeviceArena* const arena = pool.device_arena();
  if (arena != nullptr ? lives_on(tensor, arena->device()) : tensor.device_type == kCpuDevice) {
    return;
  }
  throw py::value_error(name + " must be on " +
                        (arena != nullptr ? arena->device().name() : "the CPU") +
                        ", where the pages are; move it there, or let the pool live where it is");
}

// Where the work on a device goes: the stream that the tensor's framework works on now.
DeviceStream stream_of(const PagePool& pool, const py::object& object,
                       const BorrowedTensor& tensor) {
  return pool.device_arena() != nullptr ? current_stream(object.ptr(), tensor) : nullptr;
}

// [T, H, D]; or [1, H, T, D] / [1, T, H, D], which is what attention functions of transformers take
// and return.
HeadsView heads_view(const PagePool& pool, const BorrowedTensor& tensor, const char* what,
                     Axes axes, bool written) {
  const std::string name(what);
  HeadsView view{};
  check_place(pool, tensor, name);
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
  view.head_size = static_cast<std::int32_t>(tensor.shape[dimensions - 1]);
  view.token_stride = tensor.strides[token_axis];
  view.head_stride = tensor.strides[head_axis];
  return view;
}

void append(PagePool& pool, std::int32_t layer, const RaggedBatch& batch, const py::object& keys,
            const py::object& values) {
  const BorrowedTensor k(keys.ptr(), "keys");
  const BorrowedTensor v(values.ptr(), "values");
  append_kv(pool, layer, batch, heads_view(pool, k, "keys", Axes::kHeadsFirst, false),
            heads_view(pool, v, "values", Axes::kHeadsFirst, false), stream_of(pool, keys, k));
}

void attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
               const py::object& queries, const py::object& out, float scale, std::int32_t window,
               float softcap) {
  if (!std::isfinite(scale)) throw py::value_error("scale must be finite");
  if (window < 0) throw py::value_error("window must be >= 0 (0: off)");
  if (!(softcap >= 0.0f) || std::isinf(softcap)) {
    throw py::value_error("softcap must be >= 0 (0: off)");
  }
  const BorrowedTensor q(queries.ptr(), "queries");
  const BorrowedTensor o(out.ptr(), "out");
  const HeadsView query = heads_view(pool, q, "queries", Axes::kHeadsFirst, false);
  const HeadsView target = heads_view(pool, o, "out", Axes::kTokensFirst, true);
  const DeviceStream stream = stream_of(pool, queries, q);
  const py::gil_scoped_release release;
  paged_attention(pool, layer, batch, {scale, window, softcap}, query, target, stream);
}

void gather(const PagePool& pool, std::int32_t model, std::int32_t layer, const py::object& pages,
            const py::object& keys, const py::object& values) {
  if (model < 0 || model >= pool.num_models()) throw py::value_error("no such model");
  const IndexList list(pages.ptr(), "pages");
  const BorrowedTensor k(keys.ptr(), "keys");
  const BorrowedTensor v(values.ptr(), "values");
  const HeadsView key = heads_view(pool, k, "keys", Axes::kHeadsFirst, true);
  const std::int64_t needed =
      (key.tokens + pool.layout(model).page_tokens - 1) / pool.layout(model).page_tokens;
  if (static_cast<std::int64_t>(list.span().size()) < needed) {
    throw py::value_error(std::to_string(key.tokens) + " tokens lie in " + std::to_string(needed) +
                          " pages, got " + std::to_string(list.span().size()));
  }
  gather_kv(pool, model, layer, list.span().data(), key,
            heads_view(pool, v, "values", Axes::kHeadsFirst, true), stream_of(pool, keys, k));
}

}  // namespace

void bind_kv_ops(py::module_& module) {
  // Positional only: they are called once a layer.
  module.def("append_kv", &append);
  module.def("paged_attention", &attention);
  module.def("gather_kv", &gather);
}

}  // namespace glimprouter::bindings
