// A KV cache whose pages live on the device (here: the emulator) beside one on the CPU: the
// same tape of forks, truncations, preemptions and forward passes leaves the same bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/device_arena.hpp"
#include "emulator/backend.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "kv_tensors.hpp"
#include "lanes.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {
namespace {

using simt::HeadsTensor;
using simt::kReduced;
constexpr std::int32_t kSequences = 3, kModels = 2, kHeads = 2;
const Device kDevice{&simt::backend(), 0};

// Layers of every kind, two of them alike and one that keeps nothing.
constexpr LayerShape kLayers[] = {
    {1, 16, 16}, {1, 16, 16}, {2, 32, 16}, {1, 16, 16, 1}, {1, 48, 32, -1, true}};

// Small pages go by the kernel when a sequence is saved, the others by the copy engine.
std::vector<KvLayout> layouts() {
  return {KvLayout::make(kLayers, 4, DataType::kFloat32),
          KvLayout::make(1, 1, 128, 128, DataType::kBFloat16)};
}

simt::HeadsShape keys_of(const LayerShape& layer, std::int64_t tokens) {
  return {1, tokens, layer.num_kv_heads, layer.head_dim};
}
simt::HeadsShape values_of(const LayerShape& layer, std::int64_t tokens) {
  return {1, tokens, layer.num_kv_heads, layer.value_dim};
}

// What a model has computed of one layer, as fp32 keys and then values.
std::vector<std::byte> layer_bytes(const PagePool& pool, const ModelCache& cache,
                                   std::int32_t model, std::int32_t layer) {
  const LayerShape& shape = pool.layout(model).shape(layer);
  HeadsTensor keys(7, keys_of(shape, cache.num_computed_tokens), DataType::kFloat32);
  HeadsTensor values(8, values_of(shape, cache.num_computed_tokens), DataType::kFloat32);
  gather_kv(pool, model, {layer}, cache.pages, keys.cpu_view(0), values.cpu_view(0));
  std::vector<std::byte> all = keys.bytes();
  all.insert(all.end(), values.bytes().begin(), values.bytes().end());
  return all;
}

struct Side {
  explicit Side(std::shared_ptr<PagePool> arena)
      : pool(std::move(arena)), cache(pool, kSequences) {}
  std::shared_ptr<PagePool> pool;
  KvCache cache;
};

class TwoCaches {
 public:
  explicit TwoCaches(std::uint32_t seed)
      : random_(seed),
        cpu_(std::make_shared<PagePool>(layouts(), kArenaBytes, host_arena())),
        device_(std::make_shared<PagePool>(layouts(), kArenaBytes, device_arena(kDevice))) {
    cpu_.pool->poison_freed_pages(0xA5);
    device_.pool->poison_freed_pages(0xA5);
  }

  void play() {
    const std::vector<std::int32_t> open = cpu_.cache.sequences();
    const int choice = below(10);
    if (open.empty() || (choice < 2 && open.size() < kSequences)) {
      const std::vector prompts{some_ids(), some_ids()};
      EXPECT_EQ(cpu_.cache.open(prompts), device_.cache.open(prompts));
      return;
    }
    const std::int32_t sequence =
        open[static_cast<std::size_t>(below(static_cast<int>(open.size())))];
    if (choice == 2 && open.size() < kSequences) {
      EXPECT_EQ(cpu_.cache.fork(sequence), device_.cache.fork(sequence));
    } else if (choice == 3) {
      preempt(sequence);
    } else if (choice == 4) {
      const std::int32_t generated = cpu_.cache.sequence(sequence).ledger.size();
      const int kept = below(generated + 1);
      cpu_.cache.truncate(sequence, kept);
      device_.cache.truncate(sequence, kept);
    } else {
      const std::int32_t model = below(kModels);
      compute(open, model);
      if (kReduced || below(3) != 0) compute(open, 1 - model);  // little to catch up
    }
    device_.cache.check_invariants();
  }

 private:
  static constexpr std::int64_t kArenaBytes = 8 << 20;

  int below(int bound) { return static_cast<int>(random_() % static_cast<std::uint32_t>(bound)); }
  std::vector<std::int32_t> some_ids() {
    return std::vector<std::int32_t>(static_cast<std::size_t>(1 + below(kReduced ? 3 : 8)),
                                     below(1000));
  }

  // What one saved, the other loads.
  void preempt(std::int32_t sequence) {
    const std::string from_cpu = cpu_.cache.save(sequence);
    const std::string from_device = device_.cache.save(sequence);
    // Places of a page that no token was written to keep what was there before.
    EXPECT_EQ(from_cpu.size(), from_device.size());
    cpu_.cache.close(sequence);
    device_.cache.close(sequence);
    EXPECT_EQ(cpu_.cache.load(from_device), device_.cache.load(from_cpu));
  }

