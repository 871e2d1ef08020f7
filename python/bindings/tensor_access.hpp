// Reads tensors of any framework without linking to one: a borrowed view of pointer, element type,
// shape and strides, valid while the object lives and the GIL is held.
//
// Order of the ways in: the type's `__dlpack_c_exchange_api__` (torch >= 2.10; no allocation), the
// buffer protocol (NumPy; ml_dtypes.bfloat16, which has no buffer format, as a view of its bits),
// and
// `__dlpack__()` capsules.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "device/device_backend.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter::dlpack {
struct ExchangeApi;
}

namespace glimprouter::bindings {

inline constexpr int kMaxDimensions = 4;

enum class ElementKind : std::uint8_t {
  kFloat,
  kBFloat,
  kSigned,
  kUnsigned,
  kComplex,
  kBool,
  kOther
};

// DLPack's device types that messages name.
inline constexpr int kCpuDevice = 1;

// Whether a torch tensor's storage is measured. It takes a quarter of a microsecond; tensors that a
// model has just computed, several a layer, have not been resized.
enum class StorageCheck { kDone, kSkipped };

class BorrowedTensor {
 public:
  // Throws pybind11::type_error when `object` is no tensor, or one whose type gives its memory
  // another meaning (tensor_type.hpp); pybind11::value_error for more than kMaxDimensions
  // dimensions, and for a tensor whose memory is not its values: there is none, there is less than
  // its shape says, or they are to be negated. `what` names the argument in messages.
  BorrowedTensor(PyObject* object, const char* what, StorageCheck storage = StorageCheck::kDone);
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;

  std::int64_t elements() const;

  void* data = nullptr;  // the first element
  ElementKind kind = ElementKind::kOther;
  int bits = 0;
  int dimensions = 0;
  int device_type = kCpuDevice;
  int device_id = 0;
  bool read_only = false;
  std::int64_t shape[kMaxDimensions] = {};
  std::int64_t strides[kMaxDimensions] = {};  // in elements

 private:
  bool from_exchange_api(PyObject* object, const dlpack::ExchangeApi* api);
  bool from_buffer(PyObject* object);
  bool from_capsule(PyObject* object);
  void assign(const void* dl_tensor);
  [[noreturn]] void refuse(const pybind11::error_already_set& error) const;

  struct Buffer {  // released also when the constructor throws
    Buffer() = default;
    ~Buffer() {
      if (view.obj != nullptr) PyBuffer_Release(&view);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Py_buffer view{};
  };

  Buffer buffer_;
  pybind11::object capsule_;
  const char* what_;
};

// The element type in words, for messages.
std::string element_name(const BorrowedTensor& tensor);

// The element type of a tensor that holds one of the three. Throws pybind11::type_error.
DataType float_type(const BorrowedTensor& tensor, const char* what);

// Checks [B, V] (or [V] when allow_vector), fp32 / bf16 / fp16, inner stride 1, on the device
// (none: the CPU). Throws pybind11::type_error or pybind11::value_error that say what was wrong and
// what to do.
LogitsView logits_view(const BorrowedTensor& tensor, bool allow_vector,
                       const std::optional<Device>& device = std::nullopt);
// The same for logits that are where they are wanted. aligned: they must be, to their element.
LogitsView logits_view(const BorrowedTensor& tensor, bool allow_vector, bool aligned);
// That they are not, as pybind11::value_error.
[[noreturn]] void throw_elsewhere(const BorrowedTensor& tensor, const std::string& wanted);

// The device that a tensor lives on; none: the CPU. Throws pybind11::value_error for one that this
// build does not serve.
std::optional<Device> device_of(const BorrowedTensor& tensor, const char* what);

// Whether the tensor lives on the device.
bool lives_on(const BorrowedTensor& tensor, const Device& device);

// The stream that the tensor's framework works on now; null is the default stream.
DeviceStream current_stream(PyObject* tensor, const BorrowedTensor& borrowed);

}  // namespace glimprouter::bindings
