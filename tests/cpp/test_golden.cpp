// Golden hashes: every instruction set gives the same bits, today and tomorrow, over rows of every
// kind, type and sampling mode. The environment variable GLIMPROUTER_GOLDEN_ROWS (2000, 20000 or
// 100000, the default) shortens the run for emulators and sanitizers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "glimprouter/row_op.hpp"
#include "golden_hash.hpp"
#include "golden_rows.hpp"

namespace glimprouter::golden {
namespace {

// Evaluates the rows with the active backend; one hash a row.
std::vector<std::uint64_t> row_hashes(std::uint64_t rows) {
  RowWorkspace workspace(151936);
  Case test_case;
  std::vector<float> values;
  std::vector<std::uint64_t> hashes;
  hashes.reserve(rows);
  for (std::uint64_t index = 0; index < rows; ++index) {
    fill_row(index, test_case, values);
    fill_request(index, test_case);
    std::array<float, 3> logprobs{};
    const RowResult result =
        evaluate_row(test_case.row, test_case.request, workspace, logprobs.data());
    hashes.push_back(hash_of(result, logprobs));
  }
  return hashes;
}

// Every instruction set that this build has and this processor runs, or the one that
// GLIMPROUTER_ISA names.
std::vector<std::string> backends_to_test() {
  if (std::getenv("GLIMPROUTER_ISA") != nullptr) return {std::string(active_backend().name)};
  std::vector<std::string> names;
  for (const CpuKernels* kernels : compiled_backends()) {
    if (backend_supported(*kernels)) names.emplace_back(kernels->name);
  }
  return names;
}

std::uint64_t rows_to_test() {
  const char* rows = std::getenv("GLIMPROUTER_GOLDEN_ROWS");
  return rows == nullptr ? 100000 : std::strtoull(rows, nullptr, 10);
}

// Where two instruction sets part, which the one hash cannot say.
std::string first_difference(const std::vector<std::uint64_t>& first,
                             const std::vector<std::uint64_t>& other) {
  const auto place = std::mismatch(first.begin(), first.end(), other.begin()).first;
  if (place == first.end()) return "none";
  const auto index = static_cast<std::uint64_t>(place - first.begin());
  std::ostringstream text;
  text << "row " << index << ": kind " << static_cast<int>(row_kind(random_word(index, 0) >> 32))
       << ", V " << vocabulary_of(index, random_word(index, 1)) << ", dtype " << index % 3
       << ", mode " << random_word(index, 2) % 10;
  return text.str();
}

TEST(Golden, EveryInstructionSetGivesTheSpecifiedBits) {
  const std::uint64_t rows = rows_to_test();
  const auto expected = kExpected.find(rows);
  ASSERT_NE(expected, kExpected.end()) << "no golden hash for " << rows << " rows";
  const std::string before(active_backend().name);
  std::vector<std::uint64_t> first;
  for (const std::string& name : backends_to_test()) {
    set_active_backend(name);
    const std::vector<std::uint64_t> hashes = row_hashes(rows);
    if (first.empty()) first = hashes;
    Fnv1a total;
    for (const std::uint64_t hash : hashes) total.add(hash);
    EXPECT_EQ(total.value(), expected->second)
        << std::hex << "0x" << total.value() << std::dec << " by " << name
        << "; first difference from the first instruction set: " << first_difference(first, hashes);
  }
  set_active_backend(before);
}

// The test must notice one flipped bit: the hash depends on every output.
TEST(Golden, HashNoticesEveryOutput) {
  const RowResult result{RowStatus::kOk, 1, 2, 0.5f, 1.5f, 0.25f, 0.125f, -1.0f, 0.75f};
  const std::array<float, 3> logprobs = {-1.0f, -2.0f, -3.0f};
  const std::uint64_t base = hash_of(result, logprobs);
  const auto next = [](float value) {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) + 1);
  };
  std::vector<RowResult> changed(9, result);
  changed[0].status = RowStatus::kNan;
  changed[1].argmax += 1;
  changed[2].token += 1;
  changed[3].entropy = next(result.entropy);
  changed[4].logsumexp = next(result.logsumexp);
  changed[5].max_prob = next(result.max_prob);
  changed[6].margin = next(result.margin);
  changed[7].logprob = next(result.logprob);
  changed[8].varentropy = next(result.varentropy);
  for (const RowResult& other : changed) EXPECT_NE(hash_of(other, logprobs), base);
  EXPECT_NE(hash_of(result, {-1.0f, -2.0f, next(-3.0f)}), base);
}

}  // namespace
}  // namespace glimprouter::golden
