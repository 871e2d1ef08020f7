#include "device/device_arena.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace glimprouter {
namespace {

// Host memory that pages pass through on their way to and from the device.
constexpr std::size_t kStagingBytes = std::size_t{32} << 20;
// Neighbouring pages from this size on are moved by the copy engine, one copy a run; smaller ones
// by one kernel for all of them, which costs one launch instead of a call each.
constexpr std::int64_t kCopyEngineBytes = 64 << 10;

// Pages that lie side by side in the arena.
struct PageRun {
  std::size_t begin;
  std::size_t count;
};

std::vector<PageRun> runs_of(const KvLayout& layout, std::span<const PageId> pages) {
  const auto units = static_cast<PageId>(layout.page_bytes() / KvLayout::kPageUnit);
  std::vector<PageRun> runs;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (!runs.empty() && pages[i] == pages[i - 1] + units) {
      ++runs.back().count;
    } else {
      runs.push_back({i, 1});
    }
  }
  return runs;
}

}  // namespace

DeviceArena::DeviceArena(const Device& device, std::size_t bytes)
    : device_(device), memory_(device, bytes) {
  device.backend->clear(device.index, memory_.as<void>(), bytes, stream_);
  device.backend->wait(device.index, stream_);
}

ArenaFactory device_arena(const Device& device) {
  return [device](std::size_t bytes) { return std::make_unique<DeviceArena>(device, bytes); };
}

// What is in flight may still use the memory that goes now. An error has no one to go to.
DeviceArena::~DeviceArena() {
  try {
    device_.backend->wait(device_.index, stream_);
  } catch (const std::exception&) {
    return;
  }
}

// What a graph holds is ordered by who replays it.
void DeviceArena::follow(DeviceStream stream) {
  if (stream == stream_ || device_.backend->capturing(device_.index, stream)) return;
  device_.backend->order(device_.index, stream_, stream);
  stream_ = stream;
}

bool DeviceArena::reaches(std::int32_t device_type, std::int32_t device_id) const {
  return device_.holds(device_type, device_id);
}

void DeviceArena::copy_page(const KvLayout& layout, PageId from, PageId to) {
  device_.backend->copy(device_.index, data() + std::int64_t{to} * KvLayout::kPageUnit,
                        data() + std::int64_t{from} * KvLayout::kPageUnit,
                        static_cast<std::size_t>(layout.page_bytes()), stream_);
}

void DeviceArena::fill_page(const KvLayout& layout, PageId page, int byte) {
  const std::vector<std::byte> bytes(static_cast<std::size_t>(layout.page_bytes()),
                                     static_cast<std::byte>(byte));
  device_.backend->copy(device_.index, data() + std::int64_t{page} * KvLayout::kPageUnit,
                        bytes.data(), bytes.size(), stream_);
  device_.backend->wait(device_.index, stream_);
}

void DeviceArena::transfer(const SequencePages& moved, std::byte* pinned, bool to_host) {
  const KvLayout& layout = moved.layout;
  const std::span<const PageId> pages = moved.pages;
  const std::vector<PageRun> runs = runs_of(layout, pages);
  const auto count = static_cast<std::int64_t>(pages.size());
  if (count * layout.page_bytes() / static_cast<std::int64_t>(runs.size()) < kCopyEngineBytes) {
    const PageId* const list = upload(pages, stream_);
    const PageCopyArguments arguments =
        to_host ? PageCopyArguments{data(), list, pinned, nullptr, count, layout.page_bytes()}
                : PageCopyArguments{pinned, nullptr, data(), list, count, layout.page_bytes()};
    device_.backend->pages->copy_pages(device_.index, arguments, stream_);
    return;
  }
  for (const PageRun& run : runs) {
    std::byte* const page = data() + std::int64_t{pages[run.begin]} * KvLayout::kPageUnit;
    std::byte* const host = pinned + run.begin * static_cast<std::size_t>(layout.page_bytes());
    device_.backend->copy(device_.index, to_host ? host : page, to_host ? page : host,
                          run.count * static_cast<std::size_t>(layout.page_bytes()), stream_);
  }
}

// As many pages as the staging memory takes, which is allocated when it is first needed.
std::size_t DeviceArena::pages_together(const KvLayout& layout, std::size_t pages) {
  const auto page_bytes = static_cast<std::size_t>(layout.page_bytes());
  const std::size_t bytes = std::max(std::min(kStagingBytes, pages * page_bytes), page_bytes);
  if (staging_bytes_ < bytes) {
    staging_bytes_ = 0;
    staging_.emplace(device_, bytes);
    staging_bytes_ = bytes;
  }
  return staging_bytes_ / page_bytes;
}

void DeviceArena::read_pages(const SequencePages& source, std::byte* target) {
  const KvLayout& layout = source.layout;
  std::span<const PageId> pages = source.pages;
  while (!pages.empty()) {
    const std::size_t count = std::min(pages_together(layout, pages.size()), pages.size());
    transfer({layout, pages.first(count)}, staging_->data(), /*to_host=*/true);
    device_.backend->wait(device_.index, stream_);
    const std::size_t bytes = count * static_cast<std::size_t>(layout.page_bytes());
    std::memcpy(target, staging_->data(), bytes);
    target += bytes;
    pages = pages.subspan(count);
  }
}

void DeviceArena::write_pages(const SequencePages& target, const std::byte* source) {
  const KvLayout& layout = target.layout;
  std::span<const PageId> pages = target.pages;
  while (!pages.empty()) {
    const std::size_t count = std::min(pages_together(layout, pages.size()), pages.size());
    const std::size_t bytes = count * static_cast<std::size_t>(layout.page_bytes());
    std::memcpy(staging_->data(), source, bytes);
    transfer({layout, pages.first(count)}, staging_->data(), /*to_host=*/false);
    device_.backend->wait(device_.index, stream_);
    source += bytes;
    pages = pages.subspan(count);
  }
}

}  // namespace glimprouter
