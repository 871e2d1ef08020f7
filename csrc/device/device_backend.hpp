// What one kind of device does for the core: memory, copies, launches. Filled by csrc/cuda, and by
// the emulator in the tests; nothing here needs a device's headers or libraries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "device/device_kv.hpp"
#include "device/device_layers.hpp"
#include "device/device_rows.hpp"
#include "glimprouter/types/device_stream.hpp"

namespace glimprouter {

// One launch each, enqueued on the stream.
template <typename Arguments>
using DeviceOperation = void (*)(int device, const Arguments& arguments, DeviceStream stream);

struct RowOperations {
  DeviceOperation<EvaluateArguments> evaluate;
  DeviceOperation<StepArguments> step;
};

struct PageOperations {
  DeviceOperation<AppendArguments> append;
  DeviceOperation<GatherArguments> gather;
  DeviceOperation<CastCopyArguments> cast_copy;
  DeviceOperation<PageCopyArguments> copy_pages;
  DeviceOperation<AttentionArguments> attend;
};

struct LayerOperations {
  DeviceOperation<NormArguments> norm;
  DeviceOperation<RotaryArguments> rotate;
  DeviceOperation<ActivationArguments> activate;
  DeviceOperation<ProductArguments> multiply;
};

// Functions throw std::runtime_error with the device's own message and what to do, and
// std::bad_alloc-like exhaustion as std::runtime_error too, before anything has changed. Once a
// device is lost, all that use it throw DeviceLost, but those that release its memory.
struct DeviceBackend {
  std::string_view name;  // "cuda": the device type in "cuda:0"
  int dlpack_type;        // of tensors that live there
  // Number of devices; 0 without one, or without a driver that serves this build, which *why says.
  int (*device_count)(std::string* why);

  void* (*allocate)(int device, std::size_t bytes);
  void (*release)(int device, void* memory);  // nothing in flight uses it
  // Host memory that kernels may address as it is.
  void* (*allocate_pinned)(std::size_t bytes);
  void (*release_pinned)(void* memory);

  // In the order of the stream. Between host and device only pinned host memory is copied without
  // waiting.
  void (*copy)(int device, void* target, const void* source, std::size_t bytes,
               DeviceStream stream);
  void (*clear)(int device, void* memory, std::size_t bytes, DeviceStream stream);
  void (*wait)(int device, DeviceStream stream);
  void (*wait_all)(int device);                        // for every stream
  bool (*capturing)(int device, DeviceStream stream);  // into a graph
  // What is enqueued on `later` from now on comes after what is on `earlier` now. Nothing when
  // `later` is being captured: what a graph holds is ordered by who replays it.
  void (*order)(int device, DeviceStream earlier, DeviceStream later);

  const RowOperations* rows;
  const PageOperations* pages;
  const LayerOperations* layers;
};

// Every kind of device in this build.
std::span<const DeviceBackend* const> device_backends();
// For the emulator. Before the first use of device_backends().
void add_device_backend(const DeviceBackend& backend);

// A device by its name, such as "cuda:1" or "cuda" for the first.
struct Device {
  const DeviceBackend* backend;
  int index;

  std::string name() const;
  // Whether a tensor is in its memory, by DLPack's type and number. There the host has one number,
  // however many devices work on its memory.
  bool holds(std::int32_t dlpack_type, std::int32_t dlpack_id) const {
    constexpr std::int32_t kHost = 1;
    return dlpack_type == backend->dlpack_type && (dlpack_type == kHost || dlpack_id == index);
  }
};
// Throws std::invalid_argument for a name that no backend has, std::runtime_error when there is no
// such device.
Device find_device(std::string_view name);

// Owned device memory.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const Device& device, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  template <typename Value>
  Value* as() const {
    return static_cast<Value*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Device device_{};
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

// Owned host memory that a device copies from and to while the host goes on.
class PinnedMemory {
 public:
  PinnedMemory(const Device& device, std::size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(memory_); }

 private:
  Device device_;
  void* memory_;
};

}  // namespace glimprouter
