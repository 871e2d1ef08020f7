#include "device/device_evaluate.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "arithmetic/tile_statistics.hpp"

namespace glimprouter {
namespace {

constexpr std::int64_t kMaxRows = 65535;  // of a grid

// Scratch memory of one stream.
struct StreamWorkspace {
  DeviceMemory tiles;
  DeviceMemory tickets;
  DeviceMemory requests;
};

// Makes room; what is in flight may still use the old memory.
void grow(DeviceMemory& memory, const Device& device, std::size_t bytes, DeviceStream stream) {
  if (memory.bytes() >= bytes) return;
  if (device.backend->capturing(device.index, stream)) {
    throw std::runtime_error(
        "this batch needs more scratch memory than its stream has, and memory cannot be taken "
        "while "
        "a graph is captured; call once with the largest batch on the capturing stream before, or "
        "use StepRouter.launch");
  }
  DeviceMemory larger(device, bytes);
  device.backend->clear(device.index, larger.as<void>(), bytes, stream);
  device.backend->wait(device.index, stream);
  memory = std::move(larger);
}

// Never destroyed: at the end of the process the device may be gone before it.
StreamWorkspace& workspace_of(const Device& device, DeviceStream stream) {
  using Key = std::tuple<const DeviceBackend*, int, DeviceStream>;
  static auto& workspaces = *new std::map<Key, StreamWorkspace>;
  return workspaces[{device.backend, device.index, stream}];
}

}  // namespace

void evaluate_rows(const Device& device, const LogitsView& logits, const RowRequest& request,
                   std::span<const RowRequest> requests, RowResult* results, float* logprobs,
                   DeviceStream stream) {
  if (logits.rows > kMaxRows) {
    throw std::invalid_argument("logits have " + std::to_string(logits.rows) +
                                " rows; a device takes at most " + std::to_string(kMaxRows) +
                                " in one call");
  }
  if (logits.rows == 0) return;
  static auto& mutex = *new std::mutex;
  const std::lock_guard lock(mutex);
  StreamWorkspace& workspace = workspace_of(device, stream);
  const auto rows = static_cast<std::size_t>(logits.rows);
  const auto tiles = static_cast<std::size_t>(tiles_of(logits.width));
  grow(workspace.tickets, device, rows * sizeof(std::uint32_t), stream);
  grow(workspace.tiles, device, rows * tiles * sizeof(TileStatistics), stream);
  EvaluateArguments arguments{
      {workspace.tiles.as<TileStatistics>(), workspace.tickets.as<std::uint32_t>()},
      logits,
      request,
      nullptr,
      results,
      logprobs};
  if (!requests.empty()) {
    if (device.backend->capturing(device.index, stream)) {
      throw std::runtime_error(
          "rows with parameters of their own cannot be captured into a graph, which would read "
          "them "
          "from memory that is gone when it is replayed; use StepRouter.launch");
    }
    grow(workspace.requests, device, requests.size_bytes(), stream);
    device.backend->copy(device.index, workspace.requests.as<void>(), requests.data(),
                         requests.size_bytes(), stream);
    arguments.requests = workspace.requests.as<const RowRequest>();
  }
  device.backend->rows->evaluate(device.index, arguments, stream);
}

}  // namespace glimprouter
