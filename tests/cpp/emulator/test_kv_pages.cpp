// The kernels that move keys and values, run by the emulator: against a model that knows the
// order of a page's elements and casts in double precision, and against the CPU's own functions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "arithmetic/element.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_ops.hpp"
#include "kernels/kv/launch.cuh"
#include "kv_tensors.hpp"
#include "lanes.hpp"

namespace glimprouter {
namespace {

using simt::HeadsTensor;
using simt::kReduced;
constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16};

struct Case {
  std::int32_t layers;
  std::int32_t heads;
  std::int32_t head_dim;
  std::int32_t page_size;
  std::int64_t tokens;
};
// Odd head sizes, page boundaries before, at and after the last token, single tokens.
constexpr Case kCases[] = {{1, 1, 1, 1, 1},   {2, 2, 16, 4, 4},  {1, 3, 7, 5, 11},
                           {3, 1, 64, 16, 1}, {2, 2, 24, 8, 17}, {1, 2, 128, 16, 40},
                           {2, 1, 33, 3, 9}};

KvLayout layout_of(const Case& shape, DataType dtype) {
  return KvLayout::make(shape.layers, shape.heads, shape.head_dim, shape.page_size, dtype);
}

// All layers of it.
DevicePages pages_of(std::byte* arena, const KvLayout& layout) {
  return {arena, layout.layer(0), layout.layer_stride(0, layout.num_layers())};
}

PagePool pool_of(const std::vector<KvLayout>& layouts, std::int64_t tokens) {
  std::int64_t bytes = 0;
  for (const KvLayout& layout : layouts) {
    bytes += (tokens / layout.page_size() + 4) * layout.page_bytes();
  }
  const std::int64_t sector = PagePool::default_sector_bytes(layouts);
  return PagePool(layouts, bytes + 3 * sector * static_cast<std::int64_t>(layouts.size()),
                  arena_on("cpu"));
}

void fill_arena(PagePool& pool, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  for (std::byte& byte : simt::arena_of(pool)) byte = static_cast<std::byte>(random() & 0x7F);
}

// Calls visit(case, seed) for the grid of shapes.
template <typename Visit>
void for_cases(Visit visit) {
  std::uint64_t seed = 0;
  for (const Case& shape : kCases) {
    if (kReduced && shape.layers * shape.heads * 2 > 4) continue;
    visit(shape, ++seed);
  }
}

TEST(KvPages, HalfToFloatIsExactForEveryNumber) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const float expected = float_from_half(static_cast<std::uint16_t>(half));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(device::float_of_half(half)),
              std::bit_cast<std::uint32_t>(expected))
        << half;
  }
}

// Slots for the tokens in shuffled order; some tokens have none.
std::vector<std::int64_t> shuffled_slots(const std::vector<PageId>& pages, const Case& shape,
                                         std::uint64_t seed) {
  std::vector<std::int64_t> slot_mapping;
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    const std::int64_t page = pages[static_cast<std::size_t>(token / shape.page_size)];
    slot_mapping.push_back(page * shape.page_size + token % shape.page_size);
  }
  std::mt19937_64 random(seed);
  if (seed % 2 == 0) std::shuffle(slot_mapping.begin(), slot_mapping.end(), random);
  for (std::size_t i = 0; i < slot_mapping.size(); ++i) {
    if (random() % 5 == 0 && slot_mapping.size() > 1) slot_mapping[i] = -1;
  }
  return slot_mapping;
}

