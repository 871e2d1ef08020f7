// How the emulator says what a kernel did wrong.
#pragma once

#include "emulator/thread.hpp"

namespace glimprouter::simt {

// Prints the message, the threads with the calls they are in (second may be null), and the seed;
// aborts.
[[noreturn, gnu::format(printf, 3, 4)]] void fail(const Thread* first, const Thread* second,
                                                  const char* format, ...);

// One line a thread: its number, block and last call.
void print_thread(const Thread& thread);

}  // namespace glimprouter::simt
