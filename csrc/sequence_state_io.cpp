// Saving a sequence as bytes and reading it back (StepRouter::save, StepRouter::load).
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "glimprouter/step_router.hpp"

namespace glimprouter {
namespace {

static_assert(std::is_trivially_copyable_v<SequenceOptions>);
static_assert(std::is_trivially_copyable_v<SequenceState>);

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
};
static_assert(std::is_trivially_copyable_v<SavedHeader>);

constexpr char kMagic[8] = {'G', 'R', 'S', 'T', 'A', 'T', 'E', '\n'};
constexpr std::uint32_t kVersion = 1;

std::uint64_t checksum(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
  }
  return hash;
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
  std::string bytes(sizeof header, '\0');
  std::memcpy(bytes.data(), &header, sizeof header);
  for (const TokenRecord& record : sequence.log) {
    char entry[5];
    std::memcpy(entry, &record.token, 4);
    entry[4] = static_cast<char>(record.writer);
    bytes.append(entry, sizeof entry);
  }
  const std::uint64_t sum = checksum(bytes);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
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
  const std::string_view body = saved.substr(0, saved.size() - sizeof(std::uint64_t));
  std::uint64_t sum = 0;
  std::memcpy(&sum, saved.data() + body.size(), sizeof sum);
  if (sum != checksum(body) || body.size() != sizeof header + 5 * header.tokens) {
    throw std::invalid_argument("the saved sequence is damaged or cut short");
  }
  if (header.boundary != boundary_->fingerprint() ||
      header.large_boundary != large_boundary_->fingerprint()) {
    throw std::invalid_argument(
        "the sequence was saved by a router with another boundary (tokenizer or delimiters)");
  }
  const std::int32_t row = free_row();
  Sequence sequence;
  sequence.options = header.options;
  sequence.state = header.state;
  sequence.forks = header.forks;
  sequence.candidate_token = header.candidate_token;
  sequence.candidate_logprob = header.candidate_logprob;
  sequence.candidate_entropy = header.candidate_entropy;
  sequence.step_logprob = header.step_logprob;
  sequence.log.reserve(static_cast<std::size_t>(header.tokens) + 1024);
  for (std::uint64_t i = 0; i < header.tokens; ++i) {
    const char* entry = saved.data() + sizeof header + 5 * i;
    TokenRecord record{};
    std::memcpy(&record.token, entry, 4);
    record.writer = entry[4] == 0 ? Model::kSmall : Model::kLarge;
    sequence.log.push_back(record);
  }
  sequence.open = true;
  sequences_[static_cast<std::size_t>(row)] = std::move(sequence);
  return row;
}

}  // namespace glimprouter
