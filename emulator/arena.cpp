#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/block.hpp"
#include "emulator/report.hpp"
#include "emulator/sanitizers.hpp"

namespace glimprouter::simt {
namespace {

constexpr std::size_t kLimit = 48 << 10;  // of a block's static shared memory
constexpr std::size_t kGap = 128;
constexpr std::size_t kCapacity = 64 << 10;

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

Arena::Arena() {
  memory_ = static_cast<std::byte*>(
      mmap(nullptr, kCapacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory_ == MAP_FAILED) {
    std::perror("simt: no memory for the shared memory of a block");
    std::abort();
  }
  std::memset(memory_, 0xFF, kCapacity);
  poison(memory_, kCapacity);
}

Arena::~Arena() {
  unpoison(memory_, kCapacity);
  munmap(memory_, kCapacity);
}

void Arena::reset() {
  unpoison(memory_, end_);
  std::memset(memory_, 0xFF, end_);
  poison(memory_, end_);
  count_ = 0;
  end_ = 0;
  bytes_ = 0;
}

void* Arena::object(const void* key, std::size_t size, std::size_t alignment) {
  for (unsigned i = 0; i < count_; ++i) {
    if (objects_[i].key == key) return objects_[i].start;
  }
  bytes_ = round_up(bytes_, alignment) + size;
  const std::size_t start = round_up(end_ + kGap, alignment);
  if (bytes_ > kLimit || count_ == kMaxObjects || start + size + kGap > kCapacity) {
    fail(current, nullptr, "%zu bytes of shared memory in %u objects; at most %zu bytes in %u",
         bytes_, count_ + 1, kLimit, kMaxObjects);
  }
  end_ = start + size;
  objects_[count_] = {key, memory_ + start, size};
  unpoison(memory_ + start, size);
  return objects_[count_++].start;
}

bool Arena::holds(const void* start, std::size_t size) const {
  const auto* const first = static_cast<const std::byte*>(start);
  for (unsigned i = 0; i < count_; ++i) {
    const std::byte* const end = objects_[i].start + objects_[i].size;
    if (first >= objects_[i].start && first < end) return first + size <= end;
  }
  return false;
}

}  // namespace glimprouter::simt
