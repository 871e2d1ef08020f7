#include "index_list.hpp"

#include <cstring>
#include <limits>
#include <string>

#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

std::string type_name(PyObject* object) { return Py_TYPE(object)->tp_name; }

}  // namespace

IndexList::IndexList(PyObject* object, const char* what) : what_(what) {
  if (PyLong_Check(object) || PyUnicode_Check(object)) {
    throw py::type_error(std::string(what) +
                         " must be a list or a 1-D int32 or int64 tensor, got " +
                         type_name(object));
  }
  if (PyList_Check(object) || PyTuple_Check(object) || PyRange_Check(object)) {
    read_sequence(object);
  } else {
    read_tensor(object);
  }
}

std::int32_t* IndexList::reserve(std::int64_t count) {
  count_ = count;
  if (count > kInline) large_.resize(static_cast<std::size_t>(count));
  std::int32_t* const target = count > kInline ? large_.data() : inline_;
  data_ = target;
  return target;
}

std::int32_t IndexList::narrow(std::int64_t value) const {
  if (value < std::numeric_limits<std::int32_t>::min() ||
      value > std::numeric_limits<std::int32_t>::max()) {
    throw py::value_error(std::string(what_) + " holds " + std::to_string(value) +
                          ", which does not fit 32 bits");
  }
  return static_cast<std::int32_t>(value);
}

void IndexList::read_sequence(PyObject* object) {
  const py::sequence values = py::reinterpret_borrow<py::sequence>(object);
  std::int32_t* const target = reserve(static_cast<std::int64_t>(values.size()));
  for (std::int64_t i = 0; i < count_; ++i) {
    const py::object item = values[static_cast<std::size_t>(i)];
    if (!PyIndex_Check(item.ptr()) || PyBool_Check(item.ptr())) {
      throw py::type_error(std::string(what_) + " must hold integers, got " +
                           type_name(item.ptr()));
    }
    const py::object integer = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
    if (!integer) throw py::error_already_set();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
    target[i] = narrow(overflow != 0 ? std::numeric_limits<std::int64_t>::max() : value);
  }
}

void IndexList::read_tensor(PyObject* object) {
  const BorrowedTensor tensor(object, what_);
  if (tensor.device_type != kCpuDevice) {
    throw py::value_error(std::string(what_) + " must be on the CPU");
  }
  if (tensor.dimensions != 1 || tensor.kind != ElementKind::kSigned ||
      (tensor.bits != 32 && tensor.bits != 64)) {
    throw py::type_error(std::string(what_) +
                         " must be a 1-D int32 or int64 tensor, or a list, got " +
                         std::to_string(tensor.dimensions) + "-D " + element_name(tensor));
  }
  std::int32_t* const target = reserve(tensor.shape[0]);
  const char* source = static_cast<const char*>(tensor.data);
  for (std::int64_t i = 0; i < count_; ++i, source += tensor.strides[0] * (tensor.bits / 8)) {
    std::int64_t value = 0;
    if (tensor.bits == 64) {
      std::memcpy(&value, source, 8);
    } else {
      std::int32_t narrow_value = 0;
      std::memcpy(&narrow_value, source, 4);
      value = narrow_value;
    }
    target[i] = narrow(value);
  }
}

}  // namespace glimprouter::bindings
