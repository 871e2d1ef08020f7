// Lists of integers from Python: row numbers, token ids.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <vector>

namespace glimprouter::bindings {

// Integers of one call (row numbers, token ids) as 32 bits, read from a 1-D int32 or int64 tensor,
// or a list, tuple or range of ints. Allocates only for more than kInline of them.
class IndexList {
 public:
  // Throws pybind11::type_error or pybind11::value_error. `what` names the argument in messages.
  IndexList(PyObject* object, const char* what);
  IndexList(const IndexList&) = delete;
  IndexList& operator=(const IndexList&) = delete;

  std::span<const std::int32_t> span() const { return {data_, static_cast<std::size_t>(count_)}; }

 private:
  static constexpr std::int64_t kInline = 256;

  std::int32_t* reserve(std::int64_t count);
  std::int32_t narrow(std::int64_t value) const;
  void read_sequence(PyObject* object);
  void read_tensor(PyObject* object);

  const char* what_;
  std::int64_t count_ = 0;
  const std::int32_t* data_ = nullptr;
  std::int32_t inline_[kInline];
  std::vector<std::int32_t> large_;
};

}  // namespace glimprouter::bindings
