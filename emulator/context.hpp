// Switching stacks: assembly on x86-64 and aarch64 (10 to 20 ns), ucontext elsewhere (two system
// calls a switch).
#pragma once

#include <cstddef>

// -DGLIMPROUTER_SIMT_UCONTEXT takes the portable way everywhere.
#if !defined(GLIMPROUTER_SIMT_UCONTEXT) && (defined(__x86_64__) || defined(__aarch64__))
#define GLIMPROUTER_SIMT_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace glimprouter::simt {

struct Context {
#if defined(GLIMPROUTER_SIMT_ASSEMBLY)
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
