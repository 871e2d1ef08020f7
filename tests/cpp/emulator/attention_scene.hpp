// Attention over pages full of random keys and values: by the kernels' own source, run by the
// emulator, on the CPU, and in double precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "emulator/grid.hpp"
#include "glimprouter/kv_ops.hpp"
#include "kernels/attention/launch.cuh"
#include "kv_tensors.hpp"
#include "lanes.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter::simt {

struct Span {
  std::int32_t length;      // keys
  std::int32_t new_tokens;  // queries, the last of them
};

struct AttentionCase {
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t page_size;
  DataType dtype;  // of the pages
  AttentionOptions options;
  std::vector<Span> spans;
  std::int32_t value_dim = 0;  // 0: as many as head_dim
  bool latent = false;         // the values are the first elements of the keys

  std::int32_t value_size() const { return value_dim == 0 ? head_dim : value_dim; }
};

// Pages full of keys and values, queries, and what attention over them gives.
class AttentionScene {
 public:
  AttentionScene(const AttentionCase& shape, std::uint64_t seed)
      : shape_(shape),
        layout_(KvLayout::make(layers(shape), shape.page_size, shape.dtype)),
        pool_({layout_}, arena_bytes(), host_arena()),
        queries_(seed, {1, tokens(), shape.heads, shape.head_dim}, query_type()) {
    queries_.fill(seed + 1);
    std::mt19937_64 random(seed);
    // What is beyond a sequence must not be read into a result: NaN.
    std::ranges::fill(arena_of(pool_), std::byte{0xFF});
    batch_.cu_seqlens = {0};
    for (const Span& span : shape.spans) {
      tables_.push_back(take_pages(pool_, 0, layout_.pages_for(span.length), random()));
      batch_.table_width = std::max(batch_.table_width, layout_.pages_for(span.length));
      batch_.sequences.push_back(static_cast<std::int32_t>(batch_.sequences.size()));
      batch_.cu_seqlens.push_back(batch_.cu_seqlens.back() + span.new_tokens);
      batch_.seq_lens.push_back(span.length);
      write_keys(span.length, random);
    }
    batch_.ids.resize(static_cast<std::size_t>(tokens()));
    batch_.slot_mapping.resize(batch_.ids.size());  // attention does not look at them
    for (const std::vector<PageId>& table : tables_) {
      batch_.block_table.insert(batch_.block_table.end(), table.begin(), table.end());
      batch_.block_table.resize(
          batch_.block_table.size() + static_cast<std::size_t>(batch_.table_width) - table.size(),
          kNullPage);
    }
  }

  HeadsTensor output(std::uint64_t seed) const {
    return HeadsTensor(seed, {1, tokens(), shape_.heads, shape_.value_size()}, query_type());
  }

  void on_cpu(HeadsTensor& out) {
    paged_attention(pool_, kLayer, batch_, shape_.options, queries_.cpu_view(0), out.cpu_view(0));
  }

  void on_device(HeadsTensor& out, AttentionLoads loads, std::int32_t more_tokens = 0,
                 std::int32_t more_keys = 0) {
    AttentionArguments arguments{{pool_.address(kNullPage), layout_.layer(kLayer)},
                                 batch_.block_table.data(),
                                 batch_.table_width,
                                 batch_.cu_seqlens.data(),
                                 batch_.seq_lens.data(),
                                 static_cast<std::int32_t>(shape_.spans.size()),
                                 static_cast<std::int32_t>(tokens()),
                                 more_tokens,
                                 more_keys,
                                 shape_.heads,
                                 shape_.options.scale,
                                 shape_.options.window,
                                 shape_.options.softcap,
                                 shape_.options.sinks,
                                 shape_.options.chunk_size,
                                 queries_.device_view(),
                                 out.device_view(),
                                 {},
                                 loads};
    for (const Span& span : shape_.spans) {
      arguments.most_tokens = std::max(arguments.most_tokens, span.new_tokens + more_tokens);
      arguments.most_keys = std::max(arguments.most_keys, span.length + more_keys);
    }
    const auto partials =
        static_cast<std::size_t>(tokens() * shape_.heads * attention_chunks(arguments));
    std::vector<float> partial_out(partials * static_cast<std::size_t>(shape_.value_size()) + 4,
                                   NAN);
    std::vector<float> sums(partials * 2, NAN);
    std::vector<std::uint32_t> tickets(static_cast<std::size_t>(attention_tickets(arguments)));
    const auto misaligned = reinterpret_cast<std::uintptr_t>(partial_out.data()) / 4 % 4;
    arguments.workspace = {partial_out.data() + (4 - misaligned) % 4, sums.data(), tickets.data()};
    ASSERT_EQ(device::launch_attention(arguments, {}, nullptr), 0);
    EXPECT_EQ(std::ranges::count(tickets, 0u), static_cast<std::ptrdiff_t>(tickets.size()))
        << "tickets must reset themselves";
  }

  // The largest error of an output against double precision, in units of the largest value.
  double error(HeadsTensor& out) {
    double worst = 0;
    for (std::size_t i = 0; i < shape_.spans.size(); ++i) {
      for (std::int32_t token = 0; token < shape_.spans[i].new_tokens; ++token) {
        for (std::int32_t head = 0; head < shape_.heads; ++head) {
          const std::vector<double> expected = reference(i, token, head);
          for (std::int32_t k = 0; k < shape_.value_size(); ++k) {
            const double value = out.value(0, batch_.cu_seqlens[i] + token, head, k);
            const double bound = std::fabs(value - expected[static_cast<std::size_t>(k)]);
            worst = std::isnan(bound) ? INFINITY : std::max(worst, bound);
          }
        }
      }
    }
    return worst;
  }

