#include "device/stream_scratch.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace glimprouter {

void refuse_capture(const Device& device, DeviceStream stream, const char* why) {
  if (device.backend->capturing(device.index, stream)) throw std::runtime_error(why);
}

void StreamScratch::reserve(const Device& device, std::size_t bytes, DeviceStream stream,
                            const char* why) {
  if (memory_.bytes() >= bytes) return;
  refuse_capture(device, stream, why);
  // Twice as much as before: batches that grow by a row at a time do not wait with each of them.
  DeviceMemory larger(device, std::max(bytes, 2 * memory_.bytes()));
  device.backend->clear(device.index, larger.as<void>(), larger.bytes(), stream);
  device.backend->wait(device.index, stream);  // the old memory is in use until then
  memory_ = std::move(larger);
}

}  // namespace glimprouter