  void compute(const std::vector<std::int32_t>& open, std::int32_t model) {
    for (const std::int32_t sequence : open) {
      const auto ids = some_ids();
      cpu_.cache.append(0, sequence, ids);
      device_.cache.append(0, sequence, ids);
    }
    const RaggedBatch expected = cpu_.cache.prepare(model, open);
    const RaggedBatch batch = device_.cache.prepare(model, open);
    ASSERT_EQ(expected.slot_mapping, batch.slot_mapping);
    for (std::int32_t layer = 0; layer < cpu_.pool->layout(model).num_layers(); ++layer) {
      attend(expected, batch, layer);
    }
    cpu_.cache.complete(expected);
    device_.cache.complete(batch);
    gather(open.front(), model);
  }

  // One layer of a pass on both sides.
  void attend(const RaggedBatch& expected, const RaggedBatch& batch, std::int32_t layer) {
    const LayerShape& shape = cpu_.pool->layout(batch.model).shape(layer);
    const auto tokens = static_cast<std::int64_t>(batch.ids.size());
    const std::uint64_t seed = random_();
    const DataType dtype = seed % 2 == 0 ? DataType::kFloat32 : DataType::kBFloat16;
    HeadsTensor keys(seed, keys_of(shape, tokens), dtype);
    HeadsTensor values(seed + 1, values_of(shape, tokens), dtype);
    const std::int32_t heads = shape.num_kv_heads * kHeads;
    HeadsTensor queries(seed + 2, {1, tokens, heads, shape.head_dim}, dtype);
    HeadsTensor cpu_out(seed, {1, tokens, heads, shape.value_dim}, dtype);
    HeadsTensor device_out(seed, {1, tokens, heads, shape.value_dim}, dtype);
    keys.fill(seed);
    values.fill(seed + 1);
    queries.fill(seed + 2);
    const HeadsView value = shape.latent ? HeadsView{} : values.cpu_view(0);
    if (shape.shares < 0) {
      append_kv(*cpu_.pool, {layer}, expected, keys.cpu_view(0), value);
      append_kv(*device_.pool, {layer}, batch, keys.cpu_view(0), value);
    }
    const AttentionOptions options{0.25f, seed % 3 == 0 ? 9 : 0, 0.0f};
    paged_attention(*cpu_.pool, layer, expected, options, queries.cpu_view(0), cpu_out.cpu_view(0));
    paged_attention(*device_.pool, layer, batch, options, queries.cpu_view(0),
                    device_out.cpu_view(0));
    EXPECT_EQ(cpu_out.bytes(), device_out.bytes()) << "layer " << layer;
  }

  void gather(std::int32_t sequence, std::int32_t model) {
    const ModelCache& cache = cpu_.cache.sequence(sequence).caches[static_cast<std::size_t>(model)];
    const ModelCache& other =
        device_.cache.sequence(sequence).caches[static_cast<std::size_t>(model)];
    ASSERT_EQ(cache.pages, other.pages);
    for (std::int32_t layer = 0; layer < cpu_.pool->layout(model).num_layers(); ++layer) {
      EXPECT_EQ(layer_bytes(*cpu_.pool, cache, model, layer),
                layer_bytes(*device_.pool, other, model, layer))
          << "layer " << layer;
    }
  }

  std::mt19937 random_;
  Side cpu_;
  Side device_;
};

TEST(DeviceKv, TheSameTapeGivesTheSameBytesAsTheCpu) {
  for (const std::uint64_t seed : simt::seeds_to_try(kReduced ? 8 : 20)) {
    simt::set_seed(seed);
    TwoCaches caches(static_cast<std::uint32_t>(seed));
    for (int i = 0; i < (kReduced ? 4 : 12); ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", call " << i);
      caches.play();
      if (testing::Test::HasFailure()) return;
    }
  }
}

