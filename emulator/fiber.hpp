// A stack that can be left and entered again, known to the sanitizers.
#pragma once

#include <cstddef>

#include "emulator/context.hpp"

namespace glimprouter::simt {

class Fiber {
 public:
  // The stack that the caller runs on.
  Fiber();

  // A stack of its own, with a page below it that must not be touched. `colour` moves its top, so
  // that the tops of many stacks do not fall into the same lines of the cache.
  Fiber(void (*entry)(), unsigned colour);

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called on this fiber: goes on with `next`; returns when somebody switches here.
  void switch_to(Fiber& next);

  // First thing on a fiber that is entered for the first time.
  static void arrived();

  // What ThreadSanitizer knows this fiber by: a thread.
  void* tsan() const { return tsan_; }

 private:
  void finish_switch();

  Context context_;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;
};

// The fiber of that number, made on first use and kept for the life of the process (a thread of
// ThreadSanitizer takes a millisecond to make). All have the same entry.
Fiber& pooled_fiber(unsigned number, void (*entry)());

}  // namespace glimprouter::simt
