// Checked arguments that several bindings take.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "glimprouter/row_op.hpp"

namespace glimprouter::bindings {

// Throws pybind11::value_error for a parameter out of its range.
inline SamplingParameters sampling_parameters(float temperature, float top_p, int top_k,
                                              float min_p) {
  namespace py = pybind11;
  if (!(temperature >= 0.0f) || (temperature > 0.0f && !(temperature >= 1e-4f)) ||
      temperature > 1e4f) {
    throw py::value_error("temperature must be 0 (greedy) or lie in [1e-4, 1e4], got " +
                          std::to_string(temperature));
  }
  if (!(top_p > 0.0f && top_p <= 1.0f)) {
    throw py::value_error("top_p must lie in (0, 1], got " + std::to_string(top_p));
  }
  if (top_k < 0) throw py::value_error("top_k must be >= 0 (0: off), got " + std::to_string(top_k));
  if (!(min_p >= 0.0f && min_p <= 1.0f)) {
    throw py::value_error("min_p must lie in [0, 1], got " + std::to_string(min_p));
  }
  return SamplingParameters{temperature, top_p, top_k, min_p};
}

// Throws pybind11::value_error unless there is one key, or one a row.
inline void check_keys(std::int64_t streams, std::int64_t positions, std::int64_t rows) {
  for (const std::int64_t size : {streams, positions}) {
    if (size != 1 && size != rows) {
      throw pybind11::value_error("substream and position must be one integer or one a row (" +
                                  std::to_string(rows) + "), got " + std::to_string(size));
    }
  }
}

}  // namespace glimprouter::bindings
