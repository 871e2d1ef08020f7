// Attention for many query rows at a time, included behind attention_kernels-inl.hpp: a vector
// holds the same element of several rows, so that a key or value is loaded once for all of them.
// Every row sees the operations of the specification in their order, and so gets the bits of that
// file's code.

constexpr std::int32_t kBlockRows = kAttentionBlockRows;
// From so many rows on a block is faster, although the rows that it lacks are computed as well.
constexpr std::int32_t kLeastBlockRows = 9;
constexpr int kKeysTogether = Vec::kWidth == 16 ? 4 : 2;  // as many as the registers hold

// Sums over the virtual lanes `first`, `first` + kSpan, ... of the products of a vector of rows
// with some keys: the lower half of the lanes, then the upper half, as the tree has it.
template <int kSpan, int kKeys>
inline __attribute__((always_inline)) void lane_tree(const float* queries, const float* keys,
                                                     std::int32_t head_dim, int first, Vec* sums) {
  if constexpr (kSpan == kAttentionLanes) {
    for (int key = 0; key < kKeys; ++key) sums[key] = Vec::broadcast(0.0f);
    for (std::int32_t i = first; i < head_dim; i += kAttentionLanes) {
      const Vec q = Vec::load(queries + i * kBlockRows);
      for (int key = 0; key < kKeys; ++key) {
        sums[key] = fma(q, Vec::broadcast(keys[key * head_dim + i]), sums[key]);
      }
    }
  } else {
    Vec upper[kKeys];
    lane_tree<2 * kSpan, kKeys>(queries, keys, head_dim, first, sums);
    lane_tree<2 * kSpan, kKeys>(queries, keys, head_dim, first + kSpan, upper);
    for (int key = 0; key < kKeys; ++key) sums[key] = sums[key] + upper[key];
  }
}

template <int kKeys>
void score_keys(const float* queries, const float* keys, std::int32_t head_dim, float* scores) {
  for (int row = 0; row < kBlockRows; row += Vec::kWidth) {
    Vec sums[kKeys];
    lane_tree<1, kKeys>(queries + row, keys, head_dim, 0, sums);
    for (int key = 0; key < kKeys; ++key) sums[key].store(scores + key * kBlockRows + row);
  }
}

// queries: [head_dim, kBlockRows], scores: [tokens, kBlockRows].
void score_block(const float* queries, const float* keys, std::int32_t tokens,
                 std::int32_t head_dim, float* scores) {
  std::int32_t token = 0;
  for (; token + kKeysTogether <= tokens; token += kKeysTogether) {
    score_keys<kKeysTogether>(queries, keys + token * head_dim, head_dim,
                              scores + token * kBlockRows);
  }
  for (; token < tokens; ++token) {
    score_keys<1>(queries, keys + token * head_dim, head_dim, scores + token * kBlockRows);
  }
}

// Some rows of a task and what they have so far; a row's values stand in a column. A block that
// lacks rows repeats its last one.
struct RowBlock {
  std::int32_t first_keys[kBlockRows];
  std::int32_t end_keys[kBlockRows];
  float maximum[kBlockRows];  // of the chunk that is being read, and its sum
  float sum[kBlockRows];
  RowSums sums[kBlockRows];  // without the chunk
  float* queries;            // [head_dim, kBlockRows]
  float* chunk;              // [value_dim, kBlockRows]
  float* total;              // [value_dim, kBlockRows]
};

void begin_block(const AttentionTask& task, std::int32_t first_row, RowBlock* block) {
  const std::int32_t head_dim = task.layer->head_dim;
  for (std::int32_t i = 0; i < task.layer->value_dim * kBlockRows; ++i) {
    block->chunk[i] = 0.0f;
    block->total[i] = 0.0f;
  }
  for (std::int32_t row = 0; row < kBlockRows; ++row) {
    const std::int32_t own = first_row + row < task.rows ? first_row + row : task.rows - 1;
    block->first_keys[row] = task.first_keys[own];
    block->end_keys[row] = task.end_keys[own];
    block->maximum[row] = kMinusInfinity;
    block->sum[row] = 0.0f;
    for (std::int32_t i = 0; i < head_dim; ++i) {
      block->queries[i * kBlockRows + row] = task.queries[own * head_dim + i];
    }
  }
}

