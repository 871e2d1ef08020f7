// TensorPlaces and References: whether tensors are where they were, in the same shapes, and whether
// dictionaries hold what they held. Asked before each pass about some hundred things; in Python
// each of them takes a tenth of a microsecond.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

struct Place {
  explicit Place(const py::handle& object) {
    const BorrowedTensor tensor(object.ptr(), "tensor", StorageCheck::kSkipped);
    data = tensor.data;
    kind = tensor.kind;
    bits = tensor.bits;
    dimensions = tensor.dimensions;
    std::copy_n(tensor.shape, dimensions, shape);
    std::copy_n(tensor.strides, dimensions, strides);
  }
  bool operator==(const Place&) const = default;

  void* data = nullptr;
  ElementKind kind = ElementKind::kOther;
  int bits = 0;
  int dimensions = 0;
  std::int64_t shape[kMaxDimensions] = {};
  std::int64_t strides[kMaxDimensions] = {};
};

class TensorPlaces {
 public:
  explicit TensorPlaces(const py::list& tensors) {
    for (const py::handle& tensor : tensors) {
      places_.emplace_back(py::reinterpret_borrow<py::object>(tensor), Place(tensor));
    }
  }

  // A module may have given a tensor other memory, another type or another view: the object is the
  // same then.
  bool unchanged() const {
    return std::all_of(places_.begin(), places_.end(), [](const auto& entry) {
      try {
        return Place(entry.first) == entry.second;
      } catch (const py::builtin_exception&) {  // it is no tensor of memory any more
        return false;
      } catch (const py::error_already_set&) {
        return false;
      }
    });
  }

 private:
  std::vector<std::pair<py::object, Place>> places_;
};

// What is there under a name; null for nothing.
PyObject* held_in(const py::dict& holder, const py::str& name) {
  PyObject* const value = PyDict_GetItemWithError(holder.ptr(), name.ptr());
  if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

class References {
 public:
  // places, empty: of (dictionary, name).
  References(const py::list& places, const py::list& empty) {
    for (const py::handle& place : places) {
      auto [holder, name] = py::cast<std::pair<py::dict, py::str>>(place);
      const auto value = py::reinterpret_borrow<py::object>(held_in(holder, name));
      held_.push_back({std::move(holder), std::move(name), value});
    }
    for (const py::handle& place : empty) {
      auto [holder, name] = py::cast<std::pair<py::dict, py::str>>(place);
      empty_.push_back({std::move(holder), std::move(name), {}});
    }
  }

  // Whether the same objects are at the places, and nothing, or nothing but empty collections,
  // where it was to be empty.
  bool unchanged() const {
    return std::all_of(held_.begin(), held_.end(),
                       [](const Entry& entry) {
                         return held_in(entry.holder, entry.name) == entry.value.ptr();
                       }) &&
           std::all_of(empty_.begin(), empty_.end(), [](const Entry& entry) {
             PyObject* const value = held_in(entry.holder, entry.name);
             const int empty = value == nullptr ? 1 : PyObject_Not(value);
             if (empty < 0) throw py::error_already_set();
             return empty == 1;
           });
  }

 private:
  struct Entry {
    py::dict holder;
    py::str name;
    py::object value;
  };

  std::vector<Entry> held_;
  std::vector<Entry> empty_;
};

}  // namespace

void bind_unchanged(py::module_& module) {
  py::class_<References>(module, "References")
      .def(py::init<const py::list&, const py::list&>(), py::arg("places"), py::arg("empty"))
      .def("unchanged", &References::unchanged);
  py::class_<TensorPlaces>(module, "TensorPlaces")
      .def(py::init<const py::list&>(), py::arg("tensors"))
      .def("unchanged", &TensorPlaces::unchanged);
}

}  // namespace glimprouter::bindings
