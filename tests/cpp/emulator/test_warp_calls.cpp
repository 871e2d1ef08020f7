// Warp calls of the emulator against plain models of what the CUDA C++ Programming Guide says.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/base/launch.cuh"

namespace glimprouter::device {
namespace {

using Generator = std::mt19937_64;

enum class Kind { kIndex, kUp, kDown, kXor };

// What one lane asks for. Lanes outside the mask make no call.
struct Request {
  unsigned mask = 0;
  int operand = 0;  // source lane, distance or lane mask
};

template <typename T>
GR_KERNEL(256)
void shuffle_kernel(Kind kind, int width, const Request* requests, const T* values, T* results) {
  const unsigned thread = threadIdx.x;
  const Request request = requests[thread];
  if ((request.mask >> (thread % kWarpSize) & 1) == 0) return;
  const T value = values[thread];
  const unsigned distance = static_cast<unsigned>(request.operand);
  switch (kind) {
    case Kind::kIndex:
      results[thread] = __shfl_sync(request.mask, value, request.operand, width);
      break;
    case Kind::kUp:
      results[thread] = __shfl_up_sync(request.mask, value, distance, width);
      break;
    case Kind::kDown:
      results[thread] = __shfl_down_sync(request.mask, value, distance, width);
      break;
    case Kind::kXor:
      results[thread] = __shfl_xor_sync(request.mask, value, request.operand, width);
      break;
  }
}

// The lane that is read, by the guide's words: logical lane ids within segments of `width`.
int source_of(Kind kind, int lane, int operand, int width) {
  const int segment = lane / width;
  const int logical = lane % width;
  switch (kind) {
    case Kind::kIndex:
      return segment * width + (operand % width + width) % width;
    case Kind::kUp:
      return logical - operand < 0 ? lane : lane - operand;
    case Kind::kDown:
      return logical + operand >= width ? lane : lane + operand;
    case Kind::kXor:
      return (lane ^ operand) / width > segment ? lane : lane ^ operand;
  }
  return -1;
}

// A mask that holds the source of each of its lanes: lanes are removed until it does.
unsigned closed_mask(unsigned mask, Kind kind, const std::vector<int>& operands, int width) {
  for (bool changed = true; changed;) {
    changed = false;
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      if ((mask >> source_of(kind, lane, operands[lane], width) & 1) == 0) {
        mask &= ~(1u << lane);
        changed = true;
      }
    }
  }
  return mask;
}

template <typename T>
std::vector<T> random_values(unsigned count, Generator& generator) {
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(static_cast<std::int64_t>(generator()) >> 8);
  return values;
}

template <typename T>
class Shuffle : public testing::Test {};
using ShuffledTypes =
    testing::Types<int, unsigned, long, unsigned long long, std::int64_t, float, double>;
TYPED_TEST_SUITE(Shuffle, ShuffledTypes);

TYPED_TEST(Shuffle, AgreesWithTheModelForRandomMasksAndWidths) {
  constexpr unsigned kThreads = 96;
  int lanes_asked = 0;
  for (const std::uint64_t seed : simt::seeds_to_try(20)) {
    Generator generator(seed);
    simt::set_seed(seed);
    for (const Kind kind : {Kind::kIndex, Kind::kUp, Kind::kDown, Kind::kXor}) {
      const int width = 1 << generator() % 6;
      const auto values = random_values<TypeParam>(kThreads, generator);
      std::vector<Request> requests(kThreads);
      auto expected = random_values<TypeParam>(kThreads, generator);
      auto results = expected;
      for (unsigned first = 0; first < kThreads; first += kWarpSize) {
        // One distance a warp, as the mask must hold the sources; any source for an index.
        std::vector<int> operands(32, static_cast<int>(generator() % 32));
        if (kind == Kind::kIndex) {
          for (int& operand : operands) operand = static_cast<int>(generator() % 97) - 32;
        }
        const unsigned chosen = static_cast<unsigned>(generator() | generator());
        const unsigned mask = closed_mask(chosen, kind, operands, width);
        for (int lane = 0; lane < 32; ++lane) {
          requests[first + lane] = {mask, operands[lane]};
          if ((mask >> lane & 1) == 0) continue;
          expected[first + lane] = values[first + source_of(kind, lane, operands[lane], width)];
          ++lanes_asked;
        }
      }
      ASSERT_EQ(launch(shuffle_kernel<TypeParam>, {.block = kThreads}, kind, width, requests.data(),
                       values.data(), results.data()),
                0);
      ASSERT_EQ(results, expected)
          << "kind " << static_cast<int>(kind) << ", width " << width << ", seed " << seed;
    }
  }
  EXPECT_GT(lanes_asked, 500);
}

struct Votes {
  unsigned ballot = 0;
  int any = 0;
  int all = 0;
  unsigned sum = 0;
  unsigned least = 0;
  unsigned most = 0;
  bool operator==(const Votes&) const = default;
};

// Both halves of a random partition of the warp vote at the same time, each under its own mask.
GR_KERNEL(256) void vote_kernel(const unsigned* parts, const unsigned* values, Votes* results) {
  const unsigned thread = threadIdx.x;
  const unsigned part = parts[thread / kWarpSize];
  const unsigned mask = (part >> (thread % kWarpSize) & 1) != 0 ? part : ~part;
  const unsigned value = values[thread];
  Votes& votes = results[thread];
  votes.ballot = __ballot_sync(mask, value % 3 == 0);
  votes.any = __any_sync(mask, value % 31 == 0);
  votes.all = __all_sync(mask, value % 31 != 0);
  votes.sum = __reduce_add_sync(mask, value);
  votes.least = __reduce_min_sync(mask, value);
  votes.most = __reduce_max_sync(mask, value);
}

Votes expected_votes(unsigned mask, const unsigned* values) {
  Votes votes{0, 0, 1, 0, ~0u, 0};
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (values[lane] % 3 == 0) votes.ballot |= 1u << lane;
    if (values[lane] % 31 == 0) votes.any = 1;
    if (values[lane] % 31 == 0) votes.all = 0;
    votes.sum += values[lane];
    votes.least = std::min(votes.least, values[lane]);
    votes.most = std::max(votes.most, values[lane]);
  }
  return votes;
}

