// What the golden tests compare: one hash over every output of a row, and the hashes of the
// specification.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <map>

#include "glimprouter/row_op.hpp"

namespace glimprouter::golden {

// Hash of all outputs of the first n rows. A change of these is a change of the specification.
inline const std::map<std::uint64_t, std::uint64_t> kExpected = {
    {2000, 0x5C84BADE2E764D17},
    {20000, 0x262A66995ADA73D4},
    {100000, 0x556244C3094F9F2A},
};

// FNV-1a over bytes in little-endian order.
class Fnv1a {
 public:
  template <typename Bits>
  void add(Bits bits) {
    for (std::size_t byte = 0; byte < sizeof(Bits); ++byte) {
      hash_ = (hash_ ^ ((bits >> (8 * byte)) & 0xFF)) * 0x100000001B3u;
    }
  }
  void add(float value) { add(std::bit_cast<std::uint32_t>(value)); }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xCBF29CE484222325u;
};

inline std::uint64_t hash_of(const RowResult& result, const std::array<float, 3>& logprobs) {
  Fnv1a hash;
  hash.add(static_cast<std::uint8_t>(result.status));
  hash.add(static_cast<std::uint32_t>(result.argmax));
  hash.add(static_cast<std::uint32_t>(result.token));
  for (const float value : {result.entropy, result.logsumexp, result.max_prob, result.margin,
                            result.logprob, result.varentropy}) {
    hash.add(value);
  }
  for (const float value : logprobs) hash.add(value);
  return hash.value();
}

}  // namespace glimprouter::golden