 private:
  static constexpr std::int32_t kLayers = 2, kLayer = 1;

  static std::vector<LayerShape> layers(const AttentionCase& shape) {
    const LayerShape layer{shape.kv_heads, shape.head_dim, shape.value_size(), -1, shape.latent};
    return std::vector<LayerShape>(kLayers, layer);
  }

  DataType query_type() const {
    return shape_.dtype == DataType::kFloat16 ? DataType::kFloat32 : shape_.dtype;
  }
  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const Span& span : shape_.spans) sum += span.new_tokens;
    return sum;
  }
  std::int64_t arena_bytes() const {
    std::int64_t pages = 4;
    for (const Span& span : shape_.spans) pages += layout_.pages_for(span.length) + 1;
    return (pages + 3) * layout_.page_bytes();
  }
  std::byte* key_at(const std::vector<PageId>& table, std::int32_t token, bool value,
                    std::int32_t head, std::int32_t i) {
    const std::int32_t page = token / shape_.page_size;
    return pool_.address(kNullPage) + page_offset(table[static_cast<std::size_t>(page)]) +
           place_in_page(layout_, kLayer, value, head, token % shape_.page_size, i);
  }
  void write_keys(std::int32_t length, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    for (std::int32_t token = 0; token < length; ++token) {
      for (const bool value : {false, true}) {
        for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
          if (value && shape_.latent) continue;
          for (std::int32_t i = 0; i < (value ? shape_.value_size() : shape_.head_dim); ++i) {
            const std::uint32_t bits =
                exact_bits(as_type(normal(random), shape_.dtype), shape_.dtype);
            std::memcpy(key_at(tables_.back(), token, value, head, i), &bits,
                        static_cast<std::size_t>(element_size(shape_.dtype)));
          }
        }
      }
    }
  }

  std::vector<double> reference(std::size_t sequence, std::int32_t token, std::int32_t head) {
    const Span& span = shape_.spans[sequence];
    const std::int32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    const std::int32_t end = span.length - span.new_tokens + token + 1;
    const std::int32_t window = shape_.options.window;
    std::int32_t begin = window > 0 ? std::max(0, end - window) : 0;
    if (const std::int32_t chunk = shape_.options.chunk_size; chunk > 0) {
      while (begin / chunk < (end - 1) / chunk) ++begin;
    }
    std::vector<double> weights, result(static_cast<std::size_t>(shape_.value_size()));
    for (std::int32_t key = begin; key < end; ++key) {
      double score = 0;
      for (std::int32_t i = 0; i < shape_.head_dim; ++i) {
        score += queries_.value(0, batch_.cu_seqlens[sequence] + token, head, i) *
                 exact_value(key_at(tables_[sequence], key, false, kv_head, i), shape_.dtype);
      }
      score *= shape_.options.scale;
      const double cap = shape_.options.softcap;
      weights.push_back(cap > 0 ? cap * std::tanh(score / cap) : score);
    }
    const RowView& sinks = shape_.options.sinks;
    const double sink = sinks.data != nullptr
                            ? exact_value(static_cast<const std::byte*>(sinks.data) +
                                              head * element_size(sinks.dtype),
                                          sinks.dtype)
                            : -INFINITY;
    const double largest = std::max(std::ranges::max(weights), sink);
    double sum = std::exp(sink - largest);
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    for (std::int32_t key = begin; key < end; ++key) {
      for (std::int32_t i = 0; i < shape_.value_size(); ++i) {
        result[static_cast<std::size_t>(i)] +=
            weights[static_cast<std::size_t>(key - begin)] / sum *
            exact_value(key_at(tables_[sequence], key, true, kv_head, i), shape_.dtype);
      }
    }
    return result;
  }

  AttentionCase shape_;
  KvLayout layout_;
  PagePool pool_;
  HeadsTensor queries_;
  RaggedBatch batch_;
  std::vector<std::vector<PageId>> tables_;
};

// By both ways of loading, against the CPU to the bit, and against double precision: half a unit of
// the output's type, and for fp32 what the sums may lose over 5000 keys.
inline void expect_exact(const AttentionCase& shape, std::uint64_t seed, int schedules = 1) {
  AttentionScene scene(shape, seed);
  HeadsTensor expected = scene.output(seed);
  scene.on_cpu(expected);
  for (int schedule = 0; schedule < schedules; ++schedule) {
    for (const AttentionLoads loads : {AttentionLoads::kDirect, AttentionLoads::kStaged}) {
      HeadsTensor out = scene.output(seed);
      scene.on_device(out, loads, schedule % 3, schedule * 300);
      ASSERT_EQ(out.bytes(), expected.bytes())
          << "seed " << seed << ", schedule " << schedule << ", loads " << static_cast<int>(loads);
    }
  }
  const double bound = expected.dtype() == DataType::kBFloat16 ? 0x1p-7 : 2e-5;
  EXPECT_LT(scene.error(expected), bound) << "seed " << seed;
}

}  // namespace glimprouter::simt