void expect_appended(const Case& shape, DataType source, DataType target, std::uint64_t seed,
                     device::LaunchStatus (*append)(const AppendArguments&)) {
  const KvLayout layout = layout_of(shape, target);
  PagePool pool = pool_of({layout}, shape.tokens);
  fill_arena(pool, seed);
  const auto pages =
      simt::take_pages(pool, 0, layout.pages_for(static_cast<int>(shape.tokens)), seed);
  const std::vector<std::int64_t> slot_mapping = shuffled_slots(pages, shape, seed);
  const simt::HeadsShape heads{shape.layers, shape.tokens, shape.heads, shape.head_dim};
  HeadsTensor keys(seed, heads, source);
  HeadsTensor values(seed + 100, heads, source);
  keys.fill(seed);
  values.fill(seed + 1);
  std::vector<std::byte> expected(simt::arena_of(pool).begin(), simt::arena_of(pool).end());
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    const std::int64_t slot = slot_mapping[static_cast<std::size_t>(token)];
    if (slot < 0) continue;
    for (std::int32_t line = 0; line < shape.layers * 2 * shape.heads; ++line) {
      const std::int32_t layer = line / (2 * shape.heads);
      const std::int32_t head = line % shape.heads;
      const bool is_value = line / shape.heads % 2 != 0;
      for (std::int32_t i = 0; i < shape.head_dim; ++i) {
        const double value = (is_value ? values : keys).value(layer, token, head, i);
        const std::uint32_t bits = simt::exact_bits(simt::as_type(value, target), target);
        const std::int64_t at =
            simt::page_offset(static_cast<PageId>(slot / shape.page_size)) +
            simt::place_in_page(layout, layer, is_value, head, slot % shape.page_size, i);
        std::memcpy(expected.data() + at, &bits, target == DataType::kFloat32 ? 4 : 2);
      }
    }
  }
  const AppendArguments arguments{pages_of(pool.address(kNullPage), layout),
                                  shape.layers,
                                  slot_mapping.data(),
                                  shape.tokens,
                                  keys.device_view(),
                                  values.device_view()};
  ASSERT_EQ(append(arguments), 0);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), simt::arena_of(pool).begin()))
      << "seed " << seed << ", " << static_cast<int>(source) << " to " << static_cast<int>(target);
}

device::LaunchStatus append_all_layers(const AppendArguments& arguments) {
  return device::launch_append(arguments, {2, false}, nullptr);
}

device::LaunchStatus append_layer_by_layer(const AppendArguments& arguments) {
  for (std::int32_t layer = 0; layer < arguments.layers; ++layer) {
    AppendArguments one = arguments;
    one.layers = 1;
    one.pages.arena += layer * one.pages.layer_stride;
    one.keys.data += layer * one.keys.layer_stride;
    one.values.data += layer * one.values.layer_stride;
    if (const int status = device::launch_append(one, {100, false}, nullptr); status != 0)
      return status;
  }
  return 0;
}

TEST(KvPages, AppendWritesEverySlotAndNothingElse) {
  for_cases([](const Case& shape, std::uint64_t seed) {
    simt::set_seed(seed);
    for (const DataType source : kTypes) {
      for (const DataType target : kTypes) {
        expect_appended(shape, source, target, seed, append_all_layers);
        expect_appended(shape, source, target, seed + 7, append_layer_by_layer);
      }
    }
  });
}

TEST(KvPages, AppendEqualsTheCpu) {
  for_cases([](const Case& shape, std::uint64_t seed) {
    for (const DataType dtype : kTypes) {
      const KvLayout layout = layout_of(shape, dtype);
      PagePool pool = pool_of({layout}, shape.tokens);
      PagePool cpu = pool_of({layout}, shape.tokens);
      const auto pages =
          simt::take_pages(pool, 0, layout.pages_for(static_cast<int>(shape.tokens)), seed);
      RaggedBatch batch;
      for (std::int64_t token = 0; token < shape.tokens; ++token) {
        const std::int64_t page = pages[static_cast<std::size_t>(token / shape.page_size)];
        batch.slot_mapping.push_back(page * shape.page_size + token % shape.page_size);
      }
      const simt::HeadsShape heads{shape.layers, shape.tokens, shape.heads, shape.head_dim};
      HeadsTensor keys(seed, heads, DataType::kFloat32);
      HeadsTensor values(seed + 1, heads, DataType::kFloat16);
      keys.fill(seed);
      values.fill(seed + 1);
      for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
        append_kv(cpu, {layer}, batch, keys.cpu_view(layer), values.cpu_view(layer));
      }
      ASSERT_EQ(device::launch_append({pages_of(pool.address(kNullPage), layout), shape.layers,
                                       batch.slot_mapping.data(), shape.tokens, keys.device_view(),
                                       values.device_view()},
                                      {3, false}, nullptr),
                0);
      EXPECT_TRUE(std::ranges::equal(simt::arena_of(pool), simt::arena_of(cpu))) << seed;
    }
  });
}

