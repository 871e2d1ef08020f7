// Order from a seed (splitmix64). No library class: it runs inside fibers, unseen by sanitizers.
#pragma once

#include <cstdint>

namespace glimprouter::simt {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t bits = state_ += 0x9E3779B97F4A7C15u;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
    return bits ^ (bits >> 31);
  }

  // In [0, bound).
  unsigned below(unsigned bound) { return static_cast<unsigned>(((next() >> 32) * bound) >> 32); }

  template <typename T>
  void shuffle(T* items, unsigned count) {
    for (unsigned left = count; left > 1; --left) {
      const unsigned chosen = below(left);
      const T moved = items[left - 1];
      items[left - 1] = items[chosen];
      items[chosen] = moved;
    }
  }

 private:
  std::uint64_t state_;
};

}  // namespace glimprouter::simt
