// Saving a sequence as bytes and reading it back (StepRouter::save, StepRouter::load).
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "base/saved_bytes.hpp"
#include "glimprouter/step_router.hpp"
#include "router/sequence.hpp"
#include "router/step_device.hpp"

namespace glimprouter {
namespace {

static_assert(std::is_trivially_copyable_v<SequenceOptions>);
static_assert(std::is_trivially_copyable_v<SequenceState>);
// They are copied into a file as they are: a sequence that is the same has the same bytes.
static_assert(std::has_unique_object_representations_v<SequenceState>);
static_assert(std::has_unique_object_representations_v<SequenceStart>);
static_assert(sizeof(SequenceLimits) == sizeof(float) + 4 + 6 * sizeof(std::int32_t));
static_assert(sizeof(SequenceOptions) == sizeof(SequenceLimits) + sizeof(SequenceStart) + 1 +
                                             sizeof(SamplingParameters) + sizeof(std::int32_t) +
                                             2 * sizeof(std::uint64_t));

// Everything of fixed size. A change of any of these types needs a new version.
struct SavedHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t header_size;
  std::uint64_t boundary;
  std::uint64_t large_boundary;
  std::uint64_t tokens;
  SequenceOptions options;
  SequenceState state;
  std::uint64_t forks;
  std::int32_t candidate_token;
  float candidate_logprob;
  float candidate_entropy;
  double step_logprob;
  double step_entropy;
};
static_assert(std::is_trivially_copyable_v<SavedHeader>);

constexpr char kMagic[8] = {'G', 'R', 'S', 'T', 'A', 'T', 'E', '\n'};
constexpr std::uint32_t kVersion = 6;
constexpr std::size_t kRecordBytes = 13;  // token, logprob, entropy, writer

bool holds_records(std::size_t bytes, std::uint64_t count) {
  return bytes % kRecordBytes == 0 && bytes / kRecordBytes == count;
}

// A checksum does not stop who computes it: what indexes memory must lie in its range.
void check_state(const SavedHeader& header, const StepBoundary& small, const StepBoundary& large) {
  const SequenceState& state = header.state;
  const SequenceLimits& limits = header.options.limits;
  const std::int32_t vocabulary = small.vocabulary_size();
  const bool larges = waits_for(state, limits, Model::kLarge);  // whose state it is
  const std::int32_t num_states = larges ? large.num_states() : small.num_states();
  const bool counts = state.step_index >= 0 && state.step_tokens >= 0 && state.large_tokens >= 0 &&
                      state.think_tokens >= 0 && state.answer_tokens >= 0 && state.position >= 0 &&
                      state.finished_steps >= 0;
  if (!counts || state.phase > Phase::kDone || state.automaton >= num_states ||
      limits.comparison > Comparison::kGreaterEqual || limits.route > RouteMode::kManual ||
      limits.answer_model > Model::kLarge || header.options.start.automaton >= small.num_states() ||
      header.candidate_token >= vocabulary ||
      header.tokens != static_cast<std::uint64_t>(state.think_tokens) +
                           static_cast<std::uint64_t>(state.answer_tokens)) {
    throw std::invalid_argument("the saved sequence is damaged: a value is out of its range");
  }
}

}  // namespace

std::string StepRouter::save(std::int32_t row) {
  const Use use(*this);
  const Sequence& sequence = at(row);
  SavedHeader header;
  std::memset(static_cast<void*>(&header), 0, sizeof header);  // no indeterminate padding in a file
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.header_size = sizeof header;
  header.boundary = boundary_->fingerprint();
  header.large_boundary = large_boundary_->fingerprint();
  header.tokens = sequence.log.size();
  header.options = sequence.options;
  header.state = sequence.state;
  header.forks = sequence.forks;
  header.candidate_token = sequence.candidate_token;
  header.candidate_logprob = sequence.candidate_logprob;
  header.candidate_entropy = sequence.candidate_entropy;
  header.step_logprob = sequence.step_logprob;
  header.step_entropy = sequence.step_entropy;
  std::string bytes(sizeof header, '\0');
  std::memcpy(bytes.data(), &header, sizeof header);
  for (const TokenRecord& record : sequence.log) {
    char entry[kRecordBytes];
    std::memcpy(entry, &record.token, 4);
    std::memcpy(entry + 4, &record.logprob, 4);
    std::memcpy(entry + 8, &record.entropy, 4);
    entry[12] = static_cast<char>(record.writer);
    bytes.append(entry, sizeof entry);
  }
  append_checksum(bytes);
  return bytes;
}

std::int32_t StepRouter::load(std::string_view saved) {
  const Use use(*this);
  SavedHeader header;
  if (saved.size() < sizeof header + sizeof(std::uint64_t) ||
      std::memcmp(saved.data(), kMagic, sizeof kMagic) != 0) {
    throw std::invalid_argument("these bytes are not a saved sequence (they come from save())");
  }
  std::memcpy(static_cast<void*>(&header), saved.data(), sizeof header);
  if (header.version != kVersion || header.header_size != sizeof header) {
    throw std::invalid_argument(
        "the sequence was saved by another version of glimprouter (format " +
        std::to_string(header.version) + ", this one reads " + std::to_string(kVersion) + ")");
  }
  const std::string_view body = checked_bytes(saved, "sequence");
  if (!holds_records(body.size() - sizeof header, header.tokens)) refuse_damaged("sequence");
  if (header.boundary != boundary_->fingerprint() ||
      header.large_boundary != large_boundary_->fingerprint()) {
    throw std::invalid_argument(
        "the sequence was saved by a router with another boundary (tokenizer or delimiters)");
  }
  check_state(header, *boundary_, *large_boundary_);
  const std::int32_t row = free_row();
  Sequence sequence;
  sequence.options = header.options;
  sequence.options.shared_states = boundary_->shared_states(*large_boundary_);
  sequence.state = header.state;
  sequence.forks = header.forks;
  sequence.candidate_token = header.candidate_token;
  sequence.candidate_logprob = header.candidate_logprob;
  sequence.candidate_entropy = header.candidate_entropy;
  sequence.step_logprob = header.step_logprob;
  sequence.step_entropy = header.step_entropy;
  sequence.log.reserve(static_cast<std::size_t>(header.tokens) + 1024);
  for (std::uint64_t i = 0; i < header.tokens; ++i) {
    const char* entry = saved.data() + sizeof header + kRecordBytes * i;
    TokenRecord record{};
    std::memcpy(&record.token, entry, 4);
    std::memcpy(&record.logprob, entry + 4, 4);
    std::memcpy(&record.entropy, entry + 8, 4);
    record.writer = entry[12] == 0 ? Model::kSmall : Model::kLarge;
    if (record.token < 0 || record.token >= boundary(record.writer).vocabulary_size()) {
      throw std::invalid_argument("the saved sequence holds a token outside the vocabulary");
    }
    sequence.log.push_back(record);
  }
  sequence.open = true;
  if (on_device_) on_device_->reserve_tokens(most_tokens(sequence));
  replace(row, std::move(sequence));
  return row;
}

}  // namespace glimprouter
