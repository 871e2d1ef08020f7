// Bytes of tokens between Python and the core.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

namespace glimprouter::bindings {

// A sequence of bytes objects, None for special tokens. Throws pybind11::type_error.
inline std::vector<std::optional<std::string>> read_token_bytes(
    const pybind11::sequence& token_bytes) {
  std::vector<std::optional<std::string>> result;
  result.reserve(token_bytes.size());
  for (const pybind11::handle token : token_bytes) {
    if (token.is_none()) {
      result.emplace_back(std::nullopt);
    } else if (pybind11::isinstance<pybind11::bytes>(token)) {
      result.emplace_back(std::string(pybind11::reinterpret_borrow<pybind11::bytes>(token)));
    } else {
      throw pybind11::type_error("token_bytes must hold bytes, or None for special tokens, got " +
                                 std::string(Py_TYPE(token.ptr())->tp_name));
    }
  }
  return result;
}

inline std::vector<pybind11::bytes> spans_as_bytes(const std::vector<std::string>& spans) {
  return {spans.begin(), spans.end()};
}

}  // namespace glimprouter::bindings
