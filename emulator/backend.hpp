// The emulator as a device of the core.
#pragma once

#include <cstddef>

#include "device/device_backend.hpp"

namespace glimprouter::simt {

const DeviceBackend& backend();

// Whether streams say that they are being captured into a graph.
void pretend_capture(bool on);

// Larger allocations fail from now on, as on a device whose memory is full.
void limit_allocations(std::size_t bytes);
// Of the copies from now on this one fails, from 0; negative: none.
void fail_copy(int number);
// With this launch, or wait, from now on, from 0, its device is lost, as by a kernel that wrote
// where it may not: that call and all that follow fail, until the device is found again.
void lose_device_at_launch(int number);
void lose_device_at_wait(int number);
void find_devices();

}  // namespace glimprouter::simt
