// The one body of attention over pages, included by every instruction-set file behind
// row_kernels-inl.hpp. Online softmax, a page at a time; pages are read in place.
//
// Specification (the same for every instruction set): a score is a sum over 16 virtual lanes
// (element i belongs to lane i mod 16, a lane adds in index order by fused multiply-add) that a
// tree of halves adds up; weights of a page are added in order; a value element adds its tokens in
// order. Chunks of the context (attention_task.hpp) are summed each for itself and merged in order,
// an attention sink behind them as a chunk of one weight and no value.
// So a row's result depends neither on the other rows of the task nor on how a prefill was cut, and
// chunks may be summed side by side.

inline constexpr int kLaneVectors = kAttentionLanes / Vec::kWidth;

// Keys or values of a page as fp32, [tokens, head_dim]: in place, or converted into scratch.
const float* load_page(const std::byte* source, DataType dtype, std::int32_t elements,
                       float* scratch) {
  if (dtype == DataType::kFloat32) return reinterpret_cast<const float*>(source);
  for (std::int32_t i = 0; i < elements; i += Vec::kWidth) {
    Vec::convert(source + i * 2, dtype, scratch + i);
  }
  return scratch;
}

// Scores of one query row against kKeys keys, whose sums over the virtual lanes are left to add up.
template <int kKeys>
void dot_products(const float* query, const float* keys, std::int32_t head_dim,
                  Vec (*sums)[kLaneVectors]) {
  Vec own[kKeys][kLaneVectors];
  for (auto& key : own) {
    for (Vec& lane : key) lane = Vec::broadcast(0.0f);
  }
  for (std::int32_t i = 0; i < head_dim; i += kAttentionLanes) {
    for (int lane = 0; lane < kLaneVectors; ++lane) {
      const std::int32_t at = i + lane * Vec::kWidth;
      const Vec q = Vec::load(query + at);
      for (int key = 0; key < kKeys; ++key) {
        own[key][lane] = fma(q, Vec::load(keys + key * head_dim + at), own[key][lane]);
      }
    }
  }
  for (int key = 0; key < kKeys; ++key) {
    for (int lane = 0; lane < kLaneVectors; ++lane) sums[key][lane] = own[key][lane];
  }
}

// Scores of one query row against all keys of a page: a vector of keys at a time, then one by one.
void score_row(const float* query, const float* keys, std::int32_t tokens, std::int32_t head_dim,
               float* scores) {
  constexpr int kTogether = Vec::kWidth == 8 ? 4 : Vec::kWidth;  // as the registers allow
  Vec sums[Vec::kWidth][kLaneVectors];
  std::int32_t token = 0;
  for (; token + Vec::kWidth <= tokens; token += Vec::kWidth) {
    for (int key = 0; key < Vec::kWidth; key += kTogether) {
      dot_products<kTogether>(query, keys + (token + key) * head_dim, head_dim, sums + key);
    }
    sums_of_lanes(sums).store(scores + token);
  }
  for (; token < tokens; ++token) {
    dot_products<1>(query, keys + token * head_dim, head_dim, sums);
    scores[token] = sum_of_lanes(sums[0]);
  }
}

// cap tanh(score / cap), by tanh x = sign(x) (1 - e^(-2|x|)) / (1 + e^(-2|x|)).
void cap_scores(float* scores, std::int32_t padded, float cap) {
  const Vec floor = Vec::broadcast(exp_constants::kFloor);
  for (std::int32_t i = 0; i < padded; i += Vec::kWidth) {
    float e[Vec::kWidth];
    for (int k = 0; k < Vec::kWidth; ++k) {
      const float x = scores[i + k] / cap;
      e[k] = x < 0.0f ? 2.0f * x : -2.0f * x;
    }
    exponential(max_propagate(floor, Vec::load(e))).store(e);
    for (int k = 0; k < Vec::kWidth; ++k) {
      const float magnitude = cap * ((1.0f - e[k]) / (1.0f + e[k]));
      scores[i + k] = scores[i + k] < 0.0f ? -magnitude : magnitude;
    }
  }
}

struct RunningRow {
  float maximum = kMinusInfinity;
  float sum = 0.0f;
};

