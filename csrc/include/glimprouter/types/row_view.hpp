// A row of logits as the core sees it: a pointer, an element type and a length.
#pragma once

#include <cstdint>

#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

enum class DataType : std::uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

GR_HOST_DEVICE constexpr std::int64_t element_size(DataType dtype) {
  return dtype == DataType::kFloat32 ? 4 : 2;
}

// Contiguous elements with any alignment. Non-owning: valid as long as the caller's buffer is.
struct RowView {
  const void* data;  // [size]
  DataType dtype;
  std::int64_t size;  // vocabulary; logits wider than it are cut by the caller
};

// A batch of rows of logits. Non-owning.
struct LogitsView {
  const char* data;
  DataType dtype;
  std::int64_t rows;
  std::int64_t width;       // elements of a row, perhaps more than the vocabulary
  std::int64_t row_stride;  // in elements; may be negative or 0

  GR_HOST_DEVICE RowView row(std::int64_t index, std::int64_t vocabulary) const {
    return RowView{data + index * row_stride * element_size(dtype), dtype, vocabulary};
  }
};

}  // namespace glimprouter
