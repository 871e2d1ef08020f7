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
#include <span>
#include <vector>

#include "device/device_backend.hpp"
#include "glimprouter/row_view.hpp"

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

class BorrowedTensor {
 public:
  // Throws pybind11::type_error when `object` is no tensor, pybind11::value_error for more than
  // kMaxDimensions dimensions. `what` names the argument in messages.
  BorrowedTensor(PyObject* object, const char* what);
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;

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
  bool from_exchange_api(PyObject* object);
  bool from_buffer(PyObject* object);
  bool from_capsule(PyObject* object);
  void assign(const void* dl_tensor);

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

// The element type of a tensor that holds one of the three. Throws pybind11::type_error.
DataType float_type(const BorrowedTensor& tensor, const char* what);

// Checks [B, V] (or [V] when allow_vector), fp32 / bf16 / fp16, inner stride 1, on the device
// (none: the CPU). Throws pybind11::type_error or pybind11::value_error that say what was wrong and
// what to do.
LogitsView logits_view(const BorrowedTensor& tensor, bool allow_vector,
                       const std::optional<Device>& device = std::nullopt);

// The device that a tensor lives on; none: the CPU. Throws pybind11::value_error for one that this
// build does not serve.
std::optional<Device> device_of(const BorrowedTensor& tensor, const char* what);

// Whether the tensor lives on the device.
bool lives_on(const BorrowedTensor& tensor, const Device& device);

// The stream that the tensor's framework works on now; null is the default stream.
DeviceStream current_stream(PyObject* tensor, const BorrowedTensor& borrowed);

// Integers of one call (row numbers, token ids) as 32 bits, read from a 1-D int32 or int64 tensor,
// or a list, tuple or range of ints. Allocates only for more than kInline of them.
class IndexList {
 public:
  // Throws pybind11::type_error or pybind11::value_error. `what` names the argument in messages.
  IndexList(PyObject* object, const char* what);
  IndexList(const IndexList&) = delete;
  IndexList& operator=(const IndexList&) = delete;

  std::span<const std::int32_t> span() const { return {data_, static_cast<std::size_t>(count_)}; }

 private:
  static constexpr std::int64_t kInline = 256;

  std::int32_t* reserve(std::int64_t count);
  std::int32_t narrow(std::int64_t value) const;
  void read_sequence(PyObject* object);
  void read_tensor(PyObject* object);

  const char* what_;
  std::int64_t count_ = 0;
  const std::int32_t* data_ = nullptr;
  std::int32_t inline_[kInline];
  std::vector<std::int32_t> large_;
};

}  // namespace glimprouter::bindings
