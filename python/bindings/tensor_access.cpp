#include "tensor_access.hpp"

#include <cstring>
#include <string>
#include <utility>

#include "arithmetic/fixed_mass.hpp"
#include "dlpack_abi.hpp"
#include "tensor_type.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

constexpr const char* kNoMemory =
    " has elements, but no memory for them: it is a fake, functional or zero tensor, or its "
    "storage "
    "was freed; pass a tensor that holds values (inside torch.compile and torch.export call the "
    "operations of glimprouter.torch)";

std::string type_name(PyObject* object) { return Py_TYPE(object)->tp_name; }

bool is_numpy_bfloat16(PyObject* object) {
  if (!py::hasattr(object, "dtype") || !py::hasattr(object, "__array_interface__")) return false;
  const py::object dtype = py::handle(object).attr("dtype");
  return py::hasattr(dtype, "name") &&
         py::str(dtype.attr("name")).cast<std::string>() == "bfloat16";
}

ElementKind kind_of_format(const char* format) {
  const char* code = format;
  if (*code == '@' || *code == '=' || *code == '<') ++code;
  if (*code == 'Z') return ElementKind::kComplex;
  if (std::strlen(code) != 1) return ElementKind::kOther;
  if (*code == '?') return ElementKind::kBool;
  if (std::strchr("efd", *code) != nullptr) return ElementKind::kFloat;
  if (std::strchr("bhilqn", *code) != nullptr) return ElementKind::kSigned;
  if (std::strchr("BHILQN", *code) != nullptr) return ElementKind::kUnsigned;
  return ElementKind::kOther;
}

}  // namespace

std::string element_name(const BorrowedTensor& tensor) {
  const char* const names[] = {"float", "bfloat", "int", "uint", "complex"};
  if (tensor.kind == ElementKind::kBool) return "bool";
  if (tensor.kind == ElementKind::kOther) return "another type";
  return names[static_cast<int>(tensor.kind)] + std::to_string(tensor.bits);
}

BorrowedTensor::BorrowedTensor(PyObject* object, const char* what, StorageCheck storage)
    : what_(what) {
  const TensorType& type = tensor_type(Py_TYPE(object));
  if (!type.refusal.empty()) throw py::type_error(std::string(what) + type.refusal);
  const bool torch = type.torch;
  if (from_exchange_api(object, type.api) || from_buffer(object) || from_capsule(object)) {
    if (data == nullptr && elements() > 0) {
      throw py::value_error(std::string(what) + kNoMemory);
    }
    if (torch) {
      check_sign(object, what);
      if (storage == StorageCheck::kDone) check_storage(object, *this, what);
    }
    return;
  }
  throw py::type_error(std::string(what) +
                       " must be a tensor (torch, NumPy, JAX, or anything with "
                       "__dlpack__ or a buffer), got " +
                       type_name(object));
}

void BorrowedTensor::assign(const void* dl_tensor) {
  const auto& source = *static_cast<const dlpack::Tensor*>(dl_tensor);
  if (source.dimensions > kMaxDimensions) {
    throw py::value_error(std::string(what_) + " has " + std::to_string(source.dimensions) +
                          " dimensions; at most 4 are read");
  }
  data = static_cast<char*>(source.data) + source.byte_offset;
  bits = source.element.bits;
  switch (source.element.lanes == 1 ? source.element.code : 255) {
    case 0:
      kind = ElementKind::kSigned;
      break;
    case 1:
      kind = ElementKind::kUnsigned;
      break;
    case 2:
      kind = ElementKind::kFloat;
      break;
    case 4:
      kind = ElementKind::kBFloat;
      break;
    case 5:
      kind = ElementKind::kComplex;
      break;
    case 6:
      kind = ElementKind::kBool;
      break;
    default:
      kind = ElementKind::kOther;
  }
  device_type = source.device.type;
  device_id = source.device.id;
  dimensions = source.dimensions;
  std::int64_t compact = 1;
  for (int i = dimensions - 1; i >= 0; --i) {
    shape[i] = source.shape[i];
    strides[i] = source.strides != nullptr ? source.strides[i] : compact;
    compact *= shape[i];
  }
}

