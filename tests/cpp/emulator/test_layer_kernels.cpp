// The kernels between a layer's matrix products, run by the emulator: against double precision,
// rounded where a framework stores; and the same bits in any batch, layout and alignment.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "emulator/grid.hpp"
#include "kernels/layers/launch.cuh"
#include "lanes.hpp"
#include "layer_tensors.hpp"

namespace glimprouter {
namespace {

using simt::compact_rows;
using simt::Elements;
using simt::kReduced;
using simt::round_to;
using simt::unit_of;

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16};
constexpr device::DeviceShape kDevice{3, true};

std::vector<std::int32_t> norm_sizes() {
  if (kReduced) return {64, 80, 520};
  return {1, 7, 64, 80, 96, 128, 256, 511, 512, 513, 520, 2560, 4096, 5120, 8195, 16384};
}

std::size_t index_of(std::int64_t row, std::int64_t size, std::int64_t i) {
  return static_cast<std::size_t>(row * size + i);
}

// Differences from a reference in double: rounding of the sum may move a result by a unit or two,
// rarely in the narrow types.
struct Differences {
  std::int64_t compared = 0;
  std::int64_t differing = 0;
  double most_units = 0.0;

  void add(double got, double want, DataType dtype) {
    ++compared;
    if (got == want) return;
    ++differing;
    most_units = std::fmax(most_units, std::abs(got - want) / unit_of(want, dtype));
  }
  void expect_few(DataType dtype) const {
    EXPECT_LE(most_units, dtype == DataType::kFloat32 ? 4.0 : 2.0);
    if (dtype != DataType::kFloat32) {
      EXPECT_LE(differing, 2 + compared / 100) << compared;
    }
  }
};

struct Norm {
  std::int32_t rows;
  std::int32_t size;
  DataType dtype;
  NormForm form;
  bool adds;
  std::int64_t shift = 0;  // of every tensor, in elements
};

struct NormResult {
  std::vector<double> out;
  std::vector<double> sum;
};

NormResult normed_rows(const Norm& norm, Elements& source, Elements& added, Elements& weight) {
  Elements out(source.count(), norm.dtype, norm.shift);
  Elements sum(source.count(), norm.dtype, norm.shift);
  const NormArguments arguments{compact_rows(source, norm.rows, norm.size),
                                norm.adds ? added.data() : nullptr,
                                norm.adds ? sum.data() : nullptr,
                                weight.data(),
                                out.data(),
                                norm.size,
                                norm.dtype,
                                norm.form};
  EXPECT_EQ(device::launch_norm(arguments, kDevice, nullptr), 0);
  return {out.values(), norm.adds ? sum.values() : std::vector<double>()};
}

void expect_norm(const Norm& norm, std::uint64_t seed) {
  const auto count = index_of(norm.rows, norm.size, 0);
  Elements source = Elements(count, norm.dtype, norm.shift).fill(seed, 3.0);
  Elements added = Elements(count, norm.dtype, norm.shift).fill(seed + 1);
  const auto length = static_cast<std::size_t>(norm.size);
  Elements weight = Elements(length, norm.dtype, norm.shift).fill(seed + 2);
  const NormResult got = normed_rows(norm, source, added, weight);
  Differences differences;
  for (std::int32_t row = 0; row < norm.rows; ++row) {
    std::vector<double> x(length);
    double squares = 0.0;
    for (std::int32_t i = 0; i < norm.size; ++i) {
      const std::size_t at = index_of(row, norm.size, i);
      double& value = x[static_cast<std::size_t>(i)];
      value = source.at(at);
      if (norm.adds) {
        value = round_to(value + added.at(at), norm.dtype);
        EXPECT_EQ(got.sum[at], value);
      }
      squares += value * value;
    }
    const double scale = 1.0 / std::sqrt(squares / norm.size + norm.form.epsilon);
    for (std::int32_t i = 0; i < norm.size; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double scaled = x[at] * scale;
      const double want = norm.form.in_type ? round_to(scaled, norm.dtype) * weight.at(at)
                                            : scaled * (weight.at(at) + norm.form.offset);
      differences.add(got.out[index_of(row, norm.size, i)], round_to(want, norm.dtype), norm.dtype);
    }
  }
  SCOPED_TRACE(testing::Message() << norm.size << " of type " << static_cast<int>(norm.dtype));
  differences.expect_few(norm.dtype);
}

TEST(LayerKernels, NormsAgreeWithDouble) {
  std::uint64_t seed = 0;
  for (const std::int32_t size : norm_sizes()) {
    for (const DataType dtype : kTypes) {
      for (const NormForm form : {NormForm{1e-6f, 0.0f, true}, NormForm{1e-5f, 1.0f, false},
                                  NormForm{0.1f, 0.0f, false}}) {
        simt::set_seed(++seed);
        expect_norm({size > 1000 ? 2 : 5, size, dtype, form, seed % 2 == 0}, seed);
        if (kReduced) break;
      }
    }
  }
}

TEST(LayerKernels, ANormedRowHasTheSameBitsInAnyBatchAndAlignment) {
  for (const std::int32_t size : {96, kReduced ? 520 : 2560}) {
    for (const DataType dtype : kTypes) {
      constexpr std::int32_t kRows = 6;
      Elements source = Elements(index_of(kRows, size, 0), dtype).fill(1);
      Elements weight = Elements(static_cast<std::size_t>(size), dtype).fill(2);
      const Norm all{kRows, size, dtype, {1e-6f, 0.0f, true}, false};
      const NormResult want = normed_rows(all, source, source, weight);
      for (std::int32_t row = 0; row < kRows; row += 2) {
        Norm one = all;
        one.rows = 1;
        one.shift = 1;
        Elements alone(static_cast<std::size_t>(size), dtype, 1);
        Elements same(static_cast<std::size_t>(size), dtype, 1);
        for (std::int32_t i = 0; i < size; ++i) {
          alone.set(static_cast<std::size_t>(i), source.at(index_of(row, size, i)));
          same.set(static_cast<std::size_t>(i), weight.at(static_cast<std::size_t>(i)));
        }
        const NormResult got = normed_rows(one, alone, alone, same);
        for (std::int32_t i = 0; i < size; ++i) {
          ASSERT_EQ(got.out[static_cast<std::size_t>(i)], want.out[index_of(row, size, i)]);
        }
      }
    }
  }
}

// Heads [batch, heads, tokens, size] that lie as [batch, tokens, heads, size].
struct Heads {
  std::int32_t batch;
  std::int32_t heads;
  std::int32_t tokens;
  std::int32_t size;

