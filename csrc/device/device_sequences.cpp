#include "device/device_sequences.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace glimprouter {
namespace {

static_assert(std::is_trivially_copyable_v<SequenceCore>);
static_assert(std::is_trivially_copyable_v<TokenRecord>);

constexpr std::size_t kFieldAlignment = 16;

template <typename Field>
std::size_t field_bytes(const Field& field) {
  const std::size_t bytes = field.size() * sizeof(field[0]);
  return (bytes + kFieldAlignment - 1) / kFieldAlignment * kFieldAlignment;
}

std::size_t block_bytes(const StepOutputs& outputs) {
  std::size_t bytes = 0;
  for_columns(outputs, outputs, [&](const char*, std::uint32_t, const auto& column, const auto&) {
    bytes += field_bytes(column);
  });
  return bytes;
}

}  // namespace

DeviceOutputs::DeviceOutputs(const Device& device, const StepOutputs& outputs)
    : device_(device),
      logprob_ids_(device, outputs.logprob_ids.size() * sizeof(std::int32_t)),
      block_(device, block_bytes(outputs)) {
  std::size_t offset = 0;
  for_columns(outputs, view_, [&](const char*, std::uint32_t, const auto& column, auto& pointer) {
    using Value = std::remove_reference_t<decltype(*pointer)>;
    pointer = column.empty() ? nullptr : reinterpret_cast<Value*>(block_.data() + offset);
    offset += field_bytes(column);
  });
  view_.logprob_ids = logprob_ids_.as<const std::int32_t>();
  view_.num_logprob_ids = static_cast<std::int32_t>(outputs.logprob_ids.size());
  if (!outputs.logprob_ids.empty()) {
    device.backend->copy(device.index, logprob_ids_.as<void>(), outputs.logprob_ids.data(),
                         logprob_ids_.bytes(), nullptr);
    device.backend->wait(device.index, nullptr);
  }
}

DeviceOutputs::~DeviceOutputs() {
  try {
    device_.backend->wait_all(device_.index);
  } catch (const std::exception&) {
    return;
  }
}

void DeviceOutputs::unpack(StepOutputs& outputs, std::int64_t rows) const {
  const std::byte* source = block_.data();
  for_columns(outputs, outputs, [&](const char*, std::uint32_t asked, auto& column, auto&) {
    const std::size_t count = outputs.size_of(asked, rows);
    if (count > 0) std::memcpy(column.data(), source, count * sizeof(column[0]));
    source += field_bytes(column);
  });
}

DeviceSequences::DeviceSequences(const Device& device, std::int32_t max_sequences,
                                 const StepBoundary& small, const StepBoundary& large)
    : device_(device),
      max_sequences_(max_sequences),
      known_open_(static_cast<std::size_t>(max_sequences), 0) {
  const auto count = static_cast<std::size_t>(max_sequences);
  const StepBoundary* const boundaries[] = {&small, &large};
  for (int model = 0; model < 2; ++model) {
    const StepBoundary& boundary = *boundaries[model];
    num_states_[model] = boundary.num_states();
    if (model == 1 && &large == &small) continue;
    tables_[model] = DeviceMemory(
        device, static_cast<std::size_t>(boundary.table_size()) * sizeof(std::uint16_t));
    copy(tables_[model].as<void>(), boundary.table().effects, tables_[model].bytes());
    texts_[model] = DeviceMemory(
        device, static_cast<std::size_t>(boundary.vocabulary_size()) * sizeof(TokenText));
    copy(texts_[model].as<void>(), boundary.table().texts, texts_[model].bytes());
  }
  const std::int64_t widest = std::max(small.vocabulary_size(), large.vocabulary_size());
  // All that any step needs: a captured one finds it there.
  const auto reserve = [&](StreamScratch& scratch, std::size_t bytes) {
    scratch.reserve(device, bytes, stream_, "a router cannot be made while a graph is captured");
  };
  reserve(tiles_, count * static_cast<std::size_t>(tiles_of(widest)) * sizeof(TileStatistics));
  reserve(tickets_, count * sizeof(std::uint32_t));
  reserve(row_numbers_, count * sizeof(std::int32_t));
  cores_ = DeviceMemory(device, count * sizeof(SequenceCore));
  open_ = DeviceMemory(device, count);
  device.backend->clear(device.index, open_.as<void>(), open_.bytes(), stream_);
  device.backend->wait(device.index, stream_);
}

BoundaryTable DeviceSequences::table(Model model) const {
  const auto index = static_cast<std::size_t>(model);
  const std::size_t own = tables_[index].bytes() == 0 ? 0 : index;  // one for both
  return {tables_[own].as<const std::uint16_t>(), texts_[own].as<const TokenText>(),
          num_states_[index]};
}

// Behind what is in flight on any stream, and finished when it returns.
void DeviceSequences::copy(void* target, const void* source, std::size_t bytes) {
  if (bytes == 0) return;
  device_.backend->wait_all(device_.index);
  device_.backend->copy(device_.index, target, source, bytes, nullptr);
  device_.backend->wait(device_.index, nullptr);
}

void DeviceSequences::reserve_tokens(std::int64_t tokens) {
  if (tokens <= log_capacity_) return;
  const auto row_bytes = [](std::int64_t capacity) {
    return static_cast<std::size_t>(capacity) * sizeof(TokenRecord);
  };
  DeviceMemory larger(device_, static_cast<std::size_t>(max_sequences_) * row_bytes(tokens));
  for (std::int32_t row = 0; row < max_sequences_ && log_capacity_ > 0; ++row) {
    copy(larger.as<TokenRecord>() + row * tokens, log_.as<TokenRecord>() + row * log_capacity_,
         row_bytes(log_capacity_));
  }
  log_ = std::move(larger);
  log_capacity_ = tokens;
}

