// The emulator must see bugs, or it proves nothing: each planted bug ends the process with the
// message that names it, in the builds that can see it, and the fixed twin passes everywhere.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.hpp"
#include "planted_kernels.hpp"

// A data race ends the process, as every other error does. No fake stacks, which do not follow a
// thread from fiber to fiber.
extern "C" {
[[gnu::visibility("default")]] const char* __tsan_default_options() { return "halt_on_error=1"; }
[[gnu::visibility("default")]] const char* __asan_default_options() {
  return "detect_stack_use_after_return=0";
}
}

namespace glimprouter::device::planted {
namespace {

using simt::kLane;
using simt::Lane;

class PlantedBug : public testing::Test {
 protected:
  // Once there were fibers, ThreadSanitizer takes a forked process for one that was forked amid
  // threads, and stops following it: everything would look like a race. So the child starts anew.
  PlantedBug() {
    if constexpr (kLane == Lane::kThread) testing::FLAGS_gtest_death_test_style = "threadsafe";
  }
};

// Of one block.
constexpr LaunchShape kOneWarp{.grid = {1}, .block = 32};
constexpr LaunchShape kTwoWarps{.grid = {1}, .block = 64};

// Runs the kernel, whose last parameter is its output, in several orders; the outputs of the last.
template <typename... Parameters, typename... Arguments>
std::vector<float> run(void (*kernel)(Parameters...), const LaunchShape& shape,
                       const Arguments&... arguments) {
  std::vector<float> output(shape.block);
  for (const std::uint64_t seed : simt::seeds_to_try(5)) {
    simt::set_seed(seed);
    EXPECT_EQ(launch(kernel, shape, arguments..., output.data()), 0);
  }
  return output;
}

const std::vector<float> kOnes(32, 1.0f);
const std::vector<float> kOnesOfTwoWarps(64, 1.0f);

TEST_F(PlantedBug, MissingBarrierBeforeReuseOfSharedMemory) {
  const std::vector<float> input(64 * 4, 0.25f);
  EXPECT_EQ(run(reuse<false>, kTwoWarps, input.data(), 4u), kOnesOfTwoWarps);
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(reuse<true>, kTwoWarps, input.data(), 4u), "data race.*reuse<true>");
  }
}

// Copies arrive at the wait and not before; what they go to holds no number until then.
TEST_F(PlantedBug, CopiesThatNobodyWaitsFor) {
  const std::vector<float> input(64 * 4 * 3, 0.5f);
  const std::vector<float> sums(64, 6.0f);
  EXPECT_EQ(run(copy_ahead<CopyBug::kNone>, kTwoWarps, input.data(), 3u), sums);
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(copy_ahead<CopyBug::kNoWait>, kTwoWarps, input.data(), 3u), "data race");
  } else {
    for (const float sum : run(copy_ahead<CopyBug::kNoWait>, kTwoWarps, input.data(), 3u)) {
      EXPECT_TRUE(std::isnan(sum));
    }
  }
}

TEST_F(PlantedBug, CopiesOfOthersWithoutABarrier) {
  const std::vector<float> input(64 * 4 * 3, 0.5f);
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(copy_ahead<CopyBug::kNoBarrier>, kTwoWarps, input.data(), 3u), "data race");
  } else {
    bool caught = false;
    for (const float sum : run(copy_ahead<CopyBug::kNoBarrier>, kTwoWarps, input.data(), 3u)) {
      caught = caught || std::isnan(sum);
    }
    EXPECT_TRUE(caught);
  }
}

TEST_F(PlantedBug, CopiesIntoWhatOthersStillRead) {
  const std::vector<float> input(64 * 4 * 3, 0.5f);
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(copy_ahead<CopyBug::kEarlyReuse>, kTwoWarps, input.data(), 3u), "data race");
  }
}

TEST_F(PlantedBug, CopiesThatAreMisalignedOrLeftBehind) {
  const std::vector<float> input(64 * 4 * 3 + 4, 0.5f);
  EXPECT_DEATH(run(copy_ahead<CopyBug::kMisaligned>, kTwoWarps, input.data(), 3u),
               "both must be multiples of 16");
  EXPECT_DEATH(run(copy_ahead<CopyBug::kLeftBehind>, kTwoWarps, input.data(), 3u),
               "a thread returned with 1 copies on their way");
}

TEST_F(PlantedBug, RelaxedTicket) {
  std::vector<float> partial(9);
  std::uint32_t counter = 0;
  const LaunchShape nine_blocks{.grid = {9}, .block = 32};
  EXPECT_EQ(run(publish<false>, nine_blocks, partial.data(), &counter)[0], 36.0f);
  EXPECT_EQ(counter, 0u);
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(publish<true>, nine_blocks, partial.data(), &counter),
                 "data race.*publish<true>");
  }
}

TEST_F(PlantedBug, ShuffleTakenForAnOrderOfMemory) {
  const std::vector<float> output = run(neighbour<false>, kTwoWarps);
  for (unsigned i = 0; i < 64; ++i) EXPECT_EQ(output[i], static_cast<float>(i ^ 1));
  if constexpr (kLane == Lane::kThread) {
    EXPECT_DEATH(run(neighbour<true>, kTwoWarps), "data race.*neighbour<true>");
  }
}