// One sequence of two models whose pages differ in size and type, on one side.
struct CastSide {
  explicit CastSide(std::shared_ptr<PagePool> arena) : pool(std::move(arena)), cache(pool, 2) {
    sequence = cache.open({std::vector<std::int32_t>(11, 5), std::vector<std::int32_t>(11, 5)});
  }
  void append_all(std::int32_t model, HeadsTensor& keys, HeadsTensor& values) {
    const RaggedBatch batch = cache.prepare(model, std::span(&sequence, 1));
    HeadsView key = keys.cpu_view(0), value = values.cpu_view(0);
    key.layer_stride = keys.layer_stride();
    value.layer_stride = values.layer_stride();
    append_kv(*pool, all_layers(pool->layout(batch.model)), batch, key, value);
    cache.complete(batch);
  }
  std::vector<std::byte> gathered(std::int32_t model, const simt::HeadsShape& shape) const {
    HeadsTensor keys(3, shape, DataType::kFloat32), values(4, shape, DataType::kFloat32);
    HeadsView key = keys.cpu_view(0), value = values.cpu_view(0);
    key.layer_stride = keys.layer_stride();
    value.layer_stride = values.layer_stride();
    const auto& held = cache.sequence(sequence).caches[static_cast<std::size_t>(model)];
    gather_kv(*pool, model, all_layers(pool->layout(model)), held.pages, key, value);
    std::vector<std::byte> all = keys.bytes();
    all.insert(all.end(), values.bytes().begin(), values.bytes().end());
    return all;
  }
  std::shared_ptr<PagePool> pool;
  KvCache cache;
  std::int32_t sequence;
};

TEST(DeviceKv, AllLayersAtOnceAndTheCastCopyGiveTheBytesOfTheCpu) {
  const std::vector pages{KvLayout::make(3, 2, 16, 4, DataType::kFloat32),
                          KvLayout::make(3, 2, 16, 3, DataType::kBFloat16)};
  CastSide cpu(std::make_shared<PagePool>(pages, 1 << 20, host_arena()));
  CastSide device(std::make_shared<PagePool>(pages, 1 << 20, device_arena(kDevice)));
  const simt::HeadsShape shape{3, 11, 2, 16};
  HeadsTensor keys(21, shape, DataType::kFloat32), values(22, shape, DataType::kFloat16);
  keys.fill(1);
  values.fill(2);
  for (CastSide* side : {&cpu, &device}) {
    side->append_all(0, keys, values);
    EXPECT_EQ(side->cache.cast_copy(0, 1, side->sequence), 11);
    side->cache.check_invariants();
  }
  for (std::int32_t model = 0; model < kModels; ++model) {
    EXPECT_EQ(cpu.gathered(model, shape), device.gathered(model, shape)) << model;
  }
}

// Layers of every kind: runs of equal ones at once, what a layer shares not twice.
TEST(DeviceKv, TheCastCopyOfLayersOfManyShapesGivesTheBytesOfTheCpu) {
  const std::vector pages{KvLayout::make(kLayers, 4, DataType::kFloat32),
                          KvLayout::make(kLayers, 3, DataType::kBFloat16)};
  CastSide cpu(std::make_shared<PagePool>(pages, 1 << 20, host_arena()));
  CastSide device(std::make_shared<PagePool>(pages, 1 << 20, device_arena(kDevice)));
  for (CastSide* side : {&cpu, &device}) {
    const RaggedBatch batch = side->cache.prepare(0, std::span(&side->sequence, 1));
    for (std::int32_t layer = 0; layer < pages[0].num_layers(); ++layer) {
      const LayerShape& shape = pages[0].shape(layer);
      if (shape.shares >= 0) continue;
      const auto seed = static_cast<std::uint64_t>(layer);
      HeadsTensor keys(seed, keys_of(shape, 11), DataType::kFloat32);
      HeadsTensor values(seed + 9, values_of(shape, 11), DataType::kFloat32);
      keys.fill(seed);
      values.fill(seed + 9);
      append_kv(*side->pool, {layer}, batch, keys.cpu_view(0),
                shape.latent ? HeadsView{} : values.cpu_view(0));
    }
    side->cache.complete(batch);
    EXPECT_EQ(side->cache.cast_copy(0, 1, side->sequence), 11);
  }
  const auto held = [](const CastSide& side, std::size_t model) -> const ModelCache& {
    return side.cache.sequence(side.sequence).caches[model];
  };
  for (std::int32_t layer = 0; layer < pages[0].num_layers(); ++layer) {
    EXPECT_EQ(layer_bytes(*cpu.pool, held(cpu, 1), 1, layer),
              layer_bytes(*device.pool, held(device, 1), 1, layer))
        << layer;
  }
}