void DeviceSequences::upload(std::int32_t row, const Sequence& sequence) {
  const std::uint8_t open = sequence.open ? 1 : 0;
  const SequenceCore& core = sequence;
  if (sequence.open) {
    copy(log_.as<TokenRecord>() + row * log_capacity_, sequence.log.data(),
         sequence.log.size() * sizeof(TokenRecord));
    copy(cores_.as<SequenceCore>() + row, &core, sizeof core);
  }
  std::uint8_t& known = known_open_[static_cast<std::size_t>(row)];
  if (known == open) return;
  copy(open_.as<std::uint8_t>() + row, &open, 1);
  known = open;
}

void DeviceSequences::download(std::int32_t row, Sequence& sequence) {
  SequenceCore core;
  copy(&core, cores_.as<SequenceCore>() + row, sizeof core);
  std::vector<TokenRecord> log(
      static_cast<std::size_t>(core.state.think_tokens + core.state.answer_tokens));
  copy(log.data(), log_.as<TokenRecord>() + row * log_capacity_, log.size() * sizeof(TokenRecord));
  static_cast<SequenceCore&>(sequence) = core;
  sequence.log = std::move(log);
}

bool DeviceSequences::attached(const StepOutputs& outputs) const {
  const DeviceOutputs* const present = outputs.device.get();
  return present != nullptr && present->device().backend == device_.backend &&
         present->device().index == device_.index;
}

void DeviceSequences::attach(StepOutputs& outputs) const {
  if (attached(outputs)) return;
  outputs.device = std::make_shared<DeviceOutputs>(device_, outputs);
}

void DeviceSequences::collect(StepOutputs& outputs) const {
  device_.backend->wait(device_.index, stream_);
  outputs.device->unpack(outputs, outputs.launched);
}

// A replayed graph runs on a stream that is not known here.
void DeviceSequences::collect_all(StepOutputs& outputs) const {
  device_.backend->wait_all(device_.index);
  outputs.device->unpack(outputs, outputs.launched);
}

// A graph can neither take memory nor read a list of the caller's again.
void DeviceSequences::check_capture(std::size_t rows, const StepOutputs& outputs,
                                    DeviceStream stream) const {
  const bool many = rows > static_cast<std::size_t>(kRowsByValue);
  if ((attached(outputs) && !many) || !device_.backend->capturing(device_.index, stream)) return;
  throw std::runtime_error(
      many ? "a captured step takes at most " + std::to_string(kRowsByValue) +
                 " rows as a list; pass them as an int32 tensor in device memory"
           : std::string("outputs cannot get their device memory while a graph is captured; make "
                         "them by this router's outputs(n) before"));
}

template <typename Value>
const Value* DeviceSequences::send(std::span<const Value> values, const StreamScratch& memory,
                                   DeviceStream stream) const {
  if (values.empty()) return nullptr;
  device_.backend->copy(device_.index, memory.as<void>(), values.data(), values.size_bytes(),
                        stream);
  return memory.as<const Value>();
}

// What a step needs was there from the beginning.
void DeviceSequences::take_scratch(const StepCall& call, DeviceStream stream) {
  if (call.kind == RowsOf::kStep) return;
  const auto rows = static_cast<std::size_t>(call.logits.rows);
  const auto reserve = [&](StreamScratch& scratch, std::size_t bytes) {
    scratch.reserve(device_, bytes, stream, "drafts cannot be captured into a graph");
  };
  reserve(drafted_tiles_,
          rows * static_cast<std::size_t>(tiles_of(call.logits.width)) * sizeof(TileStatistics));
  reserve(drafted_tickets_, 2 * rows * sizeof(std::uint32_t));
  reserve(drafted_, call.drafted.size_bytes());
  reserve(drafts_, call.drafts.size_bytes());
  reserve(results_, rows * sizeof(RowResult));
}

void DeviceSequences::launch(const StepCall& call, StepOutputs& outputs, DeviceStream stream) {
  if (call.kind != RowsOf::kStep) {
    refuse_capture(device_, stream, "drafts cannot be captured into a graph");
  }
  check_capture(call.rows.size(), outputs, stream);
  attach(outputs);
  if (stream != stream_) device_.backend->order(device_.index, stream_, stream);
  stream_ = stream;
  take_scratch(call, stream);
  StepArguments arguments;
  const bool steps = call.kind == RowsOf::kStep;
  arguments.workspace = {(steps ? tiles_ : drafted_tiles_).as<TileStatistics>(),
                         (steps ? tickets_ : drafted_tickets_).as<std::uint32_t>()};
  arguments.logits = call.logits;
  arguments.kind = call.kind;
  arguments.model = call.model;
  arguments.writer = call.writer;
  arguments.boundary = table(call.model);
  arguments.sequences = cores_.as<SequenceCore>();
  arguments.num_sequences = max_sequences_;
  arguments.open = open_.as<const std::uint8_t>();
  arguments.log = log_.as<TokenRecord>();
  arguments.log_capacity = log_capacity_;
  arguments.outputs = outputs.device->view();
  arguments.row_numbers = call.device_rows;
  arguments.drafted = send(call.drafted, drafted_, stream);
  arguments.drafts = send(call.drafts, drafts_, stream);
  arguments.results = results_.as<RowResult>();
  if (call.device_rows == nullptr && call.drafted.empty()) {
    if (call.rows.size() > kRowsByValue) {
      arguments.row_numbers = send(call.rows, row_numbers_, stream);
    } else {
      std::copy(call.rows.begin(), call.rows.end(), arguments.rows_by_value);
    }
  }
  device_.backend->rows->step(device_.index, arguments, stream);
}

}  // namespace glimprouter
