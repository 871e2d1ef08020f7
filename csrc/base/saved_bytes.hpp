// Bytes that a later process reads back: values in a row behind a header, a checksum at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace glimprouter {

// FNV-1a over 64-bit words; the tail is padded with zeros.
inline std::uint64_t checksum_of(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0x100000001B3u;
  }
  return hash;
}

template <typename Value>
void append_values(std::string& bytes, const Value* values, std::size_t count) {
  if (count > 0) bytes.append(reinterpret_cast<const char*>(values), count * sizeof(Value));
}

inline void append_checksum(std::string& bytes) {
  const std::uint64_t sum = checksum_of(bytes);
  append_values(bytes, &sum, 1);
}

[[noreturn]] inline void refuse_damaged(const char* what) {
  throw std::invalid_argument("the saved " + std::string(what) + " is damaged or cut short");
}

// What stands before the checksum. what: "sequence", say. Throws std::invalid_argument where the
// checksum is of other bytes.
inline std::string_view checked_bytes(std::string_view saved, const char* what) {
  std::uint64_t sum = 0;
  if (saved.size() < sizeof sum) refuse_damaged(what);
  const std::string_view body = saved.substr(0, saved.size() - sizeof sum);
  std::memcpy(&sum, saved.data() + body.size(), sizeof sum);
  if (sum != checksum_of(body)) refuse_damaged(what);
  return body;
}

// Reads front to back; what is missing is an error (std::invalid_argument), never garbage.
class BytesReader {
 public:
  BytesReader(std::string_view bytes, const char* what) : left_(bytes), what_(what) {}

  std::string_view take(std::int64_t count) {
    if (count < 0 || static_cast<std::uint64_t>(count) > left_.size()) refuse_damaged(what_);
    const std::string_view part = left_.substr(0, static_cast<std::size_t>(count));
    left_.remove_prefix(static_cast<std::size_t>(count));
    return part;
  }
  template <typename Value>
  Value one() {
    Value value;
    std::memcpy(static_cast<void*>(&value), take(sizeof(Value)).data(), sizeof(Value));
    return value;
  }
  template <typename Value>
  std::vector<Value> many(std::int64_t count) {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(Value));
    const auto left = static_cast<std::int64_t>(left_.size());
    const std::string_view part = take(count > left / kSize ? -1 : count * kSize);
    std::vector<Value> result(static_cast<std::size_t>(count));
    if (!part.empty()) std::memcpy(static_cast<void*>(result.data()), part.data(), part.size());
    return result;
  }
  void check_end() const {
    if (!left_.empty()) refuse_damaged(what_);
  }

 private:
  std::string_view left_;
  const char* what_;
};

}  // namespace glimprouter
