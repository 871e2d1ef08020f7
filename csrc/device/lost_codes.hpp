// The errors after which a CUDA device is lost. Without a header of CUDA: a build that has no
// device code still meets them, in what torch raises.
#pragma once

#include <string>

#include "glimprouter/types/device_lost.hpp"

namespace glimprouter::device {

struct LosingError {
  int code;
  const char* name;
};

// Those of which the runtime's documentation says that the process must be started anew, and those
// of a device that is broken or away.
inline constexpr LosingError kLosingErrors[] = {
    {46, "cudaErrorDevicesUnavailable"},   {214, "cudaErrorECCUncorrectable"},
    {220, "cudaErrorNvlinkUncorrectable"}, {226, "cudaErrorContained"},
    {700, "cudaErrorIllegalAddress"},      {702, "cudaErrorLaunchTimeout"},
    {709, "cudaErrorContextIsDestroyed"},  {710, "cudaErrorAssert"},
    {714, "cudaErrorHardwareStackError"},  {715, "cudaErrorIllegalInstruction"},
    {716, "cudaErrorMisalignedAddress"},   {717, "cudaErrorInvalidAddressSpace"},
    {718, "cudaErrorInvalidPc"},           {719, "cudaErrorLaunchFailure"},
    {721, "cudaErrorTensorMemoryLeak"},    {810, "cudaErrorMpsClientTerminated"},
    {911, "cudaErrorExternalDevice"},
};

// The name of an error that loses the device; nullptr for every other.
constexpr const char* losing_error(int code) {
  for (const LosingError& error : kLosingErrors) {
    if (error.code == code) return error.name;
  }
  return nullptr;
}

// Throws DeviceLost for such an error, and does nothing for another. `what` is what failed, in the
// device's own words.
inline void throw_if_lost(int code, const std::string& device, const std::string& what) {
  const char* const name = losing_error(code);
  if (name != nullptr) throw DeviceLost(device, what + " (" + name + ")");
}

}  // namespace glimprouter::device