bool BorrowedTensor::from_exchange_api(PyObject* object, const dlpack::ExchangeApi* api) {
  if (api == nullptr) return false;
  dlpack::Tensor tensor{};
  if (api->borrow_from_object(object, &tensor) != 0) {
    refuse(py::error_already_set());
  }
  assign(&tensor);
  return true;
}

// Frameworks append pages of stack trace: one line of it is kept.
void BorrowedTensor::refuse(const py::error_already_set& error) const {
  const std::string message = py::str(error.value()).cast<std::string>();
  throw py::value_error(std::string(what_) + " has no memory that can be read: " +
                        message.substr(0, message.find('\n')));
}

std::int64_t BorrowedTensor::elements() const {
  std::int64_t count = 1;
  for (int i = 0; i < dimensions; ++i) count *= shape[i];
  return count;
}

bool BorrowedTensor::from_buffer(PyObject* object) {
  if (!PyObject_CheckBuffer(object)) return false;
  bool is_bfloat16 = false;
  if (PyObject_GetBuffer(object, &buffer_.view, PyBUF_RECORDS_RO) != 0) {
    PyErr_Clear();
    is_bfloat16 = is_numpy_bfloat16(object);
    if (!is_bfloat16) return false;
    const py::object words = py::handle(object).attr("view")("uint16");
    if (PyObject_GetBuffer(words.ptr(), &buffer_.view, PyBUF_RECORDS_RO) != 0) {
      throw py::error_already_set();
    }
  }
  const Py_buffer& view = buffer_.view;
  if (view.itemsize < 1) {
    throw py::value_error(std::string(what_) + " has elements of no size");
  }
  if (view.ndim > kMaxDimensions) {
    throw py::value_error(std::string(what_) + " has " + std::to_string(view.ndim) +
                          " dimensions; at most 4 are read");
  }
  data = view.buf;
  kind = is_bfloat16 ? ElementKind::kBFloat
                     : kind_of_format(view.format != nullptr ? view.format : "B");
  bits = static_cast<int>(view.itemsize * 8);
  dimensions = view.ndim;
  read_only = view.readonly != 0;
  for (int i = 0; i < dimensions; ++i) {
    shape[i] = view.shape[i];
    strides[i] = view.strides[i] / view.itemsize;
    if (view.strides[i] % view.itemsize != 0 && shape[i] > 1) {
      throw py::value_error(std::string(what_) + " has a stride of " +
                            std::to_string(view.strides[i]) +
                            " bytes, which is no multiple of its element size; copy it first");
    }
  }
  return true;
}

bool BorrowedTensor::from_capsule(PyObject* object) {
  if (!py::hasattr(object, "__dlpack__")) return false;
  const py::object method = py::handle(object).attr("__dlpack__");
  py::object capsule;
  try {
    capsule = method(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) refuse(error);
    try {
      capsule = method();  // a producer from before DLPack 1.0
    } catch (py::error_already_set& again) {
      refuse(again);
    }
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    assign(&managed->tensor);
    read_only = (managed->flags & dlpack::kReadOnlyFlag) != 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    assign(&static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))
                ->tensor);
  } else {
    return false;
  }
  capsule_ = std::move(capsule);  // not renamed: the producer's destructor frees the tensor
  return true;
}

DataType float_type(const BorrowedTensor& tensor, const char* what) {
  if (tensor.kind == ElementKind::kFloat && tensor.bits == 32) return DataType::kFloat32;
  if (tensor.kind == ElementKind::kFloat && tensor.bits == 16) return DataType::kFloat16;
  if (tensor.kind == ElementKind::kBFloat && tensor.bits == 16) return DataType::kBFloat16;
  throw py::type_error(std::string(what) + " must be float32, bfloat16 or float16, got " +
                       element_name(tensor) + "; convert them explicitly, for example to float32");
}

