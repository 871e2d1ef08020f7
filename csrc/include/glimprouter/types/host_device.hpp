// Functions that device code shares with the host are marked with GR_HOST_DEVICE.
#pragma once

#if defined(__CUDACC__)
#define GR_HOST_DEVICE __host__ __device__
#else
#define GR_HOST_DEVICE
#endif
