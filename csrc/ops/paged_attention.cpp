// Cuts attention over pages into tasks: some query rows of one sequence against one KV head.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "arithmetic/element.hpp"
#include "cpu/attention_task.hpp"
#include "cpu/cpu_backend.hpp"
#include "device/device_arena.hpp"
#include "glimprouter/kv_ops.hpp"
#include "glimprouter/thread_pool.hpp"
#include "ops/heads_view.hpp"

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
  std::vector<float> out;      // [rows, head_dim]
};

class AttentionPass {
 public:
  AttentionPass(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
                const AttentionOptions& options, const HeadsView& queries, const HeadsView& out)
      : arena_(pages.arena),
        layout_(pages.layout),
        layer_(layer),
        tables_(tables),
        options_(options),
        queries_(queries),
        out_(out),
        group_(queries.heads / layout_.num_kv_heads) {}

  std::vector<TaskPlace> places() const {
    std::vector<TaskPlace> result;
    for (std::size_t i = 0; i < tables_.sequences(); ++i) {
      const std::int32_t rows = (tables_.cu_seqlens[i + 1] - tables_.cu_seqlens[i]) * group_;
      for (std::int32_t head = 0; head < layout_.num_kv_heads; ++head) {
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
    const std::int32_t head_dim = layout_.head_dim;
    const auto elements =
        static_cast<std::size_t>(kMaxAttentionRows) * static_cast<std::size_t>(head_dim);
    scratch.pages.resize(
        static_cast<std::size_t>(attention_scratch_size(head_dim, layout_.page_size)));
    scratch.queries.resize(elements);
    scratch.out.resize(elements);
    std::int32_t first_keys[kMaxAttentionRows];
    std::int32_t end_keys[kMaxAttentionRows];
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
      first_keys[row] = options_.window > 0 ? std::max(0, end_keys[row] - options_.window) : 0;
    }
    const AttentionTask task{
        arena_,
        tables_.block_table.data() + sequence * static_cast<std::size_t>(tables_.table_width),
        &layout_,
        layer_,
        place.kv_head,
        place.count,
        scratch.queries.data(),
        first_keys,
        end_keys,
        options_.softcap,
        scratch.out.data()};
    active_backend().attend(task, scratch.pages.data());
    for (std::int32_t row = 0; row < place.count; ++row) {
      const std::int32_t token = (place.begin + row) / group_;
      const std::int32_t head = place.kv_head * group_ + (place.begin + row) % group_;
      std::byte* const target = head_address(out_, first_token + token, head);
      for (std::int32_t i = 0; i < head_dim; ++i) {
        store_element(target + i * element_size(out_.dtype), out_.dtype,
                      scratch.out[static_cast<std::size_t>(row * head_dim + i)]);
      }
    }
  }

 private:
  const std::byte* arena_;
  const KvLayout& layout_;
  std::int32_t layer_;
  const PageTables& tables_;
  const AttentionOptions& options_;
  const HeadsView& queries_;
  const HeadsView& out_;
  std::int32_t group_;
};

}  // namespace

void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const HeadsView& queries, const HeadsView& out) {
  check_layer(layout, layer);
  if (layout.head_dim % kAttentionLanes != 0) {
    throw std::invalid_argument(
        "attention over pages needs a head size that is a multiple of 16, "
        "got " +
        std::to_string(layout.head_dim));
  }
  if (queries.heads < 1 || queries.heads % layout.num_kv_heads != 0) {
    throw std::invalid_argument("the number of query heads must be a multiple of the " +
                                std::to_string(layout.num_kv_heads) + " KV heads, got " +
                                std::to_string(queries.heads));
  }
  check_heads(queries, "queries", tokens, queries.heads, layout.head_dim);
  check_heads(out, "out", tokens, queries.heads, layout.head_dim);
}

void paged_attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream) {
  const KvLayout& layout = pool.layout(batch.model);
  if (DeviceArena* const arena = pool.device_arena()) {
    check_attention(layout, layer, static_cast<std::int64_t>(batch.ids.size()), queries, out);
    arena->attend(layout, layer, batch, options, queries, out, stream);
    return;
  }
  paged_attention({pool.address(kNullPage), layout}, layer, tables_of(batch), options, queries,
                  out);
}

void paged_attention(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out) {
  const KvLayout& layout = pages.layout;
  check_attention(layout, layer, tables.tokens(), queries, out);
  const AttentionPass pass(pages, layer, tables, options, queries, out);
  const std::vector<TaskPlace> places = pass.places();
  std::int64_t keys = 0;
  for (const std::int32_t length : tables.seq_lens) keys += length;
  auto body = [&](std::int64_t index, int) noexcept {
    pass.run(places[static_cast<std::size_t>(index)]);
  };
  parallel_tasks(static_cast<std::int64_t>(places.size()),
                 keys * layout.num_kv_heads * layout.head_dim, TaskBody(body));
}

}  // namespace glimprouter
