// Grids of the emulator: launches, orders, and the last-block-done pattern of the kernels.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "kernels/base/launch.cuh"
#include "lanes.hpp"

namespace glimprouter::device {
namespace {

// Which thread of which block came when.
GR_KERNEL(32) void order_kernel(std::uint32_t* clock, std::uint32_t* order) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  order[atomic_add(clock, 1u)] = block * blockDim.x + threadIdx.x;
}

constexpr LaunchShape kCube{.grid = {3, 4, 2}, .block = 8};
constexpr unsigned kCubeThreads = 3 * 4 * 2 * 8;

std::vector<std::uint32_t> order_of_a_launch() {
  std::uint32_t clock = 0;
  std::vector<std::uint32_t> order(kCubeThreads);
  EXPECT_EQ(launch(order_kernel, kCube, &clock, order.data()), 0);
  return order;
}

TEST(Grids, EveryThreadRunsOnceInAnOrderOfTheSeed) {
  std::set<std::vector<std::uint32_t>> orders;
  const std::vector<std::uint64_t> seeds = simt::seeds_to_try(20);
  for (const std::uint64_t seed : seeds) {
    simt::set_seed(seed);
    const std::vector<std::uint32_t> first = order_of_a_launch();
    const std::vector<std::uint32_t> second = order_of_a_launch();
    simt::set_seed(seed);
    EXPECT_EQ(order_of_a_launch(), first) << "the same seed, the same order";
    orders.insert({first, second});
    for (const auto& order : {first, second}) {
      std::vector<std::uint32_t> sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (unsigned i = 0; i < kCubeThreads; ++i) ASSERT_EQ(sorted[i], i);
      EXPECT_NE(order, sorted);
    }
  }
  EXPECT_EQ(orders.size(), 2 * seeds.size()) << "no two launches alike";
}

TEST(Grids, EveryBlockComesFirstForSomeSeed) {
  std::set<std::uint32_t> first_blocks;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    simt::set_seed(seed);
    first_blocks.insert(order_of_a_launch()[0] / kCube.block);
  }
  EXPECT_EQ(first_blocks.size(), kCubeThreads / kCube.block);
}

// The threads in the order in which they began each of their rounds.
GR_KERNEL(128) void progress_kernel(std::uint32_t* clock, std::uint32_t* order) {
  for (int round = 0; round < 8; ++round) {
    order[atomic_add(clock, 1u)] = threadIdx.x;
    __syncwarp();
  }
}

TEST(Grids, ThreadsOfABlockComeInManyOrders) {
  int mixed = 0;                           // all warps began before one ended
  std::set<std::uint32_t> first_of_ahead;  // one ended before any other began
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    simt::set_seed(seed);
    std::uint32_t clock = 0;
    std::vector<std::uint32_t> order(8 * 128);
    ASSERT_EQ(launch(progress_kernel, {.block = 128}, &clock, order.data()), 0);
    std::map<std::uint32_t, unsigned> begun;
    std::size_t begun_at_first_end = 0;
    for (const std::uint32_t thread : order) {
      const unsigned rounds = ++begun[thread / kWarpSize];
      if (rounds == 8 * kWarpSize && begun_at_first_end == 0) begun_at_first_end = begun.size();
    }
    if (begun_at_first_end == 1) first_of_ahead.insert(order[0]);
    if (begun_at_first_end == 4) ++mixed;
  }
  EXPECT_GT(mixed, 100);
  EXPECT_GT(first_of_ahead.size(), 64u) << "any warp, and any lane of it, may be ahead";
}

GR_KERNEL(32) void by_value_kernel(std::vector<int> copied, std::uint32_t* sum) {
  if (threadIdx.x != 0) return;
  for (const int value : copied) atomic_add(sum, static_cast<std::uint32_t>(value));
}

TEST(Grids, LaunchCopiesArgumentsAndChecksItsShape) {
  std::uint32_t sum = 0;
  std::vector<int> values{1, 2, 3};
  EXPECT_EQ(launch(by_value_kernel, {.grid = {2}, .block = 32}, values, &sum), 0);
  EXPECT_EQ(sum, 12u);
  EXPECT_EQ(launch(by_value_kernel, {.grid = {0}, .block = 32}, values, &sum), 0);
  EXPECT_EQ(launch(by_value_kernel, {.grid = {4, 0}, .block = 32}, values, &sum), 0);
  EXPECT_EQ(sum, 12u) << "no blocks, nothing done";
  for (const LaunchShape& shape :
       {LaunchShape{.grid = {1}, .block = 0}, LaunchShape{.grid = {1}, .block = 1025},
        LaunchShape{.grid = {1, 65536}, .block = 1},
        LaunchShape{.grid = {1, 1, 65536}, .block = 1}}) {
    EXPECT_EQ(launch(by_value_kernel, shape, values, &sum), 9) << "cudaErrorInvalidConfiguration";
  }
  EXPECT_EQ(sum, 12u);
}