// Turns the scores of one row and page into weights relative to the row's new maximum; returns what
// the row's earlier sums are multiplied by. `padded` scores, those beyond the page being -inf:
// their weights are 0, exactly.
float weigh_scores(float* scores, std::int32_t padded, RunningRow* row) {
  Vec best = Vec::broadcast(kMinusInfinity);
  for (std::int32_t i = 0; i < padded; i += Vec::kWidth) {
    best = max_number(best, Vec::load(scores + i));
  }
  float lanes[Vec::kWidth];
  best.store(lanes);
  float largest = lanes[0];
  for (int k = 1; k < Vec::kWidth; ++k) largest = lanes[k] > largest ? lanes[k] : largest;
  const float maximum = largest > row->maximum ? largest : row->maximum;
  const Vec floor = Vec::broadcast(exp_constants::kFloor);
  for (std::int32_t i = 0; i < padded; i += Vec::kWidth) {
    const Vec d = Vec::load(scores + i) - Vec::broadcast(maximum);
    exponential(max_propagate(floor, d)).store(scores + i);
  }
  float rescale[Vec::kWidth];
  exponential(max_propagate(floor, Vec::broadcast(row->maximum - maximum))).store(rescale);
  row->maximum = maximum;
  return rescale[0];
}

// Tokens of a page.
struct TokenRange {
  std::int32_t begin;
  std::int32_t end;
};

// The tokens of the page at `base` that a row with these keys sees, perhaps none.
TokenRange seen_tokens(std::int32_t first_key, std::int32_t end_key, std::int32_t base,
                       std::int32_t tokens) {
  const std::int32_t first = first_key - base;
  const std::int32_t end = end_key - base;
  return {first > 0 ? first : 0, end < tokens ? end : tokens};
}

void mask_scores(const TokenRange& seen, std::int32_t padded, float* scores) {
  for (std::int32_t i = 0; i < seen.begin; ++i) scores[i] = kMinusInfinity;
  for (std::int32_t i = seen.end; i < padded; ++i) scores[i] = kMinusInfinity;
}

// Values of a page, [tokens, size].
struct PageValues {
  const float* data;
  std::int32_t size;
  std::int32_t stride;  // from a token to the next, elements
};

// A row of a task that sees tokens of the page at hand.
struct SeeingRow {
  const float* weights;  // of the page's tokens
  float* out;            // [value_dim]
  RunningRow* running;
  float rescale;
  TokenRange seen;
};

