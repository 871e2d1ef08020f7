// Scratch memory of launches: it grows when it must, and is never taken while a graph is captured.
#pragma once

#include <cstddef>

#include "device/device_backend.hpp"

namespace glimprouter {

// Throws std::runtime_error that says `why` while a graph is captured on the stream: what a graph
// holds is replayed as it is, so it can neither take memory nor read the caller's once more.
void refuse_capture(const Device& device, DeviceStream stream, const char* why);

class StreamScratch {
 public:
  // So many bytes or more. Where it has to grow it holds zeros then, and what was launched with the
  // old memory is over; a graph that was captured with it is void. Throws refuse_capture(why) where
  // it would have to, std::runtime_error when the device has not as much; nothing has changed then.
  void reserve(const Device& device, std::size_t bytes, DeviceStream stream, const char* why);

  template <typename Value>
  Value* as() const {
    return memory_.as<Value>();
  }

 private:
  DeviceMemory memory_;
};

}  // namespace glimprouter
