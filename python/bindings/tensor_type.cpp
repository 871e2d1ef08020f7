#include "tensor_type.hpp"

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

constexpr std::size_t kMostTypes = 256;  // remembered; a program that makes more begins anew

const dlpack::ExchangeApi* exchange_api(py::handle type) {
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* header = static_cast<dlpack::ExchangeHeader*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header != nullptr && header->version.major != 1) header = header->previous;
  const auto* api = reinterpret_cast<const dlpack::ExchangeApi*>(header);
  return api != nullptr && api->borrow_from_object != nullptr ? api : nullptr;
}

std::string text(py::handle object, const char* attribute) {
  const py::object value = py::getattr(object, attribute, py::none());
  return py::isinstance<py::str>(value) ? value.cast<std::string>() : std::string();
}

// The class of this name and package among a type and its bases, or nothing.
py::object base_named(py::handle type, std::string_view name, std::string_view package) {
  for (const py::handle base : type.attr("__mro__")) {
    const std::string module = text(base, "__module__");
    const bool inside = module == package || module.starts_with(std::string(package) + ".");
    if (inside && text(base, "__name__") == name) return py::reinterpret_borrow<py::object>(base);
  }
  return {};
}

// Whether a type's method is another one than its base's.
bool overrides(py::handle type, py::handle base, const char* method) {
  const py::object own = py::getattr(type, method, py::none());
  const py::object inherited = py::getattr(base, method, py::none());
  const auto plain = [](const py::object& bound) {
    return py::object(py::getattr(bound, "__func__", bound));
  };
  return !plain(own).is(plain(inherited));
}

bool torch_function_is_off(py::handle type) {
  const py::object own = py::getattr(type, "__torch_function__", py::none());
  return text(own, "__name__") == "_disabled_torch_function_impl";
}

std::string described(py::handle type, const std::string& why) {
  return " is a " + text(type, "__module__") + "." + text(type, "__qualname__") + ", " + why;
}

std::string torch_refusal(py::handle type, py::handle base) {
  const bool functions =
      overrides(type, base, "__torch_function__") && !torch_function_is_off(type);
  if (!overrides(type, base, "__torch_dispatch__") && !functions) return {};
  return described(
      type,
      "a tensor subclass with operations of its own, so that its memory need not hold "
      "its values; pass a plain torch.Tensor (for example its local or dequantized one;"
      " inside torch.compile and torch.export call the operations of "
      "glimprouter.torch)");
}

std::string numpy_refusal(py::handle type, py::handle base) {
  if (base_named(type, "MaskedArray", "numpy")) {
    return described(type,
                     "whose mask would be lost; pass .filled(...) with the value that masked "
                     "elements shall have (-inf for logits)");
  }
  if (!overrides(type, base, "__array_ufunc__") && !overrides(type, base, "__array_function__")) {
    return {};
  }
  return described(type,
                   "an array with operations of its own, so that its memory need not hold its "
                   "values; pass a plain numpy.ndarray, for example numpy.asarray(...)");
}

TensorType examine(py::handle type) {
  TensorType found;
  found.api = exchange_api(type);
  if (const py::object base = base_named(type, "Tensor", "torch")) {
    found.torch = true;
    found.refusal = torch_refusal(type, base);
  } else if (const py::object array = base_named(type, "ndarray", "numpy")) {
    found.refusal = numpy_refusal(type, array);
  }
  return found;
}

// A method of torch.Tensor, or of its storages, called without looking it up: a third of the time
// of a call by name, which counts where a step takes a microsecond. The methods are kept until the
// process ends.
py::object call(PyObject* method, PyObject* object) {
  PyObject* const result = PyObject_Vectorcall(method, &object, 1, nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

PyObject* method_of(py::handle type, const char* name) {
  PyObject* const method = PyObject_GetAttrString(type.ptr(), name);
  if (method == nullptr) throw py::error_already_set();
  return method;
}

py::object torch_tensor(PyObject* object) {
  return base_named(py::handle(reinterpret_cast<PyObject*>(Py_TYPE(object))), "Tensor", "torch");
}

}  // namespace

const TensorType& tensor_type(PyTypeObject* type) {
  // Types are kept alive, so that an address cannot come to mean another one. Never destroyed: the
  // interpreter may be gone by then.
  static auto* const known = new std::unordered_map<PyTypeObject*, TensorType>();
  static PyTypeObject* last = nullptr;
  static const TensorType* last_found = nullptr;
  if (type == last) return *last_found;
  auto place = known->find(type);
  if (place == known->end()) {
    TensorType found = examine(py::handle(reinterpret_cast<PyObject*>(type)));
    if (known->size() == kMostTypes) {
      last = nullptr;
      for (const auto& [old, forgotten] : *known) Py_DECREF(old);
      known->clear();
    }
    place = known->emplace(type, std::move(found)).first;
    Py_INCREF(type);
  }
  last = type;
  last_found = &place->second;
  return *last_found;
}

void check_sign(PyObject* object, const char* what) {
  static PyObject* const is_neg = method_of(torch_tensor(object), "is_neg");
  if (call(is_neg, object).ptr() == Py_True) {
    throw py::value_error(std::string(what) +
                          " has the negative bit: its values are the negation of what is in its "
                          "memory; call .resolve_neg() first");
  }
}

void check_storage(PyObject* object, const BorrowedTensor& tensor, const char* what) {
  static PyObject* const untyped_storage = method_of(torch_tensor(object), "untyped_storage");
  static PyObject* const storage_offset = method_of(torch_tensor(object), "storage_offset");
  if (tensor.elements() == 0) return;
  const py::object storage = call(untyped_storage, object);
  static PyObject* const nbytes =
      method_of(py::handle(reinterpret_cast<PyObject*>(Py_TYPE(storage.ptr()))), "nbytes");
  std::int64_t last = PyLong_AsLongLong(call(storage_offset, object).ptr());
  for (int i = 0; i < tensor.dimensions; ++i) last += (tensor.shape[i] - 1) * tensor.strides[i];
  const std::int64_t held = PyLong_AsLongLong(call(nbytes, storage.ptr()).ptr());
  if ((last + 1) * (tensor.bits / 8) > held) {
    throw py::value_error(std::string(what) + " reaches beyond its storage, which was resized to " +
                          std::to_string(held) + " bytes; pass a tensor that owns its memory");
  }
}

}  // namespace glimprouter::bindings