constexpr unsigned kTile = 128;

struct Warps {
  float sum[2];
  bool is_last;
};

// Sums rows in fixed tiles: the same bits for any grid. One row a blockIdx.y; the blocks of a row
// share its tiles; the last of them adds the tiles in index order.
GR_KERNEL(64)
void sum_rows_kernel(const float* rows, unsigned tiles, float* partial, std::uint32_t* counters,
                     std::uint32_t* last_blocks, double* sums) {
  GR_SHARED(Warps, warps);
  const unsigned row = blockIdx.y;
  for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const float* values = rows + (row * tiles + tile) * kTile;
    float sum = values[threadIdx.x] + values[threadIdx.x + blockDim.x];
    for (unsigned distance = kWarpSize / 2; distance > 0; distance /= 2) {
      sum += __shfl_down_sync(kFullMask, sum, distance);
    }
    if (threadIdx.x % kWarpSize == 0) warps.sum[threadIdx.x / kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x == 0) partial[row * tiles + tile] = warps.sum[0] + warps.sum[1];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    warps.is_last = ticket_increment(&counters[row], gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!warps.is_last) return;
  __threadfence();
  if (threadIdx.x != 0) return;
  atomic_add(last_blocks, 1u);
  double sum = 0.0;
  for (unsigned tile = 0; tile < tiles; ++tile) sum += partial[row * tiles + tile];
  sums[row] = sum;
}

TEST(Grids, LastBlockDoneGivesTheSameBitsForAnyGridAndOrder) {
  constexpr unsigned kTiles = 10, kRows = 2;
  std::vector<float> rows(kRows * kTiles * kTile);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = 1.0f / static_cast<float>(1 + i * 2654435761u % 1000);
  }
  std::set<std::vector<double>> results;
  std::vector<std::uint32_t> counters(kRows);  // never reset
  for (const unsigned blocks : {1u, 3u, 7u, 12u}) {
    for (const std::uint64_t seed : simt::seeds_to_try(20)) {
      simt::set_seed(seed);
      std::vector<float> partial(kRows * kTiles);
      std::vector<double> sums(kRows);
      std::uint32_t last_blocks = 0;
      ASSERT_EQ(launch(sum_rows_kernel, {.grid = {blocks, kRows}, .block = 64}, rows.data(), kTiles,
                       partial.data(), counters.data(), &last_blocks, sums.data()),
                0);
      results.insert(sums);
      EXPECT_EQ(last_blocks, kRows);
      EXPECT_EQ(counters, std::vector<std::uint32_t>(kRows)) << "the tickets wrapped to 0";
    }
  }
  ASSERT_EQ(results.size(), 1u);
  for (unsigned row = 0; row < kRows; ++row) {
    double expected = 0.0;
    for (unsigned i = 0; i < kTiles * kTile; ++i) expected += rows[row * kTiles * kTile + i];
    EXPECT_NEAR((*results.begin())[row], expected, 1e-5 * expected);
  }
}

GR_KERNEL(32)
void ticket_kernel(std::uint32_t* counter, std::uint32_t last, std::uint32_t* tickets) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  tickets[thread] = ticket_increment(counter, last);
}

TEST(Grids, TicketsWrapAfterTheLast) {
  std::uint32_t counter = 0;
  std::uint32_t next = 0;
  for (int trial = 0; trial < 5; ++trial) {
    std::map<std::uint32_t, int> given;
    std::vector<std::uint32_t> tickets(3 * 32);
    ASSERT_EQ(launch(ticket_kernel, {.grid = {3}, .block = 32}, &counter, 6u, tickets.data()), 0);
    for (const std::uint32_t ticket : tickets) ++given[ticket];
    std::map<std::uint32_t, int> expected;
    for (unsigned i = 0; i < 3 * 32; ++i, next = (next + 1) % 7) ++expected[next];
    EXPECT_EQ(given, expected);
    EXPECT_EQ(counter, next);
  }
  counter = 100;  // beyond the last, as atomicInc has it: to 0
  std::vector<std::uint32_t> tickets(1);
  ASSERT_EQ(launch(ticket_kernel, {.block = 1}, &counter, 6u, tickets.data()), 0);
  EXPECT_EQ(tickets[0], 100u);
  EXPECT_EQ(counter, 0u);
}

}  // namespace
}  // namespace glimprouter::device
