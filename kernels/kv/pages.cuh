// Keys and values to, from and between pages: one launch over all layers that are asked for. A Job
// says where a token of one head lies on both sides:
//
//   std::int64_t tokens(); std::int32_t num_kv_heads(), head_dim();
//   DataType source_type(), target_type();
//   bool locate(const HeadLine&, std::int64_t token, Ends&)        false: the token is left out
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kCopyThreads = 128;

// Keys or values of one head in one layer (counted from the first layer that is asked for).
struct HeadLine {
  std::int32_t layer;
  std::int32_t head;
  bool values;
};

struct Ends {
  const std::byte* source;
  std::byte* target;
};

// [layers, key or value, head].
GR_DEVICE HeadLine line_of(std::uint32_t index, std::int32_t num_kv_heads) {
  const auto heads = static_cast<std::uint32_t>(num_kv_heads);
  const std::uint32_t pair = index / heads;
  return {static_cast<std::int32_t>(pair / 2), static_cast<std::int32_t>(index - pair * heads),
          pair % 2 != 0};
}

GR_DEVICE std::byte* address_in_page(const DevicePages& pages, std::int32_t first_layer,
                                     const HeadLine& line, std::int64_t page, std::int64_t place) {
  const KvLayout& layout = pages.layout;
  return pages.arena + page * KvLayout::kPageUnit +
         (first_layer + line.layer) * layout.layer_stride +
         (line.values ? layout.value_offset : 0) + line.head * layout.head_stride +
         place * layout.token_stride;
}

GR_DEVICE std::byte* address_in_table(const DevicePages& pages, const PageId* table,
                                      std::int32_t first_layer, const HeadLine& line,
                                      std::int64_t token) {
  const std::int64_t page = token / pages.layout.page_size;
  return address_in_page(pages, first_layer, line, table[page],
                         token - page * pages.layout.page_size);
}

GR_DEVICE std::byte* address_in_heads(const DeviceHeads& heads, const HeadLine& line,
                                      std::int64_t token) {
  return heads.data + line.layer * heads.layer_stride + token * heads.token_stride +
         line.head * heads.head_stride;
}

struct AppendJob {
  AppendArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.tokens; }
  GR_DEVICE std::int32_t num_kv_heads() const { return arguments.pages.layout.num_kv_heads; }
  GR_DEVICE std::int32_t head_dim() const { return arguments.pages.layout.head_dim; }
  GR_DEVICE const DeviceHeads& heads(const HeadLine& line) const {
    return line.values ? arguments.values : arguments.keys;
  }
  GR_DEVICE DataType source_type(const HeadLine& line) const { return heads(line).dtype; }
  GR_DEVICE DataType target_type(const HeadLine&) const { return arguments.pages.layout.dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    const std::int64_t slot = arguments.slot_mapping[token];
    if (slot < 0) return false;
    const std::int64_t page = slot / arguments.pages.layout.page_size;
    ends = {address_in_heads(heads(line), line, token),
            address_in_page(arguments.pages, arguments.layers.first, line, page,
                            slot - page * arguments.pages.layout.page_size)};
    return true;
  }
};

struct GatherJob {
  GatherArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.tokens; }
  GR_DEVICE std::int32_t num_kv_heads() const { return arguments.pages.layout.num_kv_heads; }
  GR_DEVICE std::int32_t head_dim() const { return arguments.pages.layout.head_dim; }
  GR_DEVICE const DeviceHeads& heads(const HeadLine& line) const {
    return line.values ? arguments.values : arguments.keys;
  }
  GR_DEVICE DataType source_type(const HeadLine&) const { return arguments.pages.layout.dtype; }
  GR_DEVICE DataType target_type(const HeadLine& line) const { return heads(line).dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    ends = {address_in_table(arguments.pages, arguments.table, arguments.layers.first, line, token),
            address_in_heads(heads(line), line, token)};
    return true;
  }
};

struct CastCopyJob {
  CastCopyArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.end - arguments.begin; }
  GR_DEVICE std::int32_t num_kv_heads() const { return arguments.source.layout.num_kv_heads; }
  GR_DEVICE std::int32_t head_dim() const { return arguments.source.layout.head_dim; }
  GR_DEVICE DataType source_type(const HeadLine&) const { return arguments.source.layout.dtype; }
  GR_DEVICE DataType target_type(const HeadLine&) const { return arguments.target.layout.dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    const std::int64_t place = arguments.begin + token;
    ends = {address_in_table(arguments.source, arguments.source_table, 0, line, place),
            address_in_table(arguments.target, arguments.target_table, 0, line, place)};
    return true;
  }
};

// grid: (any, [layers, 2, heads]). Neighbouring threads move neighbouring pieces of a head, then
// those of the next token.
template <typename Job>
GR_KERNEL(kCopyThreads)
void head_copy_kernel(const Job job) {
  wait_for_dependencies();
  const HeadLine line = line_of(blockIdx.y, job.num_kv_heads());
  const DataType from = job.source_type(line);
  const DataType to = job.target_type(line);
  const std::int32_t head_dim = job.head_dim();
  const auto pieces = static_cast<std::uint32_t>((head_dim + kPieceElements - 1) / kPieceElements);
  const std::uint64_t total = static_cast<std::uint64_t>(job.tokens()) * pieces;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * kCopyThreads;
  for (std::uint64_t item = std::uint64_t{blockIdx.x} * kCopyThreads + threadIdx.x; item < total;
       item += stride) {
    // The launch keeps the count of pieces below 2^32, where a division is cheap.
    const std::uint32_t token = static_cast<std::uint32_t>(item) / pieces;
    const auto first =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(item) - token * pieces) *
        kPieceElements;
    Ends ends;
    if (!job.locate(line, token, ends)) continue;
    const std::int32_t left = head_dim - first;
    copy_piece(ends.source + first * element_size(from), from,
               ends.target + first * element_size(to), to,
               left < kPieceElements ? left : kPieceElements);
  }
}

// Vectors of 16 bytes that a thread has on their way at once.
inline constexpr std::int64_t kVectorsTogether = 4;

// grid: (blocks a page, pages); more pages than the grid has rows are taken in turns. Pages are
// whole multiples of 256 bytes. (A template, as every kernel: a program may hold the emulator's
// beside nvcc's, and the linker takes a plain one of nvcc's for both.)
template <typename Arguments>
GR_KERNEL(kCopyThreads)
void page_copy_kernel(const Arguments arguments) {
  wait_for_dependencies();
  const std::int64_t vectors = arguments.page_bytes / 16;
  for (std::int64_t index = blockIdx.y; index < arguments.count; index += gridDim.y) {
    const std::byte* const source =
        arguments.source + (arguments.source_pages != nullptr
                                ? arguments.source_pages[index] * KvLayout::kPageUnit
                                : index * arguments.page_bytes);
    std::byte* const target =
        arguments.target + (arguments.target_pages != nullptr
                                ? arguments.target_pages[index] * KvLayout::kPageUnit
                                : index * arguments.page_bytes);
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kCopyThreads;
    std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
    for (; at + (kVectorsTogether - 1) * step < vectors; at += kVectorsTogether * step) {
      Vec16 loaded[kVectorsTogether];
      GR_UNROLL
      for (int k = 0; k < kVectorsTogether; ++k) loaded[k] = load16(source + (at + k * step) * 16);
      GR_UNROLL
      for (int k = 0; k < kVectorsTogether; ++k) store16(target + (at + k * step) * 16, loaded[k]);
    }
    for (; at < vectors; at += step) store16(target + at * 16, load16(source + at * 16));
  }
}

}  // namespace glimprouter::device
