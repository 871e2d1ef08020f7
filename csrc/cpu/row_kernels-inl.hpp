// The one body of the row kernels, included once by every instruction-set file inside an anonymous
// namespace, after that file has defined `Vec`. Nothing here may call an inline function of another
// header: the linker keeps one copy of such a function, perhaps the one compiled for AVX-512.
//
// What Vec offers (kWidth lanes of fp32):
//   kUnroll                    vectors summed side by side: as many as the registers take
//   load(const float*), store(float*), broadcast(float), a + b, a - b, a * b, fma(a, b, c)
//   max_number(best, x)        the larger; best when x is NaN
//   max_propagate(floor, x)    the larger; NaN when x is NaN
//   exponent_of(shifted)       the low bits of the representation as the exponent of a power of two
//   mask_equal(a, b), mask_at_least(a, b)   one bit a lane
//   convert(const void* source, DataType, float* out)   kWidth 16-bit elements to fp32

constexpr float kMinusInfinity = -__builtin_inff();

inline Vec exponential(Vec d) {
  namespace c = exp_constants;
  const Vec rounding = Vec::broadcast(c::kRounding);
  const Vec y = d * Vec::broadcast(c::kLog2E);
  const Vec shifted = y + rounding;
  const Vec f = y - (shifted - rounding);
  Vec p = fma(Vec::broadcast(c::kC5), f, Vec::broadcast(c::kC4));
  p = fma(p, f, Vec::broadcast(c::kC3));
  p = fma(p, f, Vec::broadcast(c::kC2));
  p = fma(p, f, Vec::broadcast(c::kC1));
  p = fma(p, f, Vec::broadcast(1.0f));
  return p * exponent_of(shifted);
}

float maximum_of(const float* tile, std::int32_t count) {
  Vec best[4];
  for (Vec& b : best) b = Vec::broadcast(kMinusInfinity);
  for (std::int32_t i = 0; i < count; i += 4 * Vec::kWidth) {
    for (int k = 0; k < 4; ++k)
      best[k] = max_number(best[k], Vec::load(tile + i + k * Vec::kWidth));
  }
  best[0] = max_number(max_number(best[0], best[1]), max_number(best[2], best[3]));
  float lanes[Vec::kWidth];
  best[0].store(lanes);
  float result = lanes[0];
  for (int k = 1; k < Vec::kWidth; ++k) result = lanes[k] > result ? lanes[k] : result;
  return result + 0.0f;  // -0 becomes +0, so that the order of the comparisons cannot be seen
}

// The fixed tree over the virtual lanes. Destroys lanes.
float tree_sum(float* lanes) {
  int width = kLanes / 2;
  for (; width >= Vec::kWidth; width /= 2) {
    for (int i = 0; i < width; i += Vec::kWidth) {
      (Vec::load(lanes + i) + Vec::load(lanes + width + i)).store(lanes + i);
    }
  }
  for (; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[width + i];
  }
  return lanes[0];
}

// Padding rows are left out: they would add e = 0 and d e = -0, which changes no bit.
template <bool kSampling, bool kSquared>
void sum_tile(const float* tile, std::int32_t count, float inverse_temperature,
              TileStatistics* out) {
  const float maximum = maximum_of(tile, count);
  const Vec reference = Vec::broadcast(maximum == kMinusInfinity ? 0.0f : maximum);
  const Vec floor = Vec::broadcast(exp_constants::kFloor);
  alignas(64) float s_lanes[kLanes], t_lanes[kLanes], u_lanes[kLanes], z_lanes[kLanes];
  for (int lane = 0; lane < kLanes; lane += Vec::kUnroll * Vec::kWidth) {
    Vec s[Vec::kUnroll], t[Vec::kUnroll], u[Vec::kUnroll], z[Vec::kUnroll];
    for (int k = 0; k < Vec::kUnroll; ++k) s[k] = t[k] = u[k] = z[k] = Vec::broadcast(0.0f);
    for (std::int32_t row = 0; row < count; row += kLanes) {
      for (int k = 0; k < Vec::kUnroll; ++k) {
        const Vec difference = Vec::load(tile + row + lane + k * Vec::kWidth) - reference;
        const Vec d = max_propagate(floor, difference);
        const Vec e = exponential(d);
        s[k] = s[k] + e;
        t[k] = fma(d, e, t[k]);
        if constexpr (kSquared) u[k] = fma(d * d, e, u[k]);
        if constexpr (kSampling) {
          const Vec scaled = difference * Vec::broadcast(inverse_temperature);
          z[k] = z[k] + exponential(max_propagate(floor, scaled));
        }
      }
    }
    for (int k = 0; k < Vec::kUnroll; ++k) {
      const int at = lane + k * Vec::kWidth;
      s[k].store(s_lanes + at);
      t[k].store(t_lanes + at);
      if constexpr (kSquared) u[k].store(u_lanes + at);
      if constexpr (kSampling) z[k].store(z_lanes + at);
    }
  }
  out->maximum = maximum;
  out->sum = tree_sum(s_lanes);
  out->weighted = tree_sum(t_lanes);
  out->squared = kSquared ? tree_sum(u_lanes) : 0.0f;
  out->sampling = kSampling ? tree_sum(z_lanes) : out->sum;
}

