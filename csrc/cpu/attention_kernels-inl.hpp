// The one body of attention over pages, included by every instruction-set file behind
// row_kernels-inl.hpp. Online softmax, a page at a time; pages are read in place.
//
// Specification (the same for every instruction set): a score is a sum over 16 virtual lanes
// (element i belongs to lane i mod 16, a lane adds in index order by fused multiply-add) that a
// tree of halves adds up; weights of a page are added in order; a value element adds its tokens in
// order. Chunks of the context (attention_task.hpp) are summed each for itself and merged in order.
// So a row's result depends neither on the other rows of the task nor on how a prefill was cut, and
// chunks may be summed side by side.

inline constexpr int kLaneVectors = kAttentionLanes / Vec::kWidth;

// Keys or values of a page as fp32, [tokens, head_size]: in place, or converted into scratch.
const float* load_page(const std::byte* source, const KvLayout& layout, std::int32_t tokens,
                       float* scratch) {
  if (layout.dtype == DataType::kFloat32) return reinterpret_cast<const float*>(source);
  const std::int32_t elements = tokens * layout.head_size;
  for (std::int32_t i = 0; i < elements; i += Vec::kWidth) {
    Vec::convert(source + i * 2, layout.dtype, scratch + i);
  }
  return scratch;
}

// Scores of some query rows against every key of the page, each key loaded once.
template <int kRows>
void score_rows(const float* queries, const float* keys, std::int32_t tokens,
                std::int32_t head_size, std::int32_t score_stride, float* scores) {
  for (std::int32_t token = 0; token < tokens; ++token) {
    const float* key = keys + token * head_size;
    Vec sums[kRows][kLaneVectors];
    for (auto& row : sums) {
      for (Vec& lane : row) lane = Vec::broadcast(0.0f);
    }
    for (std::int32_t i = 0; i < head_size; i += kAttentionLanes) {
      for (int lane = 0; lane < kLaneVectors; ++lane) {
        const Vec k = Vec::load(key + i + lane * Vec::kWidth);
        for (int row = 0; row < kRows; ++row) {
          const Vec q = Vec::load(queries + row * head_size + i + lane * Vec::kWidth);
          sums[row][lane] = fma(q, k, sums[row][lane]);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      scores[row * score_stride + token] = sum_of_lanes(sums[row]);
    }
  }
}

void score_all(const AttentionTask& task, const float* keys, std::int32_t tokens,
               std::int32_t score_stride, float* scores) {
  const std::int32_t head_size = task.layout->head_size;
  for (std::int32_t row = 0; row < task.rows; row += 4) {
    const float* const queries = task.queries + row * head_size;
    float* const own = scores + row * score_stride;
    switch (task.rows - row) {
      case 1:
        score_rows<1>(queries, keys, tokens, head_size, score_stride, own);
        break;
      case 2:
        score_rows<2>(queries, keys, tokens, head_size, score_stride, own);
        break;
      case 3:
        score_rows<3>(queries, keys, tokens, head_size, score_stride, own);
        break;
      default:
        score_rows<4>(queries, keys, tokens, head_size, score_stride, own);
    }
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
// the row's earlier sums are multiplied by. `padded` scores, those beyond the page being -inf.
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
  float sum = 0.0f;
  for (std::int32_t i = 0; i < padded; ++i) sum += scores[i];
  row->sum = row->sum * rescale[0] + sum;
  row->maximum = maximum;
  return rescale[0];
}

// out = out * rescale + weights * values over the tokens that the row sees, [head_size].
void add_values(const float* weights, const float* values, std::int32_t tokens,
                std::int32_t head_size, float rescale, float* out) {
  constexpr int kTogether = 4;  // vectors
  const Vec scale = Vec::broadcast(rescale);
  std::int32_t i = 0;
  for (; i + kTogether * Vec::kWidth <= head_size; i += kTogether * Vec::kWidth) {
    Vec sums[kTogether];
    for (int k = 0; k < kTogether; ++k) sums[k] = Vec::load(out + i + k * Vec::kWidth) * scale;
    for (std::int32_t token = 0; token < tokens; ++token) {
      const Vec weight = Vec::broadcast(weights[token]);
      const float* value = values + token * head_size + i;
      for (int k = 0; k < kTogether; ++k) {
        sums[k] = fma(weight, Vec::load(value + k * Vec::kWidth), sums[k]);
      }
    }
    for (int k = 0; k < kTogether; ++k) sums[k].store(out + i + k * Vec::kWidth);
  }
  for (; i < head_size; i += Vec::kWidth) {
    Vec sum = Vec::load(out + i) * scale;
    for (std::int32_t token = 0; token < tokens; ++token) {
      sum = fma(Vec::broadcast(weights[token]), Vec::load(values + token * head_size + i), sum);
    }
    sum.store(out + i);
  }
}

// Tokens of a page.
struct TokenRange {
  std::int32_t begin;
  std::int32_t end;
};

// The tokens of the page at `base` that the row sees, perhaps none.
TokenRange seen_tokens(const AttentionTask& task, std::int32_t row, std::int32_t base,
                       std::int32_t tokens) {
  const std::int32_t first = task.first_keys[row] - base;
  const std::int32_t end = task.end_keys[row] - base;
  return {first > 0 ? first : 0, end < tokens ? end : tokens};
}

void mask_scores(const TokenRange& seen, std::int32_t padded, float* scores) {
  for (std::int32_t i = 0; i < seen.begin; ++i) scores[i] = kMinusInfinity;
  for (std::int32_t i = seen.end; i < padded; ++i) scores[i] = kMinusInfinity;
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

// Adds the chunk to the total, [head_size], and begins the next one.
void close_chunk(RowSums* row, std::int32_t head_size, float* chunk, float* total) {
  if (!row->started) return;
  if (!row->merged) {
    row->total = row->chunk;
    for (std::int32_t i = 0; i < head_size; ++i) total[i] = chunk[i];
  } else {
    const bool larger = row->chunk.maximum > row->total.maximum;
    const float maximum = larger ? row->chunk.maximum : row->total.maximum;
    const float before = exponential_of(row->total.maximum - maximum);
    const float added = exponential_of(row->chunk.maximum - maximum);
    row->total.sum = row->total.sum * before + row->chunk.sum * added;
    row->total.maximum = maximum;
    const Vec weight = Vec::broadcast(added);
    const Vec scale = Vec::broadcast(before);
    for (std::int32_t i = 0; i < head_size; i += Vec::kWidth) {
      fma(weight, Vec::load(chunk + i), Vec::load(total + i) * scale).store(total + i);
    }
  }
  for (std::int32_t i = 0; i < head_size; ++i) chunk[i] = 0.0f;
  row->chunk = RunningRow{};
  row->started = false;
  row->merged = true;
}

// scratch: [attention_scratch_size(head_size, page_tokens)].
void attend(const AttentionTask& task, float* scratch) {
  const KvLayout& layout = *task.layout;
  const std::int32_t head_size = layout.head_size;
  const std::int32_t page_tokens = layout.page_tokens;
  const std::int32_t padded =
      (page_tokens + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
  float* const key_scratch = scratch;
  float* const value_scratch = key_scratch + padded * head_size;
  float* const scores = value_scratch + padded * head_size;
  float* const chunks = scores + padded * kMaxAttentionRows;  // [rows, head_size]
  RowSums sums[kMaxAttentionRows];
  std::int32_t first = task.first_keys[0];
  std::int32_t end = task.end_keys[0];
  for (std::int32_t row = 0; row < task.rows; ++row) {
    first = task.first_keys[row] < first ? task.first_keys[row] : first;
    end = task.end_keys[row] > end ? task.end_keys[row] : end;
    for (std::int32_t i = 0; i < head_size; ++i) chunks[row * head_size + i] = 0.0f;
  }
  const std::int32_t chunk_pages = attention_chunk_pages(page_tokens);
  const std::int64_t head_offset =
      task.layer * layout.layer_stride + task.kv_head * layout.head_stride;
  for (std::int32_t page = first / page_tokens; page * page_tokens < end; ++page) {
    const std::int32_t base = page * page_tokens;
    const std::int32_t tokens = end - base < page_tokens ? end - base : page_tokens;
    const std::byte* const address =
        task.arena + task.pages[page] * KvLayout::kPageUnit + head_offset;
    const float* const keys = load_page(address, layout, tokens, key_scratch);
    const float* const values =
        load_page(address + layout.value_offset, layout, tokens, value_scratch);
    score_all(task, keys, tokens, padded, scores);
    for (std::int32_t row = 0; row < task.rows; ++row) {
      float* const own = scores + row * padded;
      float* const chunk = chunks + row * head_size;
      if (page % chunk_pages == 0) {
        close_chunk(sums + row, head_size, chunk, task.out + row * head_size);
      }
      if (task.softcap > 0.0f) cap_scores(own, padded, task.softcap);
      const TokenRange seen = seen_tokens(task, row, base, tokens);
      if (seen.begin >= seen.end) continue;
      mask_scores(seen, padded, own);
      const float rescale = weigh_scores(own, padded, &sums[row].chunk);
      add_values(own + seen.begin, values + seen.begin * head_size, seen.end - seen.begin,
                 head_size, rescale, chunk);
      sums[row].started = true;
    }
  }
  for (std::int32_t row = 0; row < task.rows; ++row) {
    float* const out = task.out + row * head_size;
    close_chunk(sums + row, head_size, chunks + row * head_size, out);
    const float inverse = 1.0f / sums[row].total.sum;
    for (std::int32_t i = 0; i < head_size; ++i) out[i] *= inverse;
  }
}
