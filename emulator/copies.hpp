// Copies that a CUDA thread has begun and not waited for yet. They are held back until the wait
// that asks for them, so that whoever reads too early does not find what was copied.
#pragma once

#include <array>

namespace glimprouter::simt {

struct Copy {
  void* target;  // null: there is none
  const void* source;
};

// First in, first out, in groups. Nothing is initialised but what says that it is empty.
class CopyQueue {
 public:
  static constexpr unsigned kMost = 64;

  void clear() { begun_ = finished_ = group_ = 0; }

  // The copies that are on their way.
  unsigned waiting() const { return begun_ - finished_; }
  // Room for one more must be there.
  void begin(const Copy& copy) { entries_[begun_++ % kMost] = {copy, group_}; }
  // Closes the group of the copies that were begun since the last one was closed.
  void commit() { ++group_; }
  // The oldest copy of all groups but the newest `left` closed ones, and of the open one.
  Copy take(unsigned left) {
    if (waiting() == 0) return {nullptr, nullptr};
    const Entry& oldest = entries_[finished_ % kMost];
    if (oldest.group + left >= group_) return {nullptr, nullptr};
    ++finished_;
    return oldest.copy;
  }

 private:
  struct Entry {
    Copy copy;
    unsigned group;
  };
  std::array<Entry, kMost> entries_;
  unsigned begun_ = 0;
  unsigned finished_ = 0;
  unsigned group_ = 0;  // that is open
};

}  // namespace glimprouter::simt
