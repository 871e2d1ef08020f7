// What a running CUDA thread asks of the emulator.
#pragma once

#include <cstddef>
#include <type_traits>

#include "emulator/copies.hpp"
#include "emulator/thread.hpp"

namespace glimprouter::simt {

// Waits until all threads of the block are here, at the same call; orders their memory.
void meet_block(const Site& site);

// Waits until all lanes of the mask are here, at the same call. Gives what the call gives: kShuffle
// the value of source_lane, kBallot a bit a lane, kAdd, kMin and kMax that of all values. kSync
// orders memory, the others do not.
std::uint64_t meet_warp(WarpCall call, unsigned mask, std::uint64_t value, unsigned source_lane,
                        const Site& site);

// Ends the process, with the message and the running thread, unless the condition holds.
void check(bool condition, const char* message, const Site& site);

// Every atomic operation says so here. A thread that makes a million of them without a rendezvous
// waits for another one in a loop, which no kernel of this project may do: the other may not be
// running.
void count_atomic();

// The running thread has waited for the kernels ahead of its own.
void note_wait();

// Notes a copy of 16 bytes from global into shared memory, and ends the process where either is not
// what it must be.
void begin_copy(void* shared, const void* global);
// Closes a group of copies.
void commit_copies();
// The next copy that a wait for all but the last `left` groups finishes, whom the caller carries
// out, so that the sanitizers see it; without a target: there is none.
Copy next_finished_copy(unsigned left);

// The object of the block's shared memory that has this key.
void* shared_memory(const void* key, std::size_t size, std::size_t alignment);

template <typename T>
T& shared_object(const void* key) {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>,
                "shared memory is not initialised: no initialisers, constructors or destructors");
  return *static_cast<T*>(shared_memory(key, sizeof(T), alignof(T)));
}

}  // namespace glimprouter::simt

// One key for each declaration, and for each instantiation of the template around it.
#define GR_SIMT_SHARED(Type)                    \
  ::glimprouter::simt::shared_object<Type>([] { \
    static char key;                            \
    return &key;                                \
  }())

#define GR_SIMT_ASSERT(condition)                                          \
  ::glimprouter::simt::check((condition), "assertion failed: " #condition, \
                             ::glimprouter::simt::Site::current())
