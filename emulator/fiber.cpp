#include "emulator/fiber.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "emulator/sanitizers.hpp"

namespace glimprouter::simt {
namespace {

constexpr std::size_t kGuard = 64 << 10;  // a whole page, whatever its size
constexpr std::size_t kStack = 64 << 10;
constexpr std::size_t kStackUnderSanitizers = 256 << 10;
constexpr std::size_t kColours = 61;
constexpr std::size_t kColourStep = 320;

Fiber* came_from = nullptr;  // whoever switched last

}  // namespace

Fiber::Fiber() {
  if (under_tsan()) tsan_ = __tsan_get_current_fiber();
}

Fiber::Fiber(void (*entry)(), unsigned colour) {
  const std::size_t size = under_asan() || under_tsan() ? kStackUnderSanitizers : kStack;
  void* mapped = mmap(nullptr, kGuard + size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, kGuard, PROT_NONE) != 0) {
    std::perror("simt: no memory for the stack of a thread");
    std::abort();
  }
  std::byte* bottom = static_cast<std::byte*>(mapped) + kGuard;
  bottom_ = bottom;
  size_ = size;
  prepare_context(context_, bottom, bottom + size - colour % kColours * kColourStep, entry);
  if (under_tsan()) tsan_ = __tsan_create_fiber(0);
}

void Fiber::switch_to(Fiber& next) {
  came_from = this;
  if (under_asan()) __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
  if (under_tsan()) tsan_switch(next.tsan_);
  switch_context(context_, next.context_);
  finish_switch();
}

// Also learns the bounds of the stack that it came from: nobody else tells those of the host.
void Fiber::finish_switch() {
  if (under_asan()) {
    __sanitizer_finish_switch_fiber(fake_stack_, &came_from->bottom_, &came_from->size_);
  }
}

void Fiber::arrived() {
  if (under_asan()) {
    __sanitizer_finish_switch_fiber(nullptr, &came_from->bottom_, &came_from->size_);
  }
}

Fiber& pooled_fiber(unsigned number, void (*entry)()) {
  static std::vector<std::unique_ptr<Fiber>>& pool = *new std::vector<std::unique_ptr<Fiber>>;
  while (pool.size() <= number) {
    pool.push_back(std::make_unique<Fiber>(entry, static_cast<unsigned>(pool.size())));
  }
  return *pool[number];
}

}  // namespace glimprouter::simt