TEST_F(PlantedBug, SharedMemoryOverrun) {
  EXPECT_EQ(run(overrun<false>, kTwoWarps), kOnesOfTwoWarps);
  if constexpr (kLane == Lane::kAddress) {
    EXPECT_DEATH(run(overrun<true>, kTwoWarps), "use-after-poison");
  }
}

TEST_F(PlantedBug, MisalignedVectorLoad) {
  alignas(16) const float input[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(run(misaligned<false>, kOneWarp, &input[0]), kOnes);
  if constexpr (kLane == Lane::kAddress) {
    EXPECT_DEATH(run(misaligned<true>, kOneWarp, &input[0]), "misaligned address");
  }
}

TEST_F(PlantedBug, UnwrittenSharedMemoryIsNotANumber) {
  EXPECT_EQ(run(unwritten<false>, kTwoWarps), kOnesOfTwoWarps);
  for (const float value : run(unwritten<true>, kTwoWarps)) {
    EXPECT_TRUE(std::isnan(value));
  }
}

// The rest is seen in every build, because the emulator itself sees it.

TEST_F(PlantedBug, DivergentBarrier) {
  EXPECT_EQ(run(divergent_barrier<false>, kTwoWarps), kOnesOfTwoWarps);
  EXPECT_DEATH(
      run(divergent_barrier<true>, kTwoWarps),
      "divergent __syncthreads.*planted_kernels.hpp:.*planted_kernels.hpp:.*SIMT_SEED=[0-9]");
}

TEST_F(PlantedBug, ReturnBeforeABarrier) {
  EXPECT_EQ(run(early_return<false>, kTwoWarps), kOnesOfTwoWarps);
  EXPECT_DEATH(run(early_return<true>, kTwoWarps),
               "returned while another waits at __syncthreads|threads of the block have returned");
}

TEST_F(PlantedBug, ShuffleWithAnExitedLane) {
  EXPECT_EQ(run(exited_lane<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(exited_lane<true>, kOneWarp),
               "lane returned while another waits for it|names lanes that have returned");
}

TEST_F(PlantedBug, ShuffleWithLanesThatDoNotExist) {
  const LaunchShape half_a_warp{.grid = {1}, .block = 16};
  EXPECT_EQ(run(partial_warp<false>, half_a_warp), std::vector<float>(16, 1.0f));
  EXPECT_DEATH(run(partial_warp<true>, half_a_warp), "do not exist: 0xffff0000");
}

TEST_F(PlantedBug, LanesOfOneMaskAtTwoCalls) {
  EXPECT_EQ(run(two_sites<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(two_sites<true>, kOneWarp),
               "0xffffffff wait at two calls.*two_sites.*two_sites");
}

TEST_F(PlantedBug, TwoMasks) {
  EXPECT_EQ(run(two_masks<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(two_masks<true>, kOneWarp), "give two masks: 0xfffffff");
}

TEST_F(PlantedBug, LaneOutsideItsOwnMask) {
  EXPECT_EQ(run(own_mask<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(own_mask<true>, kOneWarp), "not in its own mask 0xffffffdf.*thread 5 of block");
}

TEST_F(PlantedBug, ShuffleFromALaneOutsideTheMask) {
  EXPECT_EQ(run(lane_outside_mask<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(lane_outside_mask<true>, kOneWarp), "reads lane 16, which is not in its mask");
}

TEST_F(PlantedBug, SpinningBarrier) {
  std::uint32_t arrived = 0;
  EXPECT_EQ(run(spinning_barrier<false>, kOneWarp, &arrived), kOnes);
  arrived = 0;
  const LaunchShape two_blocks{.grid = {2}, .block = 32};
  EXPECT_DEATH(run(spinning_barrier<true>, two_blocks, &arrived), "a thread spins");
}

TEST_F(PlantedBug, Deadlock) {
  EXPECT_EQ(run(deadlock<false>, kTwoWarps), kOnesOfTwoWarps);
  EXPECT_DEATH(run(deadlock<true>, kTwoWarps), "deadlock");
}

TEST_F(PlantedBug, AssertionNamesTheThread) {
  EXPECT_EQ(run(assertion<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(assertion<true>, kOneWarp),
               "assertion failed: !kBroken.*thread 7 of block \\(0, 0, 0\\) at");
}

TEST_F(PlantedBug, EndOfAThreadThatNeverWaited) {
  const LaunchShape early{.grid = {1}, .block = 32, .programmatic = true};
  EXPECT_EQ(run(left_early<false>, early), kOnes);
  EXPECT_EQ(run(left_early<true>, kOneWarp), kOnes) << "nobody is ahead of it";
  EXPECT_DEATH(run(left_early<true>, early), "a thread returned without wait_for_dependencies");
}

TEST_F(PlantedBug, TooMuchSharedMemory) {
  EXPECT_EQ(run(shared_limit<false>, kOneWarp), kOnes);
  EXPECT_DEATH(run(shared_limit<true>, kOneWarp), "49156 bytes of shared memory in 2 objects");
}

}  // namespace
}  // namespace glimprouter::device::planted
