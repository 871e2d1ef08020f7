// Blocks of the emulator: barriers, shared memory, atomics.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/base/launch.cuh"

namespace glimprouter::device {
namespace {

struct Exchange {
  unsigned written[256];
};

// Every thread reads what a distant one wrote in the round before.
GR_KERNEL(256) void rounds_kernel(unsigned rounds, unsigned* output) {
  GR_SHARED(Exchange, exchange);
  unsigned value = threadIdx.x;
  for (unsigned round = 0; round < rounds; ++round) {
    exchange.written[threadIdx.x] = value;
    __syncthreads();
    value = exchange.written[(threadIdx.x + 37) % blockDim.x] + 1;
    __syncthreads();
  }
  output[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

TEST(Blocks, BarriersSeparateRounds) {
  for (const unsigned threads : {1u, 33u, 256u}) {
    for (const std::uint64_t seed : simt::seeds_to_try(20)) {
      simt::set_seed(seed);
      std::vector<unsigned> output(2 * threads);
      ASSERT_EQ(launch(rounds_kernel, {.grid = {2}, .block = threads}, 7u, output.data()), 0);
      for (unsigned i = 0; i < output.size(); ++i) {
        ASSERT_EQ(output[i], (i % threads + 7 * 37) % threads + 7) << "seed " << seed;
      }
    }
  }
}

// In a warp, without the block: each lane adds its left neighbour's value.
GR_KERNEL(64) void warp_rounds_kernel(unsigned* output) {
  GR_SHARED(Exchange, exchange);
  const unsigned left = threadIdx.x - (threadIdx.x % kWarpSize == 0 ? 0 : 1);
  unsigned value = 1;
  for (int round = 0; round < 5; ++round) {
    exchange.written[threadIdx.x] = value;
    __syncwarp();
    value += exchange.written[left];
    __syncwarp();
  }
  output[threadIdx.x] = value;
}

TEST(Blocks, WarpBarriersSeparateRounds) {
  for (const std::uint64_t seed : simt::seeds_to_try(20)) {
    simt::set_seed(seed);
    std::vector<unsigned> output(64);
    ASSERT_EQ(launch(warp_rounds_kernel, {.block = 64}, output.data()), 0);
    for (const unsigned value : output) ASSERT_EQ(value, 32u) << "seed " << seed;
  }
}

struct Small {
  float value[3];
};
struct alignas(64) Wide {
  double value[8];
};
using Row = std::uint16_t[5];

template <typename T>
GR_DEVICE T& object_of() {
  GR_SHARED(T, object);
  return object;
}

// Writes down what shared memory is like at first, and where it lies.
GR_KERNEL(32) void shared_kernel(std::uint8_t* first_bytes, std::uintptr_t* addresses) {
  GR_SHARED(Small, first);
  GR_SHARED(Small, second);
  GR_SHARED(Row, row);
  Small& third = object_of<Small>();
  Wide& wide = object_of<Wide>();
  const std::uint8_t* bytes = reinterpret_cast<const std::uint8_t*>(&wide);
  const bool is_writer = threadIdx.x == blockIdx.x;
  if (is_writer) {
    for (unsigned i = 0; i < sizeof wide; ++i) first_bytes[blockIdx.x * sizeof wide + i] = bytes[i];
  }
  __syncthreads();
  if (is_writer) {
    for (double& value : wide.value) value = 0.0;
    for (std::uint16_t& value : row) value = 0;
    first = second = third = Small{};
  }
  const std::uintptr_t own[6] = {reinterpret_cast<std::uintptr_t>(&first),
                                 reinterpret_cast<std::uintptr_t>(&second),
                                 reinterpret_cast<std::uintptr_t>(&row),
                                 reinterpret_cast<std::uintptr_t>(&third),
                                 reinterpret_cast<std::uintptr_t>(&wide),
                                 reinterpret_cast<std::uintptr_t>(&object_of<Small>())};
  for (int i = 0; i < 6; ++i) {
    addresses[(blockIdx.x * blockDim.x + threadIdx.x) * 6 + i] = own[i];
  }
}

TEST(Blocks, SharedMemoryIsOnePerBlockUnwrittenAndApart) {
  constexpr unsigned kBlocks = 4;
  std::vector<std::uint8_t> first_bytes(kBlocks * sizeof(Wide));
  std::vector<std::uintptr_t> addresses(kBlocks * 32 * 6);
  ASSERT_EQ(
      launch(shared_kernel, {.grid = {kBlocks}, .block = 32}, first_bytes.data(), addresses.data()),
      0);
  for (const std::uint8_t byte : first_bytes) EXPECT_EQ(byte, 0xFF);
  for (unsigned thread = 0; thread < kBlocks * 32; ++thread) {
    const std::uintptr_t* own = &addresses[thread * 6];
    const std::uintptr_t* of_block = &addresses[thread / 32 * 32 * 6];
    for (int i = 0; i < 6; ++i) EXPECT_EQ(own[i], of_block[i]);
    EXPECT_EQ(own[3], own[5]) << "one object, however often its function is called";
    EXPECT_EQ(own[4] % alignof(Wide), 0u);
    const std::size_t sizes[5] = {sizeof(Small), sizeof(Small), sizeof(Row), sizeof(Small),
                                  sizeof(Wide)};
    for (int i = 0; i < 5; ++i) {
      for (int j = 0; j < 5; ++j) {
        EXPECT_TRUE(i == j || own[i] + sizes[i] + 64 <= own[j] || own[j] + sizes[j] + 64 <= own[i])
            << i << " and " << j;
      }
    }
  }
}

struct Counters {
  std::uint32_t narrow;
  std::uint64_t wide;
};

GR_KERNEL(64) void atomics_kernel(Counters* global, std::uint32_t* seen) {
  GR_SHARED(Counters, shared);
  if (threadIdx.x == 0) shared = {0, 0};
  __syncthreads();
  const std::uint32_t value = blockIdx.x * blockDim.x + threadIdx.x + 1;
  atomic_add_shared(&shared.narrow, value);
  atomic_add_shared(&shared.wide, std::uint64_t{value} << 32);
  seen[value - 1] = atomic_add(&global->narrow, 1u);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomic_add(&global->wide, shared.wide + shared.narrow);
}

TEST(Blocks, AtomicsCountEveryThreadOnce) {
  constexpr unsigned kThreads = 5 * 64;
  for (const std::uint64_t seed : simt::seeds_to_try(20)) {
    simt::set_seed(seed);
    Counters global{0, 0};
    std::vector<std::uint32_t> seen(kThreads);
    ASSERT_EQ(launch(atomics_kernel, {.grid = {5}, .block = 64}, &global, seen.data()), 0);
    const std::uint64_t sum = kThreads * (kThreads + 1) / 2;
    EXPECT_EQ(global.narrow, kThreads);
    EXPECT_EQ(global.wide, (sum << 32) + sum);
    std::vector<bool> given(kThreads);
    for (const std::uint32_t before : seen) given.at(before) = true;
    EXPECT_EQ(std::accumulate(given.begin(), given.end(), 0u), kThreads) << "seed " << seed;
  }
}

GR_KERNEL(32)
void memory_kernel(const float* input, float* output) {
  const Vec16 loaded = load16(input + 4 * threadIdx.x);
  Vec16 doubled;
  for (int i = 0; i < 4; ++i) {
    const float value = std::bit_cast<float>(loaded.word[i]);
    doubled.word[i] = std::bit_cast<std::uint32_t>(value + value);
  }
  store16(output + 4 * threadIdx.x, doubled);
}

TEST(Blocks, VectorLoadsAndStores) {
  alignas(16) float input[128];
  alignas(16) float output[128];
  std::iota(std::begin(input), std::end(input), 1.0f);
  ASSERT_EQ(launch(memory_kernel, {.block = 32}, &input[0], &output[0]), 0);
  for (int i = 0; i < 128; ++i) EXPECT_EQ(output[i], 2.0f * static_cast<float>(i + 1));
}

}  // namespace
}  // namespace glimprouter::device
