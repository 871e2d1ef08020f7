#include "emulator/grid.hpp"

#include <cinttypes>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>

#include "emulator/block.hpp"
#include "emulator/report.hpp"
#include "emulator/sanitizers.hpp"

namespace glimprouter::simt {
namespace {

constexpr int kInvalidConfiguration = 9;
// Each takes ThreadSanitizer 0.9 MB and nine of the 65530 mappings that Linux allows a process.
constexpr unsigned kMaxTsanThreads = 6000;

struct Launch {
  void (*run_thread)(const void*) = nullptr;
  const void* call = nullptr;
  bool programmatic = false;
  char ended_tag = 0;  // orders every thread before the end of the launch
};

Launch launch;

std::uint64_t initial_seed() {
  const char* text = std::getenv("GLIMPROUTER_SIMT_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

std::uint64_t current_seed = initial_seed();
std::uint64_t launches_of_seed = 0;

// The life of a fiber: one thread of a block after the other. An exception ends the process: it
// must not cross to another stack.
void run_threads() noexcept {
  Fiber::arrived();
  for (;;) {
    launch.run_thread(launch.call);
    // Who never waits may end before the kernel ahead, and whoever waits for it alone runs too
    // soon.
    if (launch.programmatic && !current->waited) {
      fail(current, nullptr, "a thread returned without wait_for_dependencies()");
    }
    if (under_tsan()) __tsan_release(&launch.ended_tag);
    running_block->leave();
  }
}

bool is_valid(const Grid& grid) {
  const auto fits = [](unsigned size, unsigned limit) { return size >= 1 && size <= limit; };
  return fits(grid.blocks.x, 0x7FFFFFFF) && fits(grid.blocks.y, 65535) &&
         fits(grid.blocks.z, 65535) && fits(grid.threads, kMaxThreads);
}

std::vector<Dim3> block_order(const Dim3& grid, Random& random) {
  std::vector<Dim3> order;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) order.push_back({x, y, z});
    }
  }
  random.shuffle(order.data(), static_cast<unsigned>(order.size()));
  return order;
}

// Made on first use and kept for the life of the process.
Block& pooled_block(unsigned place) {
  static std::vector<std::unique_ptr<Block>>& pool = *new std::vector<std::unique_ptr<Block>>;
  while (pool.size() <= place) pool.push_back(std::make_unique_for_overwrite<Block>());
  return *pool[place];
}

}  // namespace

int run_grid(const Grid& grid, void (*run_thread)(const void*), const void* call) {
  static std::mutex one_at_a_time;
  // Of this OS thread: `current` may belong to the launch of another.
  static thread_local bool launching = false;
  if (launching) fail(current, nullptr, "a kernel launches a kernel");
  if (!is_valid(grid)) return kInvalidConfiguration;
  const std::lock_guard lock(one_at_a_time);
  launching = true;
  launch.run_thread = run_thread;
  launch.call = call;
  launch.programmatic = grid.programmatic;
  Random random(current_seed + (launches_of_seed++ << 32));
  const std::vector<Dim3> order = block_order(grid.blocks, random);
  if (under_tsan() && order.size() * grid.threads > kMaxTsanThreads) {
    fail(nullptr, nullptr, "ThreadSanitizer follows at most %u threads a launch, not %zu",
         kMaxTsanThreads, order.size() * grid.threads);
  }
  Fiber host;
  for (unsigned i = 0; i < order.size(); ++i) {
    // Under ThreadSanitizer each block of a launch has its own fibers, tags and shared memory: what
    // two blocks used one after the other would look like a race, or like an order.
    const unsigned place = under_tsan() ? i : 0;
    Block& block = pooled_block(place);
    block.begin({order[i], {grid.threads, 1, 1}, grid.blocks}, place * grid.threads, run_threads,
                random.next());
    block.run(host);
  }
  if (under_tsan()) __tsan_acquire(&launch.ended_tag);
  launching = false;
  return 0;
}

void set_seed(std::uint64_t seed) {
  current_seed = seed;
  launches_of_seed = 0;
}

std::uint64_t seed() { return current_seed; }

std::vector<std::uint64_t> seeds_to_try(int count) {
  if (std::getenv("GLIMPROUTER_SIMT_SEED") != nullptr) return {initial_seed()};
  std::vector<std::uint64_t> seeds(static_cast<std::size_t>(count));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  return seeds;
}

}  // namespace glimprouter::simt
