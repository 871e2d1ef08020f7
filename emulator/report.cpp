#include "emulator/report.hpp"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace glimprouter::simt {
namespace {

void print_seed() { std::fprintf(stderr, "  GLIMPROUTER_SIMT_SEED=%" PRIu64 "\n", seed()); }

// Where a sanitizer found something: its report has the line, not the block and the thread.
void print_running_thread() {
  if (current == nullptr) return;
  std::fputs("simt: while this thread ran (its last rendezvous is named)\n", stderr);
  print_thread(*current);
  print_seed();
}

}  // namespace

void print_thread(const Thread& thread) {
  const Dim3& block = thread.shape->block_index;
  std::fprintf(stderr, "  thread %u of block (%u, %u, %u)", thread.number, block.x, block.y,
               block.z);
  if (thread.site.line() != 0) {
    std::fprintf(stderr, " at %s:%u in %s", thread.site.file_name(), thread.site.line(),
                 thread.site.function_name());
  }
  std::fputc('\n', stderr);
}

void fail(const Thread* first, const Thread* second, const char* format, ...) {
  std::fputs("simt: ", stderr);
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  if (first != nullptr) print_thread(*first);
  if (second != nullptr) print_thread(*second);
  print_seed();
  std::fflush(stderr);
  std::abort();
}

}  // namespace glimprouter::simt

// Called by the runtimes when they report. They look for these names among the exported ones.
extern "C" {
[[gnu::visibility("default")]] void __asan_on_error() { glimprouter::simt::print_running_thread(); }
[[gnu::visibility("default")]] void __tsan_on_report(void*) {
  glimprouter::simt::print_running_thread();
}
}
