// A block of CUDA threads: who may run, who waits for whom, and the block's shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "emulator/copies.hpp"
#include "emulator/random.hpp"
#include "emulator/thread.hpp"

namespace glimprouter::simt {

inline constexpr unsigned kMaxThreads = 1024;

// Shared memory: objects with gaps between them, all bytes 0xFF at first (NaN in every float type).
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void reset();

  // The object of that key: placed by the first thread that asks.
  void* object(const void* key, std::size_t size, std::size_t alignment);

  // Whether so many bytes from there on lie within one object.
  bool holds(const void* start, std::size_t size) const;

 private:
  struct Object {
    const void* key;
    std::byte* start;
    std::size_t size;
  };
  static constexpr unsigned kMaxObjects = 32;

  std::byte* memory_;
  std::array<Object, kMaxObjects> objects_{};
  unsigned count_ = 0;
  std::size_t end_ = 0;    // of the last object
  std::size_t bytes_ = 0;  // of all objects: what nvcc would count
};

// Not for std containers, nor anything that allocates: this runs on the fibers.
class Block {
 public:
  // Prepares for the threads of one block. Fibers are numbered from first_fiber. What the host has
  // done comes before what they do.
  void begin(const Shape& shape, unsigned first_fiber, void (*entry)(), std::uint64_t seed);

  // Called by the host: runs all threads to their end.
  void run(Fiber& host);

  // Called by the running thread.
  void meet_block(const Site& site);
  std::uint64_t meet_warp(WarpCall call, unsigned mask, std::uint64_t value, unsigned source_lane,
                          const Site& site);
  void leave();
  Arena& arena() { return arena_; }
  CopyQueue& copies() { return copies_[current->number]; }

 private:
  struct Warp {
    unsigned alive = 0;    // lanes that exist and have not returned
    unsigned waiting = 0;  // in a warp call
  };

  void make_ready(Thread& thread);
  void make_all_ready();
  void shuffle_newest(unsigned count);
  Thread* take_ready();
  void suspend();
  void complete_barrier();
  void complete_warp_call(Thread& last, Warp& warp);
  void check_same_call(const Thread& last) const;
  std::uint64_t result_of(const Thread& thread) const;
  char* order_tag_of(const Thread& thread);
  void order_memory(unsigned first, unsigned mask, char* tag);
  [[noreturn]] void report_deadlock() const;

  Shape shape_;
  unsigned count_ = 0;
  unsigned returned_ = 0;
  unsigned at_barrier_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  Fiber* host_ = nullptr;
  Random random_{0};
  bool depth_first_ = false;  // whoever became ready last is next; else any
  unsigned ready_count_ = 0;
  char order_tag_ = 0;
  std::array<Thread*, kMaxThreads> ready_{};
  std::array<Warp, kMaxThreads / kLanes> warps_{};
  std::array<Thread, kMaxThreads> threads_{};
  std::array<CopyQueue, kMaxThreads> copies_;  // of the threads
  Arena arena_;
};

// The block whose thread runs.
extern Block* running_block;

}  // namespace glimprouter::simt
