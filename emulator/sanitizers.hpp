// What AddressSanitizer and ThreadSanitizer must be told about fibers. Weak declarations: null
// where a runtime is not linked, so that one source serves every build.
#pragma once

#include <cstddef>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom,
                                                  std::size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom,
                                                   std::size_t* size);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* start, std::size_t size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* start, std::size_t size);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* tag);
[[gnu::weak]] void __tsan_release(void* tag);
}

namespace glimprouter::simt {

inline bool under_tsan() { return __tsan_create_fiber != nullptr; }
inline bool under_asan() { return __asan_poison_memory_region != nullptr; }

// To the context of another fiber, without an order of memory: rendezvous say what is ordered.
inline void tsan_switch(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }

// On behalf of a fiber that does not run: all that was released to the tag comes before what it
// does from now on.
inline void tsan_acquire_as(void* fiber, void* tag) {
  void* running = __tsan_get_current_fiber();
  tsan_switch(fiber);
  __tsan_acquire(tag);
  tsan_switch(running);
}

inline void poison(std::byte* start, std::size_t size) {
  if (under_asan()) __asan_poison_memory_region(start, size);
}

inline void unpoison(std::byte* start, std::size_t size) {
  if (under_asan()) __asan_unpoison_memory_region(start, size);
}

}  // namespace glimprouter::simt