// out = out * rescale + weights * values over the tokens that the rows, all of them the same, see:
// some vectors of elements. Where asked to, the running sums of the weights alike: an addition
// waits for the one before it, and beside the values nobody notices.
template <int kRows, int kVectors, bool kWithSums>
void add_part(const SeeingRow* rows, const PageValues& values, std::int32_t first) {
  Vec sums[kRows][kVectors];
  Vec weights[kRows];
  for (int row = 0; row < kRows; ++row) {
    const Vec scale = Vec::broadcast(rows[row].rescale);
    for (int k = 0; k < kVectors; ++k) {
      sums[row][k] = Vec::load(rows[row].out + first + k * Vec::kWidth) * scale;
    }
    weights[row] = Vec::broadcast(0.0f);
  }
  for (std::int32_t token = rows->seen.begin; token < rows->seen.end; ++token) {
    const float* const value = values.data + token * values.stride + first;
    for (int row = 0; row < kRows; ++row) {
      const Vec weight = Vec::broadcast(rows[row].weights[token]);
      if constexpr (kWithSums) weights[row] = weights[row] + weight;
      for (int k = 0; k < kVectors; ++k) {
        sums[row][k] = fma(weight, Vec::load(value + k * Vec::kWidth), sums[row][k]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kVectors; ++k) sums[row][k].store(rows[row].out + first + k * Vec::kWidth);
    if constexpr (kWithSums) {
      float sum[Vec::kWidth];
      weights[row].store(sum);
      RunningRow* const running = rows[row].running;
      running->sum = running->sum * rows[row].rescale + sum[0];
    }
  }
}

template <int kRows, int kVectors>
void add_vectors(const SeeingRow* rows, const PageValues& values, std::int32_t first) {
  if (first == 0) {
    add_part<kRows, kVectors, true>(rows, values, first);
  } else {
    add_part<kRows, kVectors, false>(rows, values, first);
  }
}

template <int kRows>
void add_rows(const SeeingRow* rows, const PageValues& values) {
  constexpr int kTogether = Vec::kWidth == 8 && kRows > 2 ? 2 : 4;  // vectors, as registers allow
  std::int32_t i = 0;
  for (; i + kTogether * Vec::kWidth <= values.size; i += kTogether * Vec::kWidth) {
    add_vectors<kRows, kTogether>(rows, values, i);
  }
  for (; i + 2 * Vec::kWidth <= values.size; i += 2 * Vec::kWidth) {
    add_vectors<kRows, 2>(rows, values, i);
  }
  for (; i < values.size; i += Vec::kWidth) {
    add_vectors<kRows, 1>(rows, values, i);
  }
}

bool see_the_same(const SeeingRow& a, const SeeingRow& b) {
  return a.seen.begin == b.seen.begin && a.seen.end == b.seen.end;
}

// Rows that see the same tokens together, so that their sums, each of them in order, overlap.
void add_values(const SeeingRow* rows, std::int32_t count, const PageValues& values) {
  for (std::int32_t row = 0; row < count;) {
    std::int32_t alike = 1;
    while (alike < 4 && row + alike < count && see_the_same(rows[row], rows[row + alike])) ++alike;
    if (alike == 4) {
      add_rows<4>(rows + row, values);
    } else if (alike == 3) {
      add_rows<3>(rows + row, values);
    } else if (alike == 2) {
      add_rows<2>(rows + row, values);
    } else {
      add_rows<1>(rows + row, values);
    }
    row += alike;
  }
}

// The sums of a row over its earlier chunks, and over the one that is being read.
struct RowSums {
  bool merged = false;   // whether there are earlier chunks
  bool started = false;  // whether the row has seen a token of this one
  RunningRow total;
  RunningRow chunk;
};

float exponential_of(float d) {
  float result[Vec::kWidth];
  exponential(max_propagate(Vec::broadcast(exp_constants::kFloor), Vec::broadcast(d)))
      .store(result);
  return result[0];
}

// What a row's total and chunk are multiplied by when they are merged.
struct ChunkScales {
  float total;
  float chunk;
};

// Merges the running sums of a row that has started the chunk, and begins the next one. The scales
// have a meaning only if there are earlier chunks.
ChunkScales merge_sums(RowSums* row) {
  ChunkScales scales{0.0f, 1.0f};
  if (!row->merged) {
    row->total = row->chunk;
  } else {
    const bool larger = row->chunk.maximum > row->total.maximum;
    const float maximum = larger ? row->chunk.maximum : row->total.maximum;
    scales.total = exponential_of(row->total.maximum - maximum);
    scales.chunk = exponential_of(row->chunk.maximum - maximum);
    row->total.sum = row->total.sum * scales.total + row->chunk.sum * scales.chunk;
    row->total.maximum = maximum;
  }
  row->chunk.maximum = kMinusInfinity;
  row->chunk.sum = 0.0f;
  row->started = false;
  row->merged = true;
  return scales;
}

// Adds the chunk to the total, [value_dim], and begins the next one.
void close_chunk(RowSums* row, std::int32_t value_dim, float* chunk, float* total) {
  if (!row->started) return;
  const bool first = !row->merged;
  const ChunkScales scales = merge_sums(row);
  const Vec weight = Vec::broadcast(scales.chunk);
  const Vec scale = Vec::broadcast(scales.total);
  for (std::int32_t i = 0; i < value_dim; i += Vec::kWidth) {
    const Vec added = Vec::load(chunk + i);
    (first ? added : fma(weight, added, Vec::load(total + i) * scale)).store(total + i);
    Vec::broadcast(0.0f).store(chunk + i);
  }
}

// What a row's values are multiplied by in the end. A sink is merged as a last chunk without
// values.
float final_scale(const AttentionTask& task, std::int32_t row, RowSums* sums) {
  if (task.sinks == nullptr) return 1.0f / sums->total.sum;
  sums->chunk = {task.sinks[row], 1.0f};
  const ChunkScales scales = merge_sums(sums);
  return scales.total / sums->total.sum;
}

// Tokens, rounded up to whole vectors of any instruction set.
constexpr std::int32_t whole_lanes(std::int32_t tokens) {
  return (tokens + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
}

// The pages that a task reads.
struct PageRange {
  std::int32_t first;   // page
  std::int32_t end;     // token
  std::int32_t padded;  // tokens of a whole page, rounded up to whole vectors
};

PageRange page_range(const AttentionTask& task) {
  std::int32_t first = task.first_keys[0];
  std::int32_t end = task.end_keys[0];
  for (std::int32_t row = 1; row < task.rows; ++row) {
    first = task.first_keys[row] < first ? task.first_keys[row] : first;
    end = task.end_keys[row] > end ? task.end_keys[row] : end;
  }
  const std::int32_t page_size = task.layer->page_size;
  return {first / page_size, end, whole_lanes(page_size)};
}

// Keys and values of a page as fp32.
struct LoadedPage {
  std::int32_t base;  // position of its first token
  std::int32_t tokens;
  const float* keys;  // [tokens, head_dim]
  PageValues values;
};

LoadedPage load(const AttentionTask& task, const PageRange& range, std::int32_t page,
                float* key_scratch, float* value_scratch) {
  const LayerLayout& layer = *task.layer;
  const std::int32_t base = page * layer.page_size;
  const std::int32_t left = range.end - base;
  const std::int32_t tokens = left < layer.page_size ? left : layer.page_size;
  const std::byte* const address = task.arena + task.pages[page] * KvLayout::kPageUnit;
  const float* const keys =
      load_page(address + layer.key_offset + task.kv_head * layer.key_head_stride, layer.dtype,
                tokens * layer.head_dim, key_scratch);
  if (layer.latent()) return {base, tokens, keys, {keys, layer.value_dim, layer.head_dim}};
  const float* const values =
      load_page(address + layer.value_offset + task.kv_head * layer.value_head_stride, layer.dtype,
                tokens * layer.value_dim, value_scratch);
  return {base, tokens, keys, {values, layer.value_dim, layer.value_dim}};
}

// Reads the page into the sums that the rows have of the chunk, chunks: [rows, value_dim], scores:
// [rows, stride].
void attend_page(const AttentionTask& task, const LoadedPage& page, std::int32_t stride,
                 float* scores, float* chunks, RowSums* sums) {
  const std::int32_t head_dim = task.layer->head_dim;
  const std::int32_t padded = whole_lanes(page.tokens);
  SeeingRow seeing[kMaxAttentionRows];
  std::int32_t count = 0;
  for (std::int32_t row = 0; row < task.rows; ++row) {
    const TokenRange seen =
        seen_tokens(task.first_keys[row], task.end_keys[row], page.base, page.tokens);
    if (seen.begin >= seen.end) continue;
    float* const own = scores + row * stride;
    score_row(task.queries + row * head_dim, page.keys, page.tokens, head_dim, own);
    if (task.softcap > 0.0f) cap_scores(own, padded, task.softcap);
    mask_scores(seen, padded, own);
    const float rescale = weigh_scores(own, padded, &sums[row].chunk);
    sums[row].started = true;
    seeing[count++] = {own, chunks + row * page.values.size, &sums[row].chunk, rescale, seen};
  }
  add_values(seeing, count, page.values);
}

// scratch: [attention_scratch_size(layer)].
void attend_row_by_row(const AttentionTask& task, float* scratch) {
  const std::int32_t value_dim = task.layer->value_dim;
  const std::int32_t page_size = task.layer->page_size;
  const PageRange range = page_range(task);
  float* const key_scratch = scratch;
  float* const value_scratch = key_scratch + range.padded * task.layer->head_dim;
  float* const scores = value_scratch + range.padded * value_dim;
  float* const chunks = scores + range.padded * kMaxAttentionRows;  // [rows, value_dim]
  RowSums sums[kMaxAttentionRows];
  for (std::int32_t i = 0; i < task.rows * value_dim; ++i) chunks[i] = 0.0f;
  const std::int32_t chunk_pages = attention_chunk_pages(page_size);
  for (std::int32_t page = range.first; page * page_size < range.end; ++page) {
    for (std::int32_t row = 0; row < task.rows && page % chunk_pages == 0; ++row) {
      close_chunk(sums + row, value_dim, chunks + row * value_dim, task.out + row * value_dim);
    }
    const LoadedPage loaded = load(task, range, page, key_scratch, value_scratch);
    attend_page(task, loaded, range.padded, scores, chunks, sums);
  }
  for (std::int32_t row = 0; row < task.rows; ++row) {
    float* const out = task.out + row * value_dim;
    close_chunk(sums + row, value_dim, chunks + row * value_dim, out);
    const float scale = final_scale(task, row, sums + row);
    for (std::int32_t i = 0; i < value_dim; ++i) out[i] *= scale;
  }
}
