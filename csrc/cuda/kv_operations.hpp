// The operations on pages, for the table of the CUDA device (DeviceBackend). Internal.
#pragma once

#include "device/device_backend.hpp"

namespace glimprouter::cuda {

void append(int device, const AppendArguments& arguments, DeviceStream stream);
void gather(int device, const GatherArguments& arguments, DeviceStream stream);
void cast_copy(int device, const CastCopyArguments& arguments, DeviceStream stream);
void copy_pages(int device, const PageCopyArguments& arguments, DeviceStream stream);
void pack_handoff(int device, const HandoffArguments& arguments, DeviceStream stream);
void attend(int device, const AttentionArguments& arguments, DeviceStream stream);

}  // namespace glimprouter::cuda
