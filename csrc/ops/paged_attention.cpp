// Cuts attention over pages into tasks: some query rows of one sequence against one KV head.
#include "ops/paged_attention.hpp"

#include <algorithm>
#include <vector>

#include "arithmetic/element.hpp"
#include "cpu/attention_task.hpp"
#include "cpu/cpu_backend.hpp"
#include "glimprouter/thread_pool.hpp"
#include "ops/head_address.hpp"

namespace glimprouter {
namespace {

// Rows [begin, begin + count) of the (token, head in group) pairs of one sequence and KV head.
struct TaskPlace {
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t begin;
  std::int32_t count;
};

struct Scratch {
  std::vector<float> pages;
  std::vector<float> queries;  // [rows, head_dim]
  std::vector<float> out;      // [rows, value_dim]
};

class AttentionPass {
 public:
  explicit AttentionPass(const HostAttention& attention)
      : arena_(attention.arena),
        layer_(attention.layer),
        tables_(attention.tables),
        options_(attention.options),
        queries_(attention.queries),
        out_(attention.out),
        group_(queries_.heads / layer_.num_kv_heads) {}

  std::vector<TaskPlace> places() const {
    std::vector<TaskPlace> result;
    for (std::size_t i = 0; i < tables_.sequences(); ++i) {
      const std::int32_t rows = (tables_.cu_seqlens[i + 1] - tables_.cu_seqlens[i]) * group_;
      for (std::int32_t head = 0; head < layer_.num_kv_heads; ++head) {
        for (std::int32_t begin = 0; begin < rows; begin += kMaxAttentionRows) {
          result.push_back({static_cast<std::int32_t>(i), head, begin,
                            std::min(kMaxAttentionRows, rows - begin)});
        }
      }
    }
    return result;
  }

  void run(const TaskPlace& place) const noexcept {
    thread_local Scratch scratch;  // grows with the largest layout and stays
    const std::int32_t head_dim = layer_.head_dim;
    const std::int32_t value_dim = layer_.value_dim;
    scratch.pages.resize(static_cast<std::size_t>(attention_scratch_size(layer_)));
    scratch.queries.resize(static_cast<std::size_t>(kMaxAttentionRows * head_dim));
    scratch.out.resize(static_cast<std::size_t>(kMaxAttentionRows * value_dim));
    std::int32_t first_keys[kMaxAttentionRows];
    std::int32_t end_keys[kMaxAttentionRows];
    float sinks[kMaxAttentionRows];
    const auto sequence = static_cast<std::size_t>(place.sequence);
    const std::int32_t first_token = tables_.cu_seqlens[sequence];
    const std::int32_t new_tokens = tables_.cu_seqlens[sequence + 1] - first_token;
    for (std::int32_t row = 0; row < place.count; ++row) {
      const std::int32_t token = (place.begin + row) / group_;
      const std::int32_t head = place.kv_head * group_ + (place.begin + row) % group_;
      const RowView query{head_address(queries_, first_token + token, head), queries_.dtype,
                          head_dim};
      for (std::int32_t i = 0; i < head_dim; ++i) {
        scratch.queries[static_cast<std::size_t>(row * head_dim + i)] =
            element(query, i) * options_.scale;
      }
      end_keys[row] = tables_.seq_lens[sequence] - new_tokens + token + 1;
      first_keys[row] = first_key_seen(end_keys[row], options_.window, options_.chunk_size);
      if (options_.sinks.data != nullptr) sinks[row] = element(options_.sinks, head);
    }
    const AttentionTask task{
        arena_,
        tables_.block_table.data() + sequence * static_cast<std::size_t>(tables_.table_width),
        &layer_,
        place.kv_head,
        place.count,
        scratch.queries.data(),
        first_keys,
        end_keys,
        options_.softcap,
        options_.sinks.data != nullptr ? sinks : nullptr,
        scratch.out.data()};
    active_backend().attend(task, scratch.pages.data());
    for (std::int32_t row = 0; row < place.count; ++row) {
      const std::int32_t token = (place.begin + row) / group_;
      const std::int32_t head = place.kv_head * group_ + (place.begin + row) % group_;
      std::byte* const target = head_address(out_, first_token + token, head);
      for (std::int32_t i = 0; i < value_dim; ++i) {
        store_element(target + i * element_size(out_.dtype), out_.dtype,
                      scratch.out[static_cast<std::size_t>(row * value_dim + i)]);
      }
    }
  }

 private:
  const std::byte* arena_;
  const LayerLayout& layer_;
  const PageTables& tables_;
  const AttentionOptions& options_;
  const HeadsView& queries_;
  const HeadsView& out_;
  std::int32_t group_;
};

}  // namespace

void attend_on_host(const HostAttention& attention) {
  const LayerLayout& layer = attention.layer;
  const AttentionPass pass(attention);
  const std::vector<TaskPlace> places = pass.places();
  std::int64_t keys = 0;
  for (const std::int32_t length : attention.tables.seq_lens) keys += length;
  auto body = [&](std::int64_t index, int) noexcept {
    pass.run(places[static_cast<std::size_t>(index)]);
  };
  parallel_tasks(static_cast<std::int64_t>(places.size()),
                 keys * layer.num_kv_heads * (layer.head_dim + layer.value_dim) / 2,
                 TaskBody(body));
}

}  // namespace glimprouter