// As close_chunk, for all rows.
void close_block_chunk(std::int32_t value_dim, RowBlock* block) {
  bool first[kBlockRows];  // the chunk is the row's first one
  bool later[kBlockRows];
  float before[kBlockRows];
  float added[kBlockRows];
  for (std::int32_t row = 0; row < kBlockRows; ++row) {
    RowSums* const sums = block->sums + row;
    first[row] = sums->started && !sums->merged;
    later[row] = sums->started && sums->merged;
    before[row] = 1.0f;
    added[row] = 0.0f;
    if (!sums->started) continue;
    sums->chunk = {block->maximum[row], block->sum[row]};
    const ChunkScales scales = merge_sums(sums);
    before[row] = scales.total;
    added[row] = scales.chunk;
    block->maximum[row] = kMinusInfinity;
    block->sum[row] = 0.0f;
  }
  for (std::int32_t i = 0; i < value_dim; ++i) {
    float* const total = block->total + i * kBlockRows;
    float* const chunk = block->chunk + i * kBlockRows;
    float merged[kBlockRows];
    for (std::int32_t row = 0; row < kBlockRows; row += Vec::kWidth) {
      fma(Vec::load(added + row), Vec::load(chunk + row),
          Vec::load(total + row) * Vec::load(before + row))
          .store(merged + row);
    }
    for (std::int32_t row = 0; row < kBlockRows; ++row) {
      const float old = total[row];
      const float other = first[row] ? chunk[row] : old;
      total[row] = later[row] ? merged[row] : other;
      chunk[row] = 0.0f;
    }
  }
}

void finish_block(const AttentionTask& task, std::int32_t first_row, RowBlock* block) {
  const std::int32_t value_dim = task.layer->value_dim;
  for (std::int32_t row = 0; row < kBlockRows && first_row + row < task.rows; ++row) {
    const float scale = final_scale(task, first_row + row, block->sums + row);
    float* const out = task.out + (first_row + row) * value_dim;
    for (std::int32_t i = 0; i < value_dim; ++i) {
      out[i] = block->total[i * kBlockRows + row] * scale;
    }
  }
}

// As weigh_scores, for all rows: scores become weights, [tokens, kBlockRows].
void weigh_block(float* scores, std::int32_t tokens, RowBlock* block, float* rescale) {
  const Vec floor = Vec::broadcast(exp_constants::kFloor);
  for (int row = 0; row < kBlockRows; row += Vec::kWidth) {
    const Vec before = Vec::load(block->maximum + row);
    Vec maximum = before;
    for (std::int32_t token = 0; token < tokens; ++token) {
      maximum = max_number(maximum, Vec::load(scores + token * kBlockRows + row));
    }
    Vec sum = Vec::broadcast(0.0f);
    for (std::int32_t token = 0; token < tokens; ++token) {
      float* const score = scores + token * kBlockRows + row;
      const Vec weight = exponential(max_propagate(floor, Vec::load(score) - maximum));
      weight.store(score);
      sum = sum + weight;
    }
    const Vec scale = exponential(max_propagate(floor, before - maximum));
    scale.store(rescale + row);
    (Vec::load(block->sum + row) * scale + sum).store(block->sum + row);
    maximum.store(block->maximum + row);
  }
}

// chunk = chunk * rescale + weights * values over tokens, from the values' first on, that all rows
// see.
void add_block(const float* weights, const PageValues& values, std::int32_t tokens,
               const float* rescale, float* chunk) {
  constexpr int kTogether = 8;  // elements
  for (int row = 0; row < kBlockRows; row += Vec::kWidth) {
    const Vec scale = Vec::load(rescale + row);
    for (std::int32_t i = 0; i < values.size; i += kTogether) {
      float* const target = chunk + i * kBlockRows + row;
      Vec sums[kTogether];
      for (int k = 0; k < kTogether; ++k) sums[k] = Vec::load(target + k * kBlockRows) * scale;
      for (std::int32_t token = 0; token < tokens; ++token) {
        const Vec weight = Vec::load(weights + token * kBlockRows + row);
        const float* const value = values.data + token * values.stride + i;
        for (int k = 0; k < kTogether; ++k) {
          sums[k] = fma(weight, Vec::broadcast(value[k]), sums[k]);
        }
      }
      for (int k = 0; k < kTogether; ++k) sums[k].store(target + k * kBlockRows);
    }
  }
}

// Adds a token that only some rows see.
void add_seen_by_some(const bool* sees, const float* weights, const float* value,
                      std::int32_t value_dim, float* chunk) {
  for (std::int32_t i = 0; i < value_dim; ++i) {
    float* const target = chunk + i * kBlockRows;
    float sums[kBlockRows];
    for (std::int32_t row = 0; row < kBlockRows; row += Vec::kWidth) {
      fma(Vec::load(weights + row), Vec::broadcast(value[i]), Vec::load(target + row))
          .store(sums + row);
    }
    for (std::int32_t row = 0; row < kBlockRows; ++row) {
      const float old = target[row];
      target[row] = sees[row] ? sums[row] : old;
    }
  }
}

// What the rows of a block see of a page.
struct BlockView {
  TokenRange rows[kBlockRows];
  TokenRange all;   // what every row sees, perhaps none
  TokenRange some;  // what at least one row sees, perhaps none
};

