// Rows and requests of the golden test, made from integers by exact arithmetic alone (no libm, no
// rounding), so that every machine evaluates the same bits.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "glimprouter/row_op.hpp"

namespace glimprouter::golden {

// The finalizer of splitmix64 over an affine counter: a stateless stream of 64-bit words.
inline std::uint64_t random_word(std::uint64_t stream, std::uint64_t index) {
  std::uint64_t z = stream * 0xD1342543DE82EF95u + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Sum of four 16-bit fields minus its mean: bell-shaped, standard deviation 37837.
inline std::int32_t bell(std::uint64_t word) {
  const auto field = [word](int k) {
    return static_cast<std::int32_t>((word >> (16 * k)) & 0xFFFF);
  };
  return field(0) + field(1) + field(2) + field(3) - 131070;
}

inline constexpr float kMasked = -std::bit_cast<float>(0x7F800000u);
inline constexpr float kInfinity = std::bit_cast<float>(0x7F800000u);
inline constexpr float kNan = std::bit_cast<float>(0x7FC00000u);

enum class RowKind : std::uint8_t {
  kBell,
  kPeaked,
  kTies,
  kUniform,
  kTwoValued,
  kMaskedMost,
  kOffset,
  kAnyFinite,
  kSubnormal,
  kBad,
};

// Ordinary rows in half of the cases, each hostile kind in one of eighteen.
inline RowKind row_kind(std::uint64_t word) {
  const auto choice = word % 18;
  return choice < 9 ? RowKind::kBell : static_cast<RowKind>(choice - 8);
}

// Any float but NaN and infinity, from 32 random bits.
inline float any_finite(std::uint64_t word) {
  const auto bits = static_cast<std::uint32_t>(word);
  return std::bit_cast<float>((bits & 0x7F800000u) == 0x7F800000u ? bits ^ 0x40000000u : bits);
}

inline float element(RowKind kind, std::uint64_t row_word, std::uint64_t word) {
  const float ordinary = static_cast<float>(bell(word)) * 0x1.0p-14f;  // standard deviation 2.3
  switch (kind) {
    case RowKind::kTies:
      return static_cast<float>(bell(word) / 32768);
    case RowKind::kUniform:
      return static_cast<float>(bell(row_word)) * 0x1.0p-14f;
    case RowKind::kTwoValued:
      return (word & 1) != 0 ? 1.5f : -1.5f;
    case RowKind::kMaskedMost:
      return (word & 3) != 0 ? kMasked : ordinary;
    case RowKind::kOffset:
      return static_cast<float>(bell(word) / 32 + ((row_word & 1) != 0 ? 5000000 : -5000000)) *
             0x1.0p-9f;
    case RowKind::kAnyFinite:
      return any_finite(word >> 16);
    case RowKind::kSubnormal:
      return std::bit_cast<float>(static_cast<std::uint32_t>(word >> 40) & 0x807FFFFFu);
    default:
      return ordinary;
  }
}

// Puts the mark of the kind on a row that element() has filled.
inline void finish_row(RowKind kind, std::uint64_t row_word, std::vector<float>& row) {
  const std::size_t place = (row_word >> 20) % row.size();
  if (kind == RowKind::kPeaked) row[place] = 22.0f;
  if (kind == RowKind::kMaskedMost) row[place] = 0.25f;
  if (kind != RowKind::kBad) return;
  switch (row_word & 3) {
    case 0:
      row[place] = kNan;
      break;
    case 1:
      row[place] = kInfinity;
      break;
    case 2:
      row.assign(row.size(), kMasked);
      break;
    default:  // not bad after all: one-hot
      row.assign(row.size(), kMasked);
      row[place] = -3.5f;
  }
}

// Half precision by truncation; larger magnitudes become the largest finite one.
inline std::uint16_t to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  if (magnitude == 0x7F800000u) return sign | 0x7C00u;
  if (magnitude >= 0x47800000u) return sign | 0x7BFFu;
  if (magnitude >= 0x38800000u) {
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u) >> 13));
  }
  const std::uint32_t shift = 126 - (magnitude >> 23);
  if (shift > 24) return sign;
  return static_cast<std::uint16_t>(sign | (((magnitude & 0x7FFFFFu) | 0x800000u) >> shift));
}

// One case: the row in its dtype at some odd address, and what is asked about it.
struct Case {
  std::vector<unsigned char> bytes;
  RowView row;
  RowRequest request;
  std::array<std::int32_t, 3> logprob_ids;
};

inline std::int64_t vocabulary_of(std::uint64_t index, std::uint64_t word) {
  if (index % 10000 == 1999) return 151936;
  return static_cast<std::int64_t>(1 + (word >> 8) % ((word & 7) == 0 ? 5000 : 600));
}

inline void fill_row(std::uint64_t index, Case& test_case, std::vector<float>& values) {
  const std::uint64_t word = random_word(index, 0);
  const RowKind kind = row_kind(word >> 32);
  values.resize(static_cast<std::size_t>(vocabulary_of(index, random_word(index, 1))));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = element(kind, word, random_word(index, i + 16));
  }
  finish_row(kind, word, values);

  const auto dtype = static_cast<DataType>(index % 3);
  const std::size_t width = static_cast<std::size_t>(element_size(dtype));
  const std::size_t offset = word & 3;
  test_case.bytes.resize(values.size() * width + offset);
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto bits = std::bit_cast<std::uint32_t>(values[i]);
    if (dtype == DataType::kBFloat16) bits >>= 16;
    if (dtype == DataType::kFloat16) bits = to_float16(values[i]);
    for (std::size_t byte = 0; byte < width; ++byte) {
      test_case.bytes[offset + i * width + byte] = static_cast<unsigned char>(bits >> (8 * byte));
    }
  }
  test_case.row =
      RowView{test_case.bytes.data() + offset, dtype, static_cast<std::int64_t>(values.size())};
}

inline void fill_request(std::uint64_t index, Case& test_case) {
  static constexpr std::array<SamplingParameters, 10> kModes = {{
      {0.0f, 1.0f, 0, 0.0f},
      {1.0f, 1.0f, 0, 0.0f},
      {0.6f, 1.0f, 0, 0.0f},
      {1.7f, 1.0f, 0, 0.0f},
      {0.6f, 0.95f, 0, 0.0f},
      {1.0f, 0.5f, 0, 0.0f},
      {1.0f, 1.0f, 20, 0.0f},
      {1.3f, 1.0f, 0, 0.05f},
      {0.8f, 0.9f, 50, 0.02f},
      {2.5f, 0.99f, 300, 0.0f},
  }};
  static constexpr std::array<std::int32_t, 4> kTopK = {0, 0, 1, 20};
  const std::uint64_t word = random_word(index, 2);
  RowRequest& request = test_case.request;
  request = RowRequest{};
  request.sampling = kModes[word % kModes.size()];
  request.random =
      RandomKey{index, random_word(index, 3), index >> 3, static_cast<std::uint32_t>(index & 1)};
  request.entropy_top_k = kTopK[(word >> 16) & 3];
  request.want_varentropy = (word >> 24 & 1) != 0;
  for (std::size_t k = 0; k < test_case.logprob_ids.size(); ++k) {
    test_case.logprob_ids[k] = static_cast<std::int32_t>(
        random_word(index, 4 + k) % static_cast<std::uint64_t>(test_case.row.size));
  }
  request.logprob_ids = test_case.logprob_ids.data();
  request.num_logprob_ids = static_cast<std::int32_t>(test_case.logprob_ids.size());
}

}  // namespace glimprouter::golden
