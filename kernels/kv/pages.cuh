// Keys and values to, from and between pages: one launch over all layers that are asked for. A Job
// says where a token of one head lies on both sides:
//
//   std::int64_t tokens(); const LayerLayout& layer(); int parts();  of keys and values, or of keys
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

// [layers, key or value, head]; `parts` is 1 where there are keys alone.
GR_DEVICE HeadLine line_of(std::uint32_t index, std::uint32_t parts, std::int32_t num_kv_heads) {
  const auto heads = static_cast<std::uint32_t>(num_kv_heads);
  const std::uint32_t part = index / heads;
  return {static_cast<std::int32_t>(part / parts), static_cast<std::int32_t>(index - part * heads),
          part % parts != 0};
}

GR_DEVICE std::byte* address_in_page(const DevicePages& pages, const HeadLine& line,
                                     std::int64_t page, std::int64_t place) {
  const LayerLayout& layer = pages.layer;
  std::byte* const begin =
      pages.arena + page * KvLayout::kPageUnit + line.layer * pages.layer_stride;
  if (line.values) {
    return begin + layer.value_offset + line.head * layer.value_head_stride +
           place * layer.value_token_stride;
  }
  return begin + layer.key_offset + line.head * layer.key_head_stride +
         place * layer.key_token_stride;
}

GR_DEVICE std::byte* address_in_table(const DevicePages& pages, const PageId* table,
                                      const HeadLine& line, std::int64_t token) {
  const std::int64_t page = token / pages.layer.page_size;
  return address_in_page(pages, line, table[page], token - page * pages.layer.page_size);
}

GR_DEVICE std::byte* address_in_heads(const DeviceHeads& heads, const HeadLine& line,
                                      std::int64_t token) {
  return heads.data + line.layer * heads.layer_stride + token * heads.token_stride +
         line.head * heads.head_stride;
}

struct AppendJob {
  AppendArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.tokens; }
  GR_DEVICE const LayerLayout& layer() const { return arguments.pages.layer; }
  GR_DEVICE std::uint32_t parts() const { return arguments.values.data != nullptr ? 2 : 1; }
  GR_DEVICE const DeviceHeads& heads(const HeadLine& line) const {
    return line.values ? arguments.values : arguments.keys;
  }
  GR_DEVICE DataType source_type(const HeadLine& line) const { return heads(line).dtype; }
  GR_DEVICE DataType target_type(const HeadLine&) const { return arguments.pages.layer.dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    const std::int64_t slot = arguments.slot_mapping[token];
    if (slot < 0) return false;
    const std::int64_t page = slot / arguments.pages.layer.page_size;
    ends = {address_in_heads(heads(line), line, token),
            address_in_page(arguments.pages, line, page,
                            slot - page * arguments.pages.layer.page_size)};
    return true;
  }
};

struct GatherJob {
  GatherArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.tokens; }
  GR_DEVICE const LayerLayout& layer() const { return arguments.pages.layer; }
  GR_DEVICE std::uint32_t parts() const { return arguments.values.data != nullptr ? 2 : 1; }
  GR_DEVICE const DeviceHeads& heads(const HeadLine& line) const {
    return line.values ? arguments.values : arguments.keys;
  }
  GR_DEVICE DataType source_type(const HeadLine&) const { return arguments.pages.layer.dtype; }
  GR_DEVICE DataType target_type(const HeadLine& line) const { return heads(line).dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    ends = {address_in_table(arguments.pages, arguments.table, line, token),
            address_in_heads(heads(line), line, token)};
    return true;
  }
};

struct CastCopyJob {
  CastCopyArguments arguments;

  GR_DEVICE std::int64_t tokens() const { return arguments.end - arguments.begin; }
  GR_DEVICE const LayerLayout& layer() const { return arguments.source.layer; }
  GR_DEVICE std::uint32_t parts() const { return layer().latent() ? 1 : 2; }
  GR_DEVICE DataType source_type(const HeadLine&) const { return arguments.source.layer.dtype; }
  GR_DEVICE DataType target_type(const HeadLine&) const { return arguments.target.layer.dtype; }
  GR_DEVICE bool locate(const HeadLine& line, std::int64_t token, Ends& ends) const {
    const std::int64_t place = arguments.begin + token;
    ends = {address_in_table(arguments.source, arguments.source_table, line, place),
            address_in_table(arguments.target, arguments.target_table, line, place)};
    return true;
  }
};

// grid: (any, [layers, parts, heads]). Neighbouring threads move neighbouring pieces of a head,
// then those of the next token.
template <typename Job>
GR_KERNEL(kCopyThreads)
void head_copy_kernel(const Job job) {
  launch_dependents();
  wait_for_dependencies();
  const HeadLine line = line_of(blockIdx.y, job.parts(), job.layer().num_kv_heads);
  const DataType from = job.source_type(line);
  const DataType to = job.target_type(line);
  const std::int32_t head_dim = line.values ? job.layer().value_dim : job.layer().head_dim;
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
  launch_dependents();
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
