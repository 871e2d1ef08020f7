// Switching stacks: assembly on x86-64 and aarch64 (10 to 20 ns), ucontext elsewhere (two system
// calls a switch).
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace glimprouter::simt {

struct Context {
#if defined(__x86_64__) || defined(__aarch64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
};

// The first switch to `context` calls entry, which never returns, on the stack that ends at top, a
// multiple of 16.
void prepare_context(Context& context, std::byte* bottom, std::byte* top, void (*entry)());

// Goes on with `to`; returns when somebody switches to `from`.
void switch_context(Context& from, Context& to);

}  // namespace glimprouter::simt