const float* load_tile(const RowView& row, std::int64_t tile, float* scratch, std::int32_t* count) {
  const std::int64_t begin = tile * kTileSize;
  const std::int64_t left = row.size - begin;
  const std::int32_t present = left < kTileSize ? static_cast<std::int32_t>(left) : kTileSize;
  const std::int32_t padded = (present + kLanes - 1) / kLanes * kLanes;
  const std::int64_t bytes = row.dtype == DataType::kFloat32 ? 4 : 2;
  const char* source = static_cast<const char*>(row.data) + begin * bytes;
  *count = padded;
  if (row.dtype == DataType::kFloat32) {
    if (present == padded) return reinterpret_cast<const float*>(source);
    __builtin_memcpy(scratch, source, static_cast<std::size_t>(present) * 4);
  } else {
    std::int32_t i = 0;
    for (; i + Vec::kWidth <= present; i += Vec::kWidth) {
      Vec::convert(source + i * 2, row.dtype, scratch + i);
    }
    if (i < present) {
      std::uint16_t tail[Vec::kWidth] = {};
      __builtin_memcpy(tail, source + i * 2, static_cast<std::size_t>(present - i) * 2);
      Vec::convert(tail, row.dtype, scratch + i);
    }
  }
  for (std::int32_t i = present; i < padded; ++i) scratch[i] = kMinusInfinity;
  return scratch;
}

template <bool kSampling, bool kSquared>
void sum_row(const RowView& row, float inverse_temperature, float* scratch, TileStatistics* tiles) {
  const std::int64_t num_tiles = (row.size + kTileSize - 1) / kTileSize;
  for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
    std::int32_t count = 0;
    const float* values = load_tile(row, tile, scratch, &count);
    sum_tile<kSampling, kSquared>(values, count, inverse_temperature, tiles + tile);
  }
}

void row_statistics(const RowView& row, const StatisticsRequest& request, float* scratch,
                    TileStatistics* tiles) {
  auto* sum = request.sampling ? (request.squared ? sum_row<true, true> : sum_row<true, false>)
                               : (request.squared ? sum_row<false, true> : sum_row<false, false>);
  sum(row, request.inverse_temperature, scratch, tiles);
}

void top_two(const float* tile, std::int32_t count, float maximum, std::int32_t* first_index,
             float* second) {
  const Vec largest = Vec::broadcast(maximum);
  Vec best = Vec::broadcast(kMinusInfinity);
  std::int32_t first = -1;
  std::int32_t hits = 0;
  for (std::int32_t i = 0; i < count; i += Vec::kWidth) {
    const Vec x = Vec::load(tile + i);
    const std::uint32_t equal = mask_equal(x, largest);
    if (equal == 0) {
      best = max_number(best, x);
      continue;
    }
    if (first < 0) first = i + __builtin_ctz(equal);
    hits += __builtin_popcount(equal);
    float lanes[Vec::kWidth];
    x.store(lanes);
    for (int k = 0; k < Vec::kWidth; ++k) {
      if ((equal >> k & 1u) != 0) lanes[k] = kMinusInfinity;
    }
    best = max_number(best, Vec::load(lanes));
  }
  float lanes[Vec::kWidth];
  best.store(lanes);
  float other = lanes[0];
  for (int k = 1; k < Vec::kWidth; ++k) other = lanes[k] > other ? lanes[k] : other;
  *first_index = first;
  *second = hits > 1 ? maximum : other;
}

std::int64_t collect(const float* tile, std::int32_t count, float pivot, std::int32_t first_id,
                     Candidate* candidates) {
  const Vec threshold = Vec::broadcast(pivot);
  Candidate* next = candidates;
  for (std::int32_t i = 0; i < count; i += Vec::kWidth) {
    const Vec x = Vec::load(tile + i);
    std::uint32_t above = mask_at_least(x, threshold);
    if (above == 0) continue;
    for (; above != 0; above &= above - 1) {
      const int k = __builtin_ctz(above);
      float value = 0;
      __builtin_memcpy(&value, tile + i + k, sizeof value);
      value += 0.0f;  // -0 becomes +0: the two tie
      std::uint32_t bits = 0;
      __builtin_memcpy(&bits, &value, sizeof bits);
      const std::uint32_t descending = (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
      *next++ =
          static_cast<Candidate>(descending) << 32 | static_cast<std::uint32_t>(first_id + i + k);
    }
  }
  return next - candidates;
}

void exponentials(const float* values, std::int64_t count, float maximum, float inverse_temperature,
                  float* out) {
  const Vec reference = Vec::broadcast(maximum);
  const Vec scale = Vec::broadcast(inverse_temperature);
  const Vec floor = Vec::broadcast(exp_constants::kFloor);
  for (std::int64_t i = 0; i < count; i += Vec::kWidth) {
    if (i + Vec::kWidth <= count) {
      exponential(max_propagate(floor, (Vec::load(values + i) - reference) * scale)).store(out + i);
      continue;
    }
    float lanes[Vec::kWidth] = {};
    __builtin_memcpy(lanes, values + i, static_cast<std::size_t>(count - i) * sizeof(float));
    exponential(max_propagate(floor, (Vec::load(lanes) - reference) * scale)).store(lanes);
    __builtin_memcpy(out + i, lanes, static_cast<std::size_t>(count - i) * sizeof(float));
  }
}