TEST(KvPages, GatherReadsPagesAndEqualsTheCpu) {
  for_cases([](const Case& shape, std::uint64_t seed) {
    for (const DataType source : kTypes) {
      for (const DataType target : kTypes) {
        const KvLayout layout = layout_of(shape, source);
        PagePool pool = pool_of({layout}, shape.tokens);
        fill_arena(pool, seed);
        const auto pages =
            simt::take_pages(pool, 0, layout.pages_for(static_cast<int>(shape.tokens)), seed);
        const simt::HeadsShape heads{shape.layers, shape.tokens, shape.heads, shape.head_dim};
        HeadsTensor keys(seed, heads, target), values(seed + 1, heads, target);
        HeadsTensor cpu_keys(seed, heads, target), cpu_values(seed + 1, heads, target);
        simt::set_seed(seed);
        ASSERT_EQ(device::launch_gather(
                      {pages_of(pool.address(kNullPage), layout), shape.layers, pages.data(),
                       shape.tokens, keys.device_view(), values.device_view()},
                      {2, false}, nullptr),
                  0);
        for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
          gather_kv(pool, 0, {layer}, pages, cpu_keys.cpu_view(layer), cpu_values.cpu_view(layer));
        }
        EXPECT_EQ(keys.bytes(), cpu_keys.bytes()) << seed;
        EXPECT_EQ(values.bytes(), cpu_values.bytes()) << seed;
        if (source != target) continue;
        const std::int64_t token = shape.tokens - 1;
        const std::byte* const page =
            pool.address(kNullPage) +
            simt::page_offset(pages[static_cast<std::size_t>(token / shape.page_size)]);
        EXPECT_EQ(
            std::memcmp(values.at(shape.layers - 1, token, shape.heads - 1, 0),
                        page + simt::place_in_page(layout, shape.layers - 1, true, shape.heads - 1,
                                                   token % shape.page_size, 0),
                        static_cast<std::size_t>(shape.head_dim * element_size(target))),
            0);
      }
    }
  });
}

// Keys and values of the tokens from `begin` on into an image of the arena, element by element.
void write_tokens(const Case& shape, const KvLayout& layout, const std::vector<PageId>& pages,
                  std::int64_t begin, HeadsTensor& keys, HeadsTensor& values, std::byte* arena) {
  for (std::int64_t token = begin; token < shape.tokens; ++token) {
    std::byte* const page =
        arena + simt::page_offset(pages[static_cast<std::size_t>(token / layout.page_size())]);
    for (std::int32_t line = 0; line < shape.layers * 2 * shape.heads; ++line) {
      const std::int32_t layer = line / (2 * shape.heads), head = line % shape.heads;
      const bool is_value = line / shape.heads % 2 != 0;
      for (std::int32_t i = 0; i < shape.head_dim; ++i) {
        const double value = (is_value ? values : keys).value(layer, token, head, i);
        const std::uint32_t bits =
            simt::exact_bits(simt::as_type(value, layout.dtype()), layout.dtype());
        const std::int64_t at =
            simt::place_in_page(layout, layer, is_value, head, token % layout.page_size(), i);
        std::memcpy(page + at, &bits, layout.dtype() == DataType::kFloat32 ? 4 : 2);
      }
    }
  }
}

void expect_cast(const Case& shape, DataType source, DataType target, std::uint64_t seed) {
  Case other = shape;
  other.page_size = static_cast<std::int32_t>(1 + (seed * 5 + shape.page_size) % 9);
  const KvLayout from = layout_of(shape, source), to = layout_of(other, target);
  PagePool pool = pool_of({from, to}, shape.tokens);
  const auto count = static_cast<std::int32_t>(shape.tokens);
  const auto source_pages = simt::take_pages(pool, 0, from.pages_for(count), seed);
  const auto target_pages = simt::take_pages(pool, 1, to.pages_for(count), seed + 1);
  const simt::HeadsShape heads{shape.layers, shape.tokens, shape.heads, shape.head_dim};
  HeadsTensor keys(seed, heads, source), values(seed + 1, heads, source);
  keys.fill(seed);
  values.fill(seed + 1);
  std::byte* const arena = pool.address(kNullPage);
  write_tokens(shape, from, source_pages, 0, keys, values, arena);
  std::vector<std::byte> expected(simt::arena_of(pool).begin(), simt::arena_of(pool).end());
  const std::int64_t begin = shape.tokens / 3;
  write_tokens(other, to, target_pages, begin, keys, values, expected.data());
  simt::set_seed(seed);
  ASSERT_EQ(
      device::launch_cast_copy({shape.layers, pages_of(arena, from), source_pages.data(),
                                pages_of(arena, to), target_pages.data(), begin, shape.tokens},
                               {2, false}, nullptr),
      0);
  EXPECT_TRUE(std::ranges::equal(expected, simt::arena_of(pool))) << "seed " << seed;
}