  std::size_t count() const {
    return static_cast<std::size_t>(std::int64_t{batch} * heads * tokens * size);
  }
  LayerRows view(Elements& elements) const {
    const std::int64_t token = std::int64_t{heads} * size;
    return {elements.data(), {batch, heads, tokens}, {tokens * token, size, token}};
  }
  std::size_t source_at(std::int32_t b, std::int32_t h, std::int32_t t, std::int32_t i) const {
    return static_cast<std::size_t>(((std::int64_t{b} * tokens + t) * heads + h) * size + i);
  }
  std::size_t out_at(std::int32_t b, std::int32_t h, std::int32_t t, std::int32_t i) const {
    return static_cast<std::size_t>(((std::int64_t{b} * heads + h) * tokens + t) * size + i);
  }
};

struct Angles {
  Elements cosine;
  Elements sine;
  bool shared;  // by all entries of the batch
};

Angles angles_for(const Heads& heads, DataType dtype, bool shared, std::uint64_t seed) {
  const auto count = static_cast<std::size_t>((shared ? 1 : heads.batch) * heads.tokens *
                                              std::int64_t{heads.size});
  return {Elements(count, dtype).fill(seed), Elements(count, dtype).fill(seed + 1), shared};
}

RotaryArguments rotary_of(const RotatedHeads& queries, const RotatedHeads& keys, Angles& angles,
                          const Heads& shape, DataType dtype) {
  const std::int64_t batch = angles.shared ? 0 : std::int64_t{shape.tokens} * shape.size;
  return {queries,
          keys,
          angles.cosine.data(),
          angles.sine.data(),
          {batch, shape.size},
          {batch, shape.size},
          shape.size,
          dtype};
}

void expect_rotated(Elements& source, Elements& out, Angles& angles, const Heads& shape) {
  const DataType dtype = out.dtype();
  const std::int32_t half = shape.size / 2;
  for (std::int32_t row = 0; row < shape.batch * shape.heads * shape.tokens; ++row) {
    const std::int32_t t = row % shape.tokens;
    const std::int32_t h = row / shape.tokens % shape.heads;
    const std::int32_t b = row / shape.tokens / shape.heads;
    for (std::int32_t i = 0; i < shape.size; ++i) {
      const auto angle = static_cast<std::size_t>(
          ((angles.shared ? 0 : b) * std::int64_t{shape.tokens} + t) * shape.size + i);
      const double own = source.at(shape.source_at(b, h, t, i));
      const double other = i < half ? -source.at(shape.source_at(b, h, t, i + half))
                                    : source.at(shape.source_at(b, h, t, i - half));
      // Of two numbers of 24 bits a product in double is exact.
      const double want = round_to(round_to(own * angles.cosine.at(angle), dtype) +
                                       round_to(other * angles.sine.at(angle), dtype),
                                   dtype);
      ASSERT_EQ(out.at(shape.out_at(b, h, t, i)), want) << row << " " << i;
    }
  }
}

std::vector<Heads> head_shapes() {
  if (kReduced) return {{1, 2, 1, 80}};
  return {{1, 4, 1, 64},  {2, 3, 2, 80}, {1, 5, 3, 96}, {2, 1, 1, 128},
          {1, 2, 2, 256}, {1, 1, 2, 2},  {1, 1, 1, 512}};
}

TEST(LayerKernels, RotatedHeadsHaveTheBitsOfTheExpression) {
  std::uint64_t seed = 0;
  for (const Heads& shape : head_shapes()) {
    for (const DataType dtype : kTypes) {
      simt::set_seed(++seed);
      Heads fewer = shape;
      fewer.heads = 1;
      Angles angles = angles_for(shape, dtype, seed % 2 == 0, seed);
      Elements queries = Elements(shape.count(), dtype).fill(seed + 2);
      Elements keys = Elements(fewer.count(), dtype, 1).fill(seed + 3);
      Elements queries_out(shape.count(), dtype, 1);
      Elements keys_out(fewer.count(), dtype);
      const RotaryArguments arguments =
          rotary_of({shape.view(queries), queries_out.data(), nullptr, {}},
                    {fewer.view(keys), keys_out.data(), nullptr, {}}, angles, shape, dtype);
      ASSERT_EQ(device::launch_rotary(arguments, kDevice, nullptr), 0);
      expect_rotated(queries, queries_out, angles, shape);
      expect_rotated(keys, keys_out, angles, fewer);
    }
  }
}

TEST(LayerKernels, NormAndRotationTogetherHaveTheBitsOfBothAfterOneAnother) {
  for (const Heads& shape : head_shapes()) {
    for (const DataType dtype : kTypes) {
      for (const NormForm form : {NormForm{1e-6f, 0.0f, true}, NormForm{1e-5f, 1.0f, false}}) {
        Angles angles = angles_for(shape, dtype, true, 4);
        Elements source = Elements(shape.count(), dtype).fill(5);
        Elements weight = Elements(static_cast<std::size_t>(shape.size), dtype).fill(6);
        Elements middle(shape.count(), dtype);
        // Normed as it lies, [batch, tokens, heads, size]: compact.
        const NormArguments norm{
            compact_rows(source, static_cast<std::int32_t>(shape.count() / weight.count()),
                         shape.size),
            nullptr,
            nullptr,
            weight.data(),
            middle.data(),
            shape.size,
            dtype,
            form};
        ASSERT_EQ(device::launch_norm(norm, kDevice, nullptr), 0);
        Elements out(shape.count(), dtype);
        const RotatedHeads heads{shape.view(source), out.data(), weight.data(), form};
        const RotatedHeads none{{nullptr, {0, 1, 1}, {0, 0, 0}}, nullptr, nullptr, {}};
        ASSERT_EQ(
            device::launch_rotary(rotary_of(heads, none, angles, shape, dtype), kDevice, nullptr),
            0);
        expect_rotated(middle, out, angles, shape);
      }
    }
  }
}

double activation_of(double x, Activation activation) {
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

TEST(LayerKernels, ActivationsAgreeWithDouble) {
  std::uint64_t seed = 0;
  for (const std::size_t count :
       {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{100}, std::size_t{2080}}) {
    for (const DataType dtype : kTypes) {
      for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
        simt::set_seed(++seed);
        const auto shift = static_cast<std::int64_t>(seed % 2);
        Elements gate = Elements(count, dtype, shift).fill(seed, 2.0);
        Elements up = Elements(count, dtype, 0).fill(seed + 1);
        Elements out(count, dtype, shift);
        const ActivationArguments arguments{gate.data(), up.data(),
                                            out.data(),  static_cast<std::int64_t>(count),
                                            activation,  dtype};
        ASSERT_EQ(device::launch_activation(arguments, kDevice, nullptr), 0);
        std::int64_t differing = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const double exact = activation_of(gate.at(i), activation);
          const double want = round_to(round_to(exact, dtype) * up.at(i), dtype);
          // 1 + tanh is near 0 for what is far below: an error of the last place of 1.
          const double allowed =
              2.0 * unit_of(want, dtype) + 0x1p-22 * std::abs(gate.at(i) * up.at(i));
          ASSERT_NEAR(out.at(i), want, allowed) << gate.at(i);
          if (std::abs(out.at(i) - want) > 0x1p-20) ++differing;
        }
        if (dtype != DataType::kFloat32) {
          EXPECT_LE(differing, 2 + static_cast<std::int64_t>(count) / 50);
        }
      }
    }
  }
}

TEST(LayerKernels, NothingIsLegalAndTooMuchIsNot) {
  NormArguments norm{};
  norm.source.shape[0] = 0;
  norm.source.shape[1] = norm.source.shape[2] = 1;
  norm.size = 64;
  EXPECT_EQ(device::launch_norm(norm, kDevice, nullptr), 0);
  norm.size = kMostNormSize + 1;
  EXPECT_NE(device::launch_norm(norm, kDevice, nullptr), 0);
  RotaryArguments rotary{};
  rotary.size = kMostRotarySize + 2;
  EXPECT_NE(device::launch_rotary(rotary, kDevice, nullptr), 0);
  EXPECT_EQ(device::launch_activation({}, kDevice, nullptr), 0);
}

}  // namespace
}  // namespace glimprouter
