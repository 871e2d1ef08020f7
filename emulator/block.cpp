#include "emulator/block.hpp"

#include <algorithm>
#include <cstdio>

#include "emulator/report.hpp"
#include "emulator/sanitizers.hpp"

namespace glimprouter::simt {

Block* running_block = nullptr;

void Block::begin(const Shape& shape, unsigned first_fiber, void (*entry)(), std::uint64_t seed) {
  shape_ = shape;
  count_ = shape.block_size.x;
  returned_ = 0;
  at_barrier_ = 0;
  random_ = Random(seed);
  depth_first_ = random_.below(2) == 0;
  ready_count_ = 0;
  arena_.reset();
  if (under_tsan()) __tsan_release(&order_tag_);
  warps_.fill(Warp{});
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    thread = Thread{};
    thread.shape = &shape_;
    thread.number = i;
    copies_[i].clear();
    thread.fiber = &pooled_fiber(first_fiber + i, entry);
    if (under_tsan()) tsan_acquire_as(thread.fiber->tsan(), &order_tag_);
    warps_[i / kLanes].alive |= 1u << thread.lane();
  }
  make_all_ready();
}

// Warp by warp in shuffled order, and so the threads of each.
void Block::make_all_ready() {
  unsigned order[kMaxThreads / kLanes];
  const unsigned warps = (count_ + kLanes - 1) / kLanes;
  for (unsigned i = 0; i < warps; ++i) order[i] = i;
  random_.shuffle(order, warps);
  for (unsigned i = 0; i < warps; ++i) {
    const unsigned first = order[i] * kLanes;
    for (unsigned lane = 0; lane < kLanes && first + lane < count_; ++lane) {
      make_ready(threads_[first + lane]);
    }
    shuffle_newest(std::min(kLanes, count_ - first));
  }
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

void Block::shuffle_newest(unsigned count) {
  random_.shuffle(ready_.data() + ready_count_ - count, count);
}

// Depth first, one warp runs ahead as far as it can; else all are at about the same place.
Thread* Block::take_ready() {
  if (ready_count_ == 0) return nullptr;
  const unsigned chosen = depth_first_ ? ready_count_ - 1 : random_.below(ready_count_);
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
  if (copies().waiting() > 0) {
    fail(&self, nullptr, "a thread returned with %u copies on their way", copies().waiting());
  }
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