// From one page size and type to another; what lies before `begin` and after the end is left alone.
TEST(KvPages, CastCopyMovesTheTokensOfARange) {
  for_cases([](const Case& shape, std::uint64_t seed) {
    for (const DataType source : kTypes) {
      for (const DataType target : kTypes) expect_cast(shape, source, target, seed);
    }
  });
}

// Fork and copy-on-write within the arena; offload to, and fetch from, pages side by side.
TEST(KvPages, PageCopyMovesWholePagesEitherWay) {
  for (const std::int32_t head_dim : {4, 40, 200}) {
    if (kReduced && head_dim > 40) continue;
    const KvLayout layout = KvLayout::make(3, 2, head_dim, 4, DataType::kFloat32);
    PagePool pool = pool_of({layout}, 40);
    fill_arena(pool, 3);
    const auto from = simt::take_pages(pool, 0, 5, 1);
    const auto to = simt::take_pages(pool, 0, 5, 2);
    const auto bytes = static_cast<std::size_t>(layout.page_bytes());
    std::vector<std::byte> expected(simt::arena_of(pool).begin(), simt::arena_of(pool).end());
    for (std::size_t i = 0; i < from.size(); ++i) {
      std::memcpy(expected.data() + simt::page_offset(to[i]), pool.address(from[i]), bytes);
    }
    std::byte* const arena = pool.address(kNullPage);
    for (const int processors : {1, 100}) {
      if (kReduced && processors > 1) continue;
      ASSERT_EQ(
          device::launch_page_copy({arena, from.data(), arena, to.data(), 5, layout.page_bytes()},
                                   {processors, false}, nullptr),
          0);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), simt::arena_of(pool).begin()));
    }
    std::vector<std::byte> host(6 * bytes, std::byte{9});
    ASSERT_EQ(
        device::launch_page_copy({arena, to.data(), host.data(), nullptr, 5, layout.page_bytes()},
                                 {1, false}, nullptr),
        0);
    for (std::size_t i = 0; i < from.size(); ++i) {
      EXPECT_EQ(std::memcmp(host.data() + i * bytes, pool.address(from[i]), bytes), 0);
      std::memset(pool.address(to[i]), 0, bytes);
    }
    EXPECT_EQ(std::count(host.end() - static_cast<std::ptrdiff_t>(bytes), host.end(), std::byte{9}),
              static_cast<std::ptrdiff_t>(bytes));
    ASSERT_EQ(
        device::launch_page_copy({host.data(), nullptr, arena, to.data(), 5, layout.page_bytes()},
                                 {1, false}, nullptr),
        0);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), simt::arena_of(pool).begin()));
  }
}

TEST(KvPages, NothingToMoveIsNoLaunch) {
  const KvLayout layout = layout_of(kCases[1], DataType::kFloat32);
  const DevicePages pages = pages_of(nullptr, layout);
  EXPECT_EQ(device::launch_append({pages, 2, nullptr, 0, {}, {}}, {2, false}, nullptr), 0);
  EXPECT_EQ(device::launch_gather({pages, 2, nullptr, 0, {}, {}}, {2, false}, nullptr), 0);
  EXPECT_EQ(
      device::launch_cast_copy({2, pages, nullptr, pages, nullptr, 4, 4}, {2, false}, nullptr), 0);
  EXPECT_EQ(
      device::launch_page_copy({nullptr, nullptr, nullptr, nullptr, 0, 256}, {2, false}, nullptr),
      0);
}

}  // namespace
}  // namespace glimprouter
