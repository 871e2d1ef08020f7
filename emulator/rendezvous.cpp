// Where threads meet: barriers and warp calls.
#include "emulator/rendezvous.hpp"

#include <bit>
#include <cstdint>
#include <cstring>

#include "emulator/block.hpp"
#include "emulator/report.hpp"
#include "emulator/sanitizers.hpp"

namespace glimprouter::simt {
namespace {

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         same_text(a.function_name(), b.function_name()) && same_text(a.file_name(), b.file_name());
}

}  // namespace

void Block::meet_block(const Site& site) {
  Thread& self = *current;
  self.site = site;
  self.state = Thread::State::kAtBarrier;
  if (returned_ > 0) {
    fail(&self, nullptr, "__syncthreads() after %u threads of the block have returned", returned_);
  }
  if (at_barrier_ == 0) {
    first_at_barrier_ = &self;
  } else if (!same_site(site, first_at_barrier_->site)) {
    fail(&self, first_at_barrier_, "divergent __syncthreads(): two threads wait at two calls");
  }
  if (under_tsan()) __tsan_release(&order_tag_);
  if (++at_barrier_ == count_) complete_barrier();
  suspend();
}

void Block::complete_barrier() {
  at_barrier_ = 0;
  for (unsigned warp = 0; warp * kLanes < count_; ++warp) {
    order_memory(warp * kLanes, warps_[warp].alive, &order_tag_);
  }
  make_all_ready();
}

std::uint64_t Block::meet_warp(WarpCall call, unsigned mask, std::uint64_t value,
                               unsigned source_lane, const Site& site) {
  Thread& self = *current;
  Warp& warp = warps_[self.number / kLanes];
  self.site = site;
  self.state = Thread::State::kInWarpCall;
  self.call = call;
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  const unsigned own_bit = 1u << self.lane();
  if ((mask & own_bit) == 0) fail(&self, nullptr, "a lane is not in its own mask 0x%08x", mask);
  if ((mask & ~warp.alive) != 0) {
    fail(&self, nullptr, "mask 0x%08x names lanes that have returned or do not exist: 0x%08x", mask,
         mask & ~warp.alive);
  }
  if (call == WarpCall::kSync && under_tsan()) __tsan_release(order_tag_of(self));
  warp.waiting |= own_bit;
  if ((warp.waiting & mask) == mask) complete_warp_call(self, warp);
  suspend();
  return self.result;
}

void Block::complete_warp_call(Thread& last, Warp& warp) {
  check_same_call(last);
  warp.waiting &= ~last.mask;
  const unsigned first = last.number / kLanes * kLanes;
  for (unsigned left = last.mask; left != 0; left &= left - 1) {
    Thread& thread = threads_[first + std::countr_zero(left)];
    thread.result = result_of(thread);
  }
  if (last.call == WarpCall::kSync) order_memory(first, last.mask, order_tag_of(last));
  for (unsigned left = last.mask; left != 0; left &= left - 1) {
    make_ready(threads_[first + std::countr_zero(left)]);
  }
  shuffle_newest(static_cast<unsigned>(std::popcount(last.mask)));
}

void Block::check_same_call(const Thread& last) const {
  const unsigned first = last.number / kLanes * kLanes;
  for (unsigned left = last.mask; left != 0; left &= left - 1) {
    const Thread& other = threads_[first + std::countr_zero(left)];
    if (!same_site(other.site, last.site) || other.call != last.call) {
      fail(&last, &other, "lanes of one mask 0x%08x wait at two calls", last.mask);
    }
    if (other.mask != last.mask) {
      fail(&last, &other, "lanes that wait for each other give two masks: 0x%08x and 0x%08x",
           last.mask, other.mask);
    }
  }
}

// All lanes of the mask have published their value.
std::uint64_t Block::result_of(const Thread& thread) const {
  const unsigned first = thread.number / kLanes * kLanes;
  if (thread.call == WarpCall::kShuffle) {
    if ((thread.mask >> thread.source_lane & 1) == 0) {
      fail(&thread, nullptr, "a shuffle reads lane %u, which is not in its mask 0x%08x",
           thread.source_lane, thread.mask);
    }
    return threads_[first + thread.source_lane].value;
  }
  std::uint64_t result = thread.call == WarpCall::kMin ? ~std::uint64_t{0} : 0;
  for (unsigned left = thread.mask; left != 0; left &= left - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(left));
    const std::uint64_t value = threads_[first + lane].value;
    switch (thread.call) {
      case WarpCall::kBallot:
        result |= std::uint64_t{value != 0} << lane;
        break;
      case WarpCall::kAdd:
        result += value;
        break;
      case WarpCall::kMin:
        result = value < result ? value : result;
        break;
      case WarpCall::kMax:
        result = value > result ? value : result;
        break;
      case WarpCall::kSync:
      case WarpCall::kShuffle:
        break;
    }
  }
  return result;
}

// The tag of a group of lanes lies in its lowest lane. What the tag still holds of earlier groups
// that lane has seen already, so it orders nothing that the group's own call does not.
char* Block::order_tag_of(const Thread& thread) {
  const unsigned first = thread.number / kLanes * kLanes;
  return &threads_[first + std::countr_zero(thread.mask)].order_tag;
}

// Every thread released the tag when it arrived; now all acquire it, at once. If each did so only
// when it runs again, it would also see what faster threads released at the next call, and races
// would be hidden.
void Block::order_memory(unsigned first, unsigned mask, char* tag) {
  if (!under_tsan()) return;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    tsan_acquire_as(threads_[first + std::countr_zero(left)].fiber->tsan(), tag);
  }
}

void meet_block(const Site& site) { running_block->meet_block(site); }

std::uint64_t meet_warp(WarpCall call, unsigned mask, std::uint64_t value, unsigned source_lane,
                        const Site& site) {
  return running_block->meet_warp(call, mask, value, source_lane, site);
}

void begin_copy(void* shared, const void* global) {
  constexpr std::size_t kBytes = 16;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % kBytes == 0;
  };
  CopyQueue& copies = running_block->copies();
  if (!aligned(shared) || !aligned(global)) {
    fail(current, nullptr, "a copy of 16 bytes from %p to %p: both must be multiples of 16", global,
         shared);
  }
  if (!running_block->arena().holds(shared, kBytes)) {
    fail(current, nullptr, "a copy to what is not in the block's shared memory");
  }
  if (copies.waiting() == CopyQueue::kMost) {
    fail(current, nullptr, "a thread has more than %u copies on their way", CopyQueue::kMost);
  }
  copies.begin({shared, global});
}

void commit_copies() { running_block->copies().commit(); }

Copy next_finished_copy(unsigned left) { return running_block->copies().take(left); }

void* shared_memory(const void* key, std::size_t size, std::size_t alignment) {
  return running_block->arena().object(key, size, alignment);
}

void check(bool condition, const char* message, const Site& site) {
  if (condition) return;
  current->site = site;
  fail(current, nullptr, "%s", message);
}

void note_wait() { current->waited = true; }

void count_atomic() {
  constexpr unsigned kMost = 1 << 20;
  if (++current->atomics == kMost) {
    fail(current, nullptr, "a thread spins: %u atomic operations since its last rendezvous", kMost);
  }
}

}  // namespace glimprouter::simt