BlockView view_page(const RowBlock& block, const LoadedPage& page) {
  BlockView view{{}, {0, page.tokens}, {page.tokens, 0}};
  for (std::int32_t row = 0; row < kBlockRows; ++row) {
    const TokenRange seen =
        seen_tokens(block.first_keys[row], block.end_keys[row], page.base, page.tokens);
    view.rows[row] = seen;
    if (seen.begin > view.all.begin) view.all.begin = seen.begin;
    if (seen.end < view.all.end) view.all.end = seen.end;
    if (seen.begin >= seen.end) continue;
    if (seen.begin < view.some.begin) view.some.begin = seen.begin;
    if (seen.end > view.some.end) view.some.end = seen.end;
  }
  if (view.all.end < view.all.begin) view.all = {view.some.end, view.some.end};
  return view;
}

void add_seen(const BlockView& view, const float* weights, const PageValues& values,
              const float* rescale, float* chunk) {
  if (view.some.begin == view.all.begin) {
    const std::int32_t first = view.all.begin;
    const PageValues seen{values.data + first * values.stride, values.size, values.stride};
    add_block(weights + first * kBlockRows, seen, view.all.end - first, rescale, chunk);
  } else {
    add_block(weights, values, 0, rescale, chunk);
  }
  const std::int32_t begin = view.some.begin == view.all.begin ? view.all.end : view.some.begin;
  for (std::int32_t token = begin; token < view.some.end; ++token) {
    bool sees[kBlockRows];
    for (std::int32_t row = 0; row < kBlockRows; ++row) {
      sees[row] = token >= view.rows[row].begin && token < view.rows[row].end;
    }
    add_seen_by_some(sees, weights + token * kBlockRows, values.data + token * values.stride,
                     values.size, chunk);
  }
}

// scores: [tokens, kBlockRows].
void attend_block(const LoadedPage& page, std::int32_t head_dim, float softcap, float* scores,
                  RowBlock* block) {
  const BlockView view = view_page(*block, page);
  if (view.some.begin >= view.some.end) return;
  score_block(block->queries, page.keys, page.tokens, head_dim, scores);
  if (softcap > 0.0f) cap_scores(scores, page.tokens * kBlockRows, softcap);
  for (std::int32_t row = 0; row < kBlockRows; ++row) {
    const TokenRange& seen = view.rows[row];
    for (std::int32_t token = 0; token < page.tokens; ++token) {
      if (token < seen.begin || token >= seen.end) {
        scores[token * kBlockRows + row] = kMinusInfinity;
      }
    }
  }
  float maximum[kBlockRows];
  float sum[kBlockRows];
  float rescale[kBlockRows];
  __builtin_memcpy(maximum, block->maximum, sizeof maximum);
  __builtin_memcpy(sum, block->sum, sizeof sum);
  weigh_block(scores, page.tokens, block, rescale);
  for (std::int32_t row = 0; row < kBlockRows; ++row) {
    if (view.rows[row].begin < view.rows[row].end) {
      block->sums[row].started = true;
    } else {  // the row sees nothing of the page: it keeps what it has
      block->maximum[row] = maximum[row];
      block->sum[row] = sum[row];
      rescale[row] = 1.0f;
    }
  }
  add_seen(view, scores, page.values, rescale, block->chunk);
}

// scratch: [attention_scratch_size(layer)].
void attend_in_blocks(const AttentionTask& task, float* scratch) {
  const LayerLayout& layer = *task.layer;
  const PageRange range = page_range(task);
  float* const key_scratch = scratch;
  float* const value_scratch = key_scratch + range.padded * layer.head_dim;
  float* const scores = value_scratch + range.padded * layer.value_dim;
  float* columns = scores + range.padded * kMaxAttentionRows;
  RowBlock blocks[kMaxAttentionRows / kBlockRows];
  const std::int32_t num_blocks = (task.rows + kBlockRows - 1) / kBlockRows;
  for (std::int32_t i = 0; i < num_blocks; ++i) {
    blocks[i].queries = columns;
    blocks[i].chunk = blocks[i].queries + kBlockRows * layer.head_dim;
    blocks[i].total = blocks[i].chunk + kBlockRows * layer.value_dim;
    columns = blocks[i].total + kBlockRows * layer.value_dim;
    begin_block(task, i * kBlockRows, blocks + i);
  }
  const std::int32_t chunk_pages = attention_chunk_pages(layer.page_size);
  for (std::int32_t page = range.first; page * layer.page_size < range.end; ++page) {
    const LoadedPage loaded = load(task, range, page, key_scratch, value_scratch);
    for (std::int32_t i = 0; i < num_blocks; ++i) {
      if (page % chunk_pages == 0) close_block_chunk(layer.value_dim, blocks + i);
      attend_block(loaded, layer.head_dim, task.softcap, scores, blocks + i);
    }
  }
  for (std::int32_t i = 0; i < num_blocks; ++i) {
    close_block_chunk(layer.value_dim, blocks + i);
    finish_block(task, i * kBlockRows, blocks + i);
  }
}

void attend(const AttentionTask& task, float* scratch) {
  if (task.rows >= kLeastBlockRows) {
    attend_in_blocks(task, scratch);
  } else {
    attend_row_by_row(task, scratch);
  }
}
