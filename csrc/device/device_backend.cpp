#include "device/device_backend.hpp"

#include <charconv>
#include <stdexcept>
#include <utility>
#include <vector>

namespace glimprouter {

#if defined(GLIMPROUTER_HAS_CUDA)
extern const DeviceBackend kCudaBackend;
#endif

namespace {

std::vector<const DeviceBackend*>& registry() {
  static std::vector<const DeviceBackend*> backends = {
#if defined(GLIMPROUTER_HAS_CUDA)
      &kCudaBackend,
#endif
  };
  return backends;
}

}  // namespace

std::span<const DeviceBackend* const> device_backends() { return registry(); }

void add_device_backend(const DeviceBackend& backend) { registry().push_back(&backend); }

std::string Device::name() const {
  return std::string(backend->name) + ":" + std::to_string(index);
}

Device find_device(std::string_view name) {
  const std::size_t colon = name.find(':');
  const std::string_view kind = name.substr(0, colon);
  int index = 0;
  if (colon != std::string_view::npos) {
    const std::string_view digits = name.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error != std::errc() || end != digits.data() + digits.size() || index < 0) {
      throw std::invalid_argument("device \"" + std::string(name) +
                                  "\" is no device; write for example \"cuda:0\"");
    }
  }
  std::string known = "cpu";
  for (const DeviceBackend* backend : device_backends()) {
    known += ", " + std::string(backend->name);
    if (backend->name != kind) continue;
    std::string why;
    const int count = backend->device_count(&why);
    if (index < count) return {backend, index};
    throw std::runtime_error("device \"" + std::string(name) + "\" does not exist: there are " +
                             std::to_string(count) + (why.empty() ? "" : " (" + why + ")"));
  }
  throw std::invalid_argument("device \"" + std::string(name) + "\" is unknown; this build has " +
                              known);
}

DeviceMemory::DeviceMemory(const Device& device, std::size_t bytes)
    : device_(device),
      memory_(bytes > 0 ? device.backend->allocate(device.index, bytes) : nullptr),
      bytes_(bytes) {}

DeviceMemory::~DeviceMemory() {
  if (memory_ != nullptr) device_.backend->release(device_.index, memory_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedMemory::PinnedMemory(const Device& device, std::size_t bytes)
    : device_(device), memory_(device.backend->allocate_pinned(bytes > 0 ? bytes : 1)) {}

PinnedMemory::~PinnedMemory() { device_.backend->release_pinned(memory_); }

}  // namespace glimprouter
