// The fused kernel as one more instruction set of the row operation, so that the CPU's own tests
// run against it (GLIMPROUTER_ISA=simt).
#include "emulator/row_backend.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/kernel_tables.hpp"
#include "emulator/backend.hpp"

namespace glimprouter::simt {
namespace {

RowResult evaluate(const RowView& row, const RowRequest& request, float* logprobs) {
  static thread_local std::vector<TileStatistics> tiles;
  static thread_local std::vector<std::uint64_t> moved;
  tiles.resize(static_cast<std::size_t>(tiles_of(row.size)));
  const auto size = static_cast<std::size_t>(element_size(row.dtype));
  const char* data = static_cast<const char*>(row.data);
  if (reinterpret_cast<std::uintptr_t>(data) % size != 0) {  // a device has no such rows
    moved.resize(static_cast<std::size_t>(row.size) * size / sizeof(std::uint64_t) + 1);
    std::memcpy(moved.data(), data, static_cast<std::size_t>(row.size) * size);
    data = reinterpret_cast<const char*>(moved.data());
  }
  std::uint32_t ticket = 0;
  RowResult result{};
  const LogitsView logits{data, row.dtype, 1, row.size, row.size};
  backend().rows->evaluate(
      0, {{tiles.data(), &ticket}, logits, request, nullptr, &result, logprobs}, nullptr);
  return result;
}

}  // namespace

const CpuKernels& row_backend() {
  static const CpuKernels kernels = [] {
    CpuKernels copy = kGenericKernels;
    copy.name = "simt";
    copy.evaluate = evaluate;
    return copy;
  }();
  return kernels;
}

}  // namespace glimprouter::simt