TEST(WarpCalls, VotesAndReductionsOfBothPartsOfAWarp) {
  constexpr unsigned kThreads = 128;
  for (const std::uint64_t seed : simt::seeds_to_try(20)) {
    Generator generator(seed);
    simt::set_seed(seed);
    std::vector<unsigned> parts(kThreads / 32), values(kThreads);
    for (unsigned& part : parts) part = static_cast<unsigned>(generator());
    for (unsigned& value : values) value = static_cast<unsigned>(generator());
    std::vector<Votes> results(kThreads);
    ASSERT_EQ(launch(vote_kernel, {.block = kThreads}, parts.data(), values.data(), results.data()),
              0);
    for (unsigned thread = 0; thread < kThreads; ++thread) {
      const unsigned part = parts[thread / 32];
      const unsigned mask = (part >> thread % 32 & 1) != 0 ? part : ~part;
      EXPECT_EQ(results[thread], expected_votes(mask, &values[thread / 32 * 32]))
          << "thread " << thread << ", seed " << seed;
    }
  }
}

TEST(WarpCalls, BitFunctionsAgreeWithCountingBits) {
  Generator generator(1);
  for (int trial = 0; trial < 1000; ++trial) {
    // Sparse at both ends, and 0.
    const std::uint64_t wide = trial == 0 ? 0 : generator() >> generator() % 64 << generator() % 64;
    const auto narrow = static_cast<std::uint32_t>(wide);
    int count = 0, highest = -1, lowest = -1, narrow_count = 0, narrow_highest = -1;
    int narrow_lowest = -1;
    std::uint64_t reversed = 0;
    std::uint32_t narrow_reversed = 0;
    for (int bit = 0; bit < 64; ++bit) {
      if ((wide >> bit & 1) == 0) continue;
      ++count;
      highest = bit;
      if (lowest < 0) lowest = bit;
      reversed |= std::uint64_t{1} << (63 - bit);
      if (bit >= 32) continue;
      ++narrow_count;
      narrow_highest = bit;
      if (narrow_lowest < 0) narrow_lowest = bit;
      narrow_reversed |= 1u << (31 - bit);
    }
    EXPECT_EQ(__popcll(wide), count);
    EXPECT_EQ(__clzll(static_cast<long long>(wide)), 63 - highest);
    EXPECT_EQ(__ffsll(static_cast<long long>(wide)), lowest + 1);
    EXPECT_EQ(__brevll(wide), reversed);
    EXPECT_EQ(__popc(narrow), narrow_count);
    EXPECT_EQ(__clz(static_cast<int>(narrow)), 31 - narrow_highest);
    EXPECT_EQ(__ffs(static_cast<int>(narrow)), narrow_lowest + 1);
    EXPECT_EQ(__brev(narrow), narrow_reversed);
  }
}

}  // namespace
}  // namespace glimprouter::device
