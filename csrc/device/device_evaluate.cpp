#include "device/device_evaluate.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "arithmetic/tile_statistics.hpp"
#include "device/stream_scratch.hpp"

namespace glimprouter {
namespace {

constexpr std::int64_t kMaxRows = 65535;  // of a grid

constexpr const char* kGrowsInCapture =
    "this batch needs more scratch memory than its stream has, and memory cannot be taken while a "
    "graph is captured; call once with the largest batch on the capturing stream before, or use "
    "StepRouter.launch";
constexpr const char* kRequestsInCapture =
    "rows with parameters of their own cannot be captured into a graph, which would read them from "
    "memory that is gone when it is replayed; use StepRouter.launch";

// Scratch memory of one stream.
struct StreamWorkspace {
  StreamScratch tiles;
  StreamScratch tickets;
  StreamScratch requests;
};

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
  workspace.tickets.reserve(device, rows * sizeof(std::uint32_t), stream, kGrowsInCapture);
  workspace.tiles.reserve(device, rows * tiles * sizeof(TileStatistics), stream, kGrowsInCapture);
  EvaluateArguments arguments{
      {workspace.tiles.as<TileStatistics>(), workspace.tickets.as<std::uint32_t>()},
      logits,
      request,
      nullptr,
      results,
      logprobs};
  if (!requests.empty()) {
    refuse_capture(device, stream, kRequestsInCapture);
    workspace.requests.reserve(device, requests.size_bytes(), stream, kGrowsInCapture);
    device.backend->copy(device.index, workspace.requests.as<void>(), requests.data(),
                         requests.size_bytes(), stream);
    arguments.requests = workspace.requests.as<const RowRequest>();
  }
  device.backend->rows->evaluate(device.index, arguments, stream);
}

}  // namespace glimprouter
