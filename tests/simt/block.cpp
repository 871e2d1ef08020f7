#include "simt/block.hpp"

#include <algorithm>
#include <cstdio>

#include "simt/report.hpp"
#include "simt/sanitizers.hpp"

namespace glimprouter::simt {

Block* running_block = nullptr;

void Block::begin(const Shape& shape, unsigned first_fiber, void (*entry)(), std::uint64_t seed) {
  shape_ = shape;
  count_ = shape.block_size.x;
  returned_ = 0;
  at_barrier_ = 0;
  random_ = Random(seed);
  // Half of the blocks run breadth first, with all threads at about the same place; the other half
  // lets one warp run ahead as far as it can.
  window_ = random_.below(2) == 0 ? kMaxThreads : kLanes;
  ready_count_ = 0;
  arena_.reset();
  if (under_tsan()) __tsan_release(&order_tag_);
  warps_.fill(Warp{});
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    thread = Thread{};
    thread.shape = &shape_;
    thread.number = i;
    thread.fiber = &pooled_fiber(first_fiber + i, entry);
    if (under_tsan()) tsan_acquire_as(thread.fiber->tsan(), &order_tag_);
    warps_[i / kLanes].alive |= 1u << thread.lane();
    make_ready(thread);
  }
  random_.shuffle(ready_.data(), ready_count_);
}

void Block::run(Fiber& host) {
  host_ = &host;
  running_block = this;
  current = take_ready();
  host.switch_to(*current->fiber);
  running_block = nullptr;
}

void Block::make_ready(Thread& thread) {
  thread.state = Thread::State::kReady;
  thread.atomics = 0;
  ready_[ready_count_++] = &thread;
}

Thread* Block::take_ready() {
  if (ready_count_ == 0) return nullptr;
  const unsigned chosen = ready_count_ - 1 - random_.below(std::min(window_, ready_count_));
  Thread* thread = ready_[chosen];
  ready_[chosen] = ready_[--ready_count_];
  return thread;
}

// The running thread waits, or goes to the back of those that may run.
void Block::suspend() {
  Thread& self = *current;
  Thread* next = take_ready();
  if (next == nullptr) report_deadlock();
  if (next == &self) return;
  current = next;
  self.fiber->switch_to(*next->fiber);
}

// The running thread returned from the kernel. Comes back when the fiber has another thread.
void Block::leave() {
  Thread& self = *current;
  self.state = Thread::State::kReturned;
  Warp& warp = warps_[self.number / kLanes];
  warp.alive &= ~(1u << self.lane());
  if (at_barrier_ > 0) {
    fail(&self, first_at_barrier_, "a thread returned while another waits at __syncthreads()");
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Thread& other = threads_[self.number / kLanes * kLanes + lane];
    if ((warp.waiting >> lane & 1) != 0 && (other.mask >> self.lane() & 1) != 0) {
      fail(&self, &other, "a lane returned while another waits for it in a warp call");
    }
  }
  ++returned_;
  Thread* next = take_ready();
  if (next == nullptr && returned_ < count_) report_deadlock();
  current = next;
  self.fiber->switch_to(next == nullptr ? *host_ : *next->fiber);
}

// One line for each call that threads wait in.
void Block::report_deadlock() const {
  std::fputs("simt: threads that wait\n", stderr);
  const Thread* first = nullptr;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == Thread::State::kReturned) continue;
    const bool as_before = i > 0 && threads_[i - 1].state == thread.state &&
                           threads_[i - 1].site.line() == thread.site.line() &&
                           threads_[i - 1].mask == thread.mask;
    if (!as_before) print_thread(thread);
    if (first == nullptr) first = &thread;
  }
  fail(first, nullptr, "deadlock: every thread of the block waits or has returned");
}

}  // namespace glimprouter::simt