std::string device_name(const BorrowedTensor& tensor) {
  if (tensor.device_type == kCpuDevice) return "the CPU";
  for (const DeviceBackend* backend : device_backends()) {
    if (backend->dlpack_type == tensor.device_type) return Device{backend, tensor.device_id}.name();
  }
  return "device type " + std::to_string(tensor.device_type) + " (DLPack numbering)";
}

bool lives_on(const BorrowedTensor& tensor, const Device& device) {
  return device.holds(tensor.device_type, tensor.device_id);
}

std::optional<Device> device_of(const BorrowedTensor& tensor, const char* what) {
  if (tensor.device_type == kCpuDevice) return std::nullopt;
  for (const DeviceBackend* backend : device_backends()) {
    if (backend->dlpack_type == tensor.device_type) return Device{backend, tensor.device_id};
  }
  throw py::value_error(std::string(what) + " live on " + device_name(tensor) +
                        ", which this build does not serve; pass them from the CPU, or build "
                        "glimprouter where nvcc is found");
}

DeviceStream current_stream(PyObject* tensor, const BorrowedTensor& borrowed) {
  if (borrowed.device_type == kCpuDevice) return nullptr;
  const dlpack::ExchangeApi* api = tensor_type(Py_TYPE(tensor)).api;
  void* stream = nullptr;
  if (api == nullptr || api->current_work_stream == nullptr ||
      api->current_work_stream(borrowed.device_type, borrowed.device_id, &stream) != 0) {
    PyErr_Clear();
    throw py::type_error(
        "the stream of this tensor's framework cannot be read (no DLPack exchange interface); pass "
        "a torch tensor of torch >= 2.10");
  }
  return stream;
}

void throw_elsewhere(const BorrowedTensor& tensor, const std::string& wanted) {
  throw py::value_error("logits are on " + device_name(tensor) + ", but are wanted on " + wanted +
                        "; move them there, or let everything live where they are");
}

LogitsView logits_view(const BorrowedTensor& tensor, bool allow_vector,
                       const std::optional<Device>& device) {
  if (device ? !lives_on(tensor, *device) : tensor.device_type != kCpuDevice) {
    throw_elsewhere(tensor, device ? device->name() : "the CPU");
  }
  return logits_view(tensor, allow_vector, device.has_value());
}

LogitsView logits_view(const BorrowedTensor& tensor, bool allow_vector, bool aligned) {
  LogitsView view{};
  view.dtype = float_type(tensor, "logits");
  const bool vector = tensor.dimensions == 1 && allow_vector;
  if (tensor.dimensions != 2 && !vector) {
    throw py::value_error(
        "logits must have the shape [rows, vocabulary], got " + std::to_string(tensor.dimensions) +
        " dimensions" + (tensor.dimensions == 3 ? "; take the last position: logits[:, -1]" : ""));
  }
  const int inner = tensor.dimensions - 1;
  view.data = static_cast<const char*>(tensor.data);
  view.rows = vector ? 1 : tensor.shape[0];
  view.width = tensor.shape[inner];
  view.row_stride = vector ? 0 : tensor.strides[0];
  // A batch of no rows has no strides worth the name: torch gives some of them the stride 0.
  if (tensor.strides[inner] != 1 && view.width > 1 && view.rows > 0) {
    throw py::value_error("logits must be contiguous along the vocabulary (stride 1), got stride " +
                          std::to_string(tensor.strides[inner]) + "; call .contiguous() first");
  }
  const std::int64_t size = element_size(view.dtype);
  if (aligned && reinterpret_cast<std::uintptr_t>(view.data) % size != 0) {
    throw py::value_error("logits are not aligned to their element size; copy them first");
  }
  if (view.width < 1) throw py::value_error("logits have an empty vocabulary dimension");
  if (view.width > kMaxVocabulary) {
    throw py::value_error("logits are " + std::to_string(view.width) + " wide; at most " +
                          std::to_string(kMaxVocabulary) + " are supported");
  }
  return view;
}

}  // namespace glimprouter::bindings
