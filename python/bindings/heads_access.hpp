// Keys, values and queries as views: shapes and places of the tensors that operations on pages
// take.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "glimprouter/types/arena.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "tensor_access.hpp"

namespace glimprouter::bindings {

// Which axes of a four-dimensional tensor hold heads and tokens (the batch axis has one entry).
enum class Axes : std::uint8_t { kHeadsFirst, kTokensFirst };

// arena: of the pages. All throw pybind11::value_error.
void check_place(const Arena& arena, const BorrowedTensor& tensor, const std::string& name);

// [T, H, D]; or [1, H, T, D] / [1, T, H, D], which is what attention functions of transformers take
// and return.
HeadsView heads_view(const Arena& arena, const BorrowedTensor& tensor, const char* what, Axes axes,
                     bool written);

// Keys or values of one layer; None: there are none (HeadsView::absent). Borrowed while it lives.
class BorrowedHeads {
 public:
  BorrowedHeads(const Arena& arena, const pybind11::object& heads, const char* what,
                bool written = false);

  // The stream that the tensor's framework works on now; null for no tensor.
  DeviceStream stream() const;

  HeadsView view{};

 private:
  PyObject* object_;
  std::optional<BorrowedTensor> tensor_;
};

AttentionOptions attention_options(float scale, std::int32_t window, float softcap,
                                   std::int32_t chunk_size);

// Attention sinks, [heads], on the arena's device; None: there are none. Borrowed while it lives.
class BorrowedSinks {
 public:
  BorrowedSinks(const Arena& arena, const pybind11::object& sinks);

  RowView view{nullptr, DataType::kFloat32, 0};

 private:
  std::optional<BorrowedTensor> tensor_;
};

}  // namespace glimprouter::bindings
