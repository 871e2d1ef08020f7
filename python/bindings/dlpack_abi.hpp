// The parts of the DLPack 1.x binary interface that are read here (https://dmlc.github.io/dlpack).
#pragma once

#include <cstdint>

namespace glimprouter::dlpack {

struct Device {
  std::int32_t type;  // 1: CPU, 2: CUDA, ...
  std::int32_t id;
};

struct ElementType {
  std::uint8_t code;  // 0: signed, 1: unsigned, 2: float, 4: bfloat
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  ElementType element;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null for a compact row-major tensor
  std::uint64_t byte_offset;
};

struct ManagedTensor {  // in a capsule named "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct ManagedTensorVersioned {  // in a capsule named "dltensor_versioned"
  Version version;
  void* context;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

inline constexpr std::uint64_t kReadOnlyFlag = 1;

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;  // an older table of the same framework
};

// In a capsule named "dlpack_exchange_api" on the tensor type. Only the fields up to the borrowing
// function are used.
struct ExchangeApi {
  ExchangeHeader header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*borrow_from_object)(void* object, Tensor* out);  // may be null; 0 on success
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

}  // namespace glimprouter::dlpack
