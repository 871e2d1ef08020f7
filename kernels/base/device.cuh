// What a kernel may use of the machine: the one header that every kernel includes. Under nvcc the
// names have their CUDA meaning (device_cuda.cuh); any other compiler gets the emulator
// (emulator/simt.hpp, docs/device-testing.md).
//
// As in CUDA, on both sides:
//   threadIdx, blockIdx, blockDim, gridDim                   .x .y .z; blocks are one-dimensional
//   __syncthreads(), __syncwarp(mask), __threadfence()
//   __shfl_sync, __shfl_up_sync, __shfl_down_sync, __shfl_xor_sync     of 32- and 64-bit numbers
//   __ballot_sync, __any_sync, __all_sync
//   __reduce_add_sync, __reduce_min_sync, __reduce_max_sync            of unsigned
//   __popc, __popcll, __ffs, __ffsll, __clz, __clzll, __brev, __brevll
//
// Stricter than CUDA, because the emulator checks it: every thread of a block reaches every
// __syncthreads(), at the same call; every lane of a mask exists, has not returned and makes the
// same call; a shuffle reads only lanes of its mask. Only __syncthreads and __syncwarp order
// memory; a shuffle or a vote does not. No thread waits for another in a loop.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "glimprouter/types/host_device.hpp"

// GR_KERNEL(256) void name(...): a kernel, with the most threads a block has (and, as a second
// argument, the fewest blocks that must fit a multiprocessor). It returns void.
// GR_DEVICE: a function that only kernels call.
// GR_SHARED(Type, name): an object of the block's shared memory, uninitialised. Type is trivially
// default constructible: one struct a kernel, or a typedef of an array.
// GR_ASSERT(condition): off in release builds; names the block and thread where it fails.
#if defined(__CUDACC__)
#include <cassert>
#define GR_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
#define GR_DEVICE __device__ __forceinline__
#define GR_SHARED(Type, name) __shared__ Type name
#define GR_ASSERT(condition) assert(condition)
#define GR_UNROLL _Pragma("unroll")
#define GR_UNROLL_BY(count) _Pragma(GR_TEXT(unroll count))
#define GR_TEXT(text) #text
#define GR_NO_UNROLL _Pragma("unroll 1")
#else
#define GR_KERNEL(...) inline
#define GR_DEVICE inline
#define GR_SHARED(Type, name) Type& name = GR_SIMT_SHARED(Type)
#define GR_ASSERT(condition) GR_SIMT_ASSERT(condition)
#define GR_UNROLL
#define GR_UNROLL_BY(count)
#define GR_NO_UNROLL
#endif

namespace glimprouter::device {

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xFFFFFFFFu;

// 16 bytes in one access. May alias any type, as a piece of memory of unknown contents.
struct __attribute__((aligned(16), may_alias)) Vec16 {
  std::uint32_t word[4];
};

// The pointer is a multiple of 16.
GR_DEVICE Vec16 load16(const void* source);
// The same where a condition holds, else zeros; without a branch, so that several are on their way.
GR_DEVICE Vec16 load16_if(const void* source, bool condition);
// And of memory that nobody writes meanwhile, and that is not read again soon.
GR_DEVICE Vec16 load16_once_if(const void* source, bool condition);
GR_DEVICE void store16(void* target, const Vec16& value);

// Copies of 16 bytes from global into shared memory that go on while the thread does (compute
// capability 8.0). Both pointers are multiples of 16. From the call on the target belongs to the
// copy, so whoever read it before has met the thread since. commit_copies() closes a group: the
// copies that the thread began since the last one, perhaps none. wait_copies<n>() returns when of
// the thread's closed groups all but the last n have arrived, for this thread: for the others
// behind the next barrier. A thread waits for all that it began before it returns.
GR_DEVICE void copy16_async(void* shared, const void* global);
GR_DEVICE void commit_copies();
template <unsigned kLeft>
GR_DEVICE void wait_copies();

// The larger of two: where one is NaN, the other; and the same that gives NaN where one is.
GR_DEVICE float larger_number(float a, float b);
GR_DEVICE float larger_or_nan(float a, float b);

// The larger numbers of two pairs of 16-bit elements; NaN only where both are.
GR_DEVICE std::uint32_t larger_halves(std::uint32_t a, std::uint32_t b);
GR_DEVICE std::uint32_t larger_bfloat16s(std::uint32_t a, std::uint32_t b);

// sums += left right by the tensor cores, by a whole warp: left is [16, 16], right [16, 8], of bf16
// (else fp16) in pairs; sums are float32, [16, 8]. With g = lane / 4 and t = lane % 4 a lane has
//   left:  [g, 2t], [g + 8, 2t], [g, 2t + 8], [g + 8, 2t + 8], each with its right neighbour
//   right: [2t, g], [2t + 8, g], each with the one below
//   sums:  [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t + 1]
// A column of the sums depends on its column of right alone. The order of the 16 products is the
// device's.
template <bool kBFloat16>
GR_DEVICE void multiply_tile(const std::uint32_t (&left)[4], const std::uint32_t (&right)[2],
                             float (&sums)[4]);

// 1 / sqrt(x), e^x and tanh x, as frameworks compute them there: within two units in the last
// place.
GR_DEVICE float inverse_square_root(float x);
GR_DEVICE float exponential(float x);
GR_DEVICE float hyperbolic_tangent(float x);

// Brings a line of global memory near, without waiting for it.
GR_DEVICE void prefetch_global(const void* address);

// The ticket of the last-block-done pattern: adds one, wraps to 0 after `last`, gives the value
// before. Acquire and release at device scope: what the caller wrote before, or saw at a barrier
// before, is visible to whoever takes a later ticket. So the counter of n blocks (last = n - 1) is
// 0 again when the last of them has been here, and needs no reset between launches.
// A thread that reads what other blocks wrote fences once more itself (__threadfence) after it
// learnt through shared memory that its block is the last one.
GR_DEVICE std::uint32_t ticket_increment(std::uint32_t* counter, std::uint32_t last);

// Atomics in global memory at device scope, relaxed: they order nothing else. Give the value
// before.
GR_DEVICE std::uint32_t atomic_add(std::uint32_t* target, std::uint32_t value);
GR_DEVICE std::uint64_t atomic_add(std::uint64_t* target, std::uint64_t value);

// The same in shared memory, among the threads of a block. A sum of 64 bits is right after a
// barrier: there is no instruction that adds to all of it at once.
GR_DEVICE std::uint32_t atomic_add_shared(std::uint32_t* target, std::uint32_t value);
GR_DEVICE void atomic_add_shared(std::uint64_t* target, std::uint64_t value);

// Programmatic dependent launch (sm_90 and newer, nothing elsewhere). A kernel that may be launched
// so calls wait_for_dependencies() before it touches anything that the kernel before it writes, or
// writes anything that that one reads; launch_dependents() lets the next one start early. Every
// thread waits, also one that has nothing to do: only then has all that is further ahead ended,
// too, when the kernel itself has.
GR_DEVICE void launch_dependents();
GR_DEVICE void wait_for_dependencies();

}  // namespace glimprouter::device

#if defined(__CUDACC__)
#include "kernels/base/device_cuda.cuh"
#else
#include "emulator/simt.hpp"
#endif