// What a graph may hold is launches alone: the first use of a batch needs memory and tables.
TEST(DeviceKv, ACaptureTakesOnlyWhatWasStagedAndRefusesTheRest) {
  const KvLayout layout = KvLayout::make(2, 1, 16, 4, DataType::kFloat32);
  const auto pool = std::make_shared<PagePool>(std::vector{layout}, 1 << 20, device_arena(kDevice));
  KvCache cache(pool, 1);
  const std::int32_t sequence = cache.open({{1, 2, 3, 4, 5}});
  const RaggedBatch batch = cache.prepare(0, std::span(&sequence, 1));
  HeadsTensor keys(1, {1, 5, 1, 16}, DataType::kFloat32),
      queries(2, {1, 5, 2, 16}, DataType::kFloat32);
  HeadsTensor out(3, {1, 5, 2, 16}, DataType::kFloat32),
      gathered(5, {1, 5, 1, 16}, DataType::kFloat32), values(6, {1, 5, 1, 16}, DataType::kFloat32);
  keys.fill(1);
  queries.fill(2);
  const std::vector<std::byte> before = out.bytes();
  const auto pass = [&] {
    append_kv(*pool, {0}, batch, keys.cpu_view(0), keys.cpu_view(0));
    paged_attention(*pool, 0, batch, {}, queries.cpu_view(0), out.cpu_view(0));
  };
  simt::pretend_capture(true);
  EXPECT_THROW(pass(), std::runtime_error);
  EXPECT_THROW(paged_attention(*pool, 0, batch, {}, queries.cpu_view(0), out.cpu_view(0)),
               std::runtime_error);
  EXPECT_THROW(stage_batch(*pool, batch, 2), std::runtime_error);
  EXPECT_EQ(out.bytes(), before);
  simt::pretend_capture(false);
  stage_batch(*pool, batch, 2);
  gather_kv(*pool, 0, {0}, batch.block_table, gathered.cpu_view(0), values.cpu_view(0));
  simt::pretend_capture(true);
  EXPECT_NO_THROW(pass());
  EXPECT_THROW(gather_kv(*pool, 0, {0}, batch.block_table, keys.cpu_view(0), keys.cpu_view(0)),
               std::runtime_error);
  simt::pretend_capture(false);
  EXPECT_NE(out.bytes(), before);
  cache.complete(batch);
  cache.append(0, sequence, std::vector<std::int32_t>{6});
  const RaggedBatch next = cache.prepare(0, std::span(&sequence, 1));
  HeadsTensor key(4, {1, 1, 1, 16}, DataType::kFloat32);
  simt::pretend_capture(true);  // there is memory for it, but its tables are not there
  EXPECT_THROW(append_kv(*pool, {0}, next, key.cpu_view(0), key.cpu_view(0)), std::runtime_error);
  simt::pretend_capture(false);
  EXPECT_THROW(stage_batch(*pool, batch, 0), std::invalid_argument);
}

TEST(DeviceKv, APoolThatDoesNotFitIsOneClearError) {
  simt::limit_allocations(1 << 20);
  EXPECT_THROW(PagePool(layouts(), 8 << 20, device_arena(kDevice)), std::runtime_error);
  simt::limit_allocations(~std::size_t{0});
}

TEST(DeviceKv, ACopyThatFailsChangesNothing) {
  const auto pool = std::make_shared<PagePool>(layouts(), 1 << 20, device_arena(kDevice));
  KvCache cache(pool, kSequences);
  std::vector<std::int32_t> forks{cache.open({{1, 2, 3, 4, 5, 6}, {1}})};
  cache.complete(cache.prepare(0, forks));
  for (int i = 0; i < 2; ++i) forks.push_back(cache.fork(forks[0]));
  for (const std::int32_t fork : forks) cache.append(0, fork, std::vector<std::int32_t>{7});
  const auto pages = cache.sequence(forks[0]).caches[0].pages;
  for (const int failing : {0, 1}) {  // of the two that three forks of a partly filled page need
    simt::fail_copy(failing);
    EXPECT_THROW(cache.prepare(0, forks), std::runtime_error);
    simt::fail_copy(-1);
    cache.check_invariants();
    EXPECT_EQ(pool->owned(0), 2);
    for (const std::int32_t fork : forks) EXPECT_EQ(cache.sequence(fork).caches[0].pages, pages);
  }
  cache.complete(cache.prepare(0, forks));
  cache.check_invariants();
  EXPECT_EQ(pool->owned(0), 4);
}

TEST(DeviceKv, RefusesLayoutsThatTheKernelDoesNotServe) {
  const KvLayout layout = KvLayout::make(1, 1, 592, 4, DataType::kFloat32);
  PagePool pool({layout}, 1 << 20, device_arena(kDevice));
  RaggedBatch batch;
  batch.ids = {1};
  batch.cu_seqlens = {0, 1};
  batch.seq_lens = {1};
  batch.table_width = 1;
  batch.block_table = {pool.take(0)};
  HeadsTensor queries(1, {1, 1, 1, 592}, DataType::kFloat32);
  EXPECT_THROW(paged_attention(pool, 0, batch, {}, queries.cpu_view(0), queries.cpu_view(0)),
               std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
