// Products of a few rows with weight matrices, run by the emulator: against double precision, and
// the same bits in any batch and beside any other matrix.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <deque>
#include <vector>

#include "emulator/grid.hpp"
#include "kernels/layers/launch.cuh"
#include "lanes.hpp"
#include "layer_tensors.hpp"

namespace glimprouter {
namespace {

using simt::Elements;
using simt::kReduced;
using simt::round_to;
using simt::unit_of;

constexpr device::DeviceShape kDevice{3, true};
constexpr device::DeviceShape kLargeDevice{200, false};

std::size_t place(std::int32_t row, std::int32_t size, std::int32_t i) {
  return static_cast<std::size_t>(std::int64_t{row} * size + i);
}

// Weights of some matrices and what they are multiplied with.
struct Products {
  Products(std::int32_t row_count, std::int32_t elements, std::vector<std::int32_t> matrix_rows,
           DataType type, bool with_bias, std::uint64_t seed)
      : count(row_count), size(elements), rows(std::move(matrix_rows)), dtype(type), x(0, type) {
    x = Elements(place(count, size, 0), dtype).fill(seed);
    for (const std::int32_t own : rows) {
      weights.push_back(Elements(place(own, size, 0), dtype).fill(++seed, 0.3));
      biases.push_back(Elements(static_cast<std::size_t>(own), dtype, 1).fill(seed + 50));
    }
    biased = with_bias;
  }

  // The results of some of the matrices, of the rows from `first` on.
  std::vector<std::vector<double>> multiply(const std::vector<std::size_t>& which,
                                            std::int32_t first, std::int32_t taken,
                                            bool gated = false,
                                            Activation activation = Activation::kSilu,
                                            const device::DeviceShape& where = kDevice) {
    Elements own(place(taken, size, 0), dtype);
    for (std::size_t i = 0; i < own.count(); ++i) own.set(i, x.at(place(first, size, 0) + i));
    std::deque<Elements> outs;
    ProductArguments arguments{};
    arguments.x = own.data();
    arguments.count = taken;
    arguments.size = size;
    arguments.dtype = dtype;
    arguments.matrices = static_cast<std::int32_t>(which.size());
    arguments.gated = gated;
    arguments.activation = activation;
    arguments.added = added;
    for (std::size_t i = 0; i < which.size(); ++i) {
      outs.emplace_back(place(taken, rows[which[i]], 0), dtype);
      arguments.matrix[i] = {weights[which[i]].data(), biased ? biases[which[i]].data() : nullptr,
                             outs[i].data(), rows[which[i]]};
    }
    EXPECT_EQ(device::launch_product(arguments, where, nullptr), 0);
    std::vector<std::vector<double>> results;
    for (Elements& out : outs) results.push_back(out.values());
    return results;
  }

  std::int32_t count;
  std::int32_t size;
  std::vector<std::int32_t> rows;
  DataType dtype;
  bool biased;
  Elements x;
  const std::byte* added = nullptr;
  std::deque<Elements> weights;
  std::deque<Elements> biases;
};

void expect_products(Products& products) {
  std::vector<std::size_t> all(products.rows.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  const auto got = products.multiply(all, 0, products.count);
  std::int64_t compared = 0;
  std::int64_t differing = 0;
  for (std::size_t matrix = 0; matrix < all.size(); ++matrix) {
    const std::int32_t rows = products.rows[matrix];
    for (std::int32_t m = 0; m < products.count; ++m) {
      for (std::int32_t n = 0; n < rows; ++n) {
        double sum = products.biased ? products.biases[matrix].at(static_cast<std::size_t>(n)) : 0;
        double magnitude = std::abs(sum);
        for (std::int32_t k = 0; k < products.size; ++k) {
          const double term = products.x.at(place(m, products.size, k)) *
                              products.weights[matrix].at(place(n, products.size, k));
          sum += term;
          magnitude += std::abs(term);
        }
        const double want = round_to(sum, products.dtype);
        const double own = got[matrix][place(m, rows, n)];
        ++compared;
        if (own != want) ++differing;
        ASSERT_NEAR(own, want, unit_of(want, products.dtype) + 0x1p-22 * magnitude)
            << matrix << ": " << m << ", " << n << " of " << products.size;
      }
    }
  }
  // Rounded once: a sum in float32 turns a rounding rarely.
  EXPECT_LE(differing, 2 + compared / 50) << compared;
}

TEST(Products, AgreeWithDouble) {
  struct Case {
    std::int32_t count;
    std::int32_t size;
    std::vector<std::int32_t> rows;
  };
  const std::vector<Case> cases =
      kReduced ? std::vector<Case>{{3, 72, {17}}, {11, 72, {17}}}
               : std::vector<Case>{{1, 8, {1}},         {8, 64, {16}},
                                   {3, 72, {15, 33}},   {5, 520, {17, 1, 40}},
                                   {2, 1032, {40, 16}}, {7, 2560, {24}},
                                   {1, 1096, {100}},    {4, 512, {16, 32, 48}},
                                   {9, 8, {17}},        {16, 520, {17, 1, 40}},
                                   {13, 2560, {24}},    {12, 1096, {100}},
                                   {10, 72, {15, 33}}};
  std::uint64_t seed = 0;
  for (const Case& own : cases) {
    for (const DataType dtype : {DataType::kBFloat16, DataType::kFloat16}) {
      simt::set_seed(++seed);
      Products products(own.count, own.size, own.rows, dtype, seed % 2 == 0, seed);
      expect_products(products);
    }
  }
}

// A row comes to stand in another place, and in the other group of eight.
TEST(Products, ARowHasTheSameBitsInAnyBatchAndBesideAnyMatrix) {
  for (const DataType dtype : {DataType::kBFloat16, DataType::kFloat16}) {
    Products products(kMostProductRows, kReduced ? 136 : 1160, {40, 7, 16}, dtype, true, 3);
    const auto want = products.multiply({0, 1, 2}, 0, kMostProductRows);
    for (const std::vector<std::size_t>& which :
         {std::vector<std::size_t>{0}, std::vector<std::size_t>{2, 0}}) {
      for (const std::int32_t taken : {1, 3, 5, 8, 9, 13}) {
        const std::int32_t first = kMostProductRows - taken;
        const auto got = products.multiply(which, first, taken);
        for (std::size_t i = 0; i < which.size(); ++i) {
          const std::int32_t rows = products.rows[which[i]];
          for (std::int32_t m = 0; m < taken; ++m) {
            for (std::int32_t n = 0; n < rows; ++n) {
              ASSERT_EQ(got[i][place(m, rows, n)], want[which[i]][place(first + m, rows, n)])
                  << m << " of " << taken;
            }
          }
        }
      }
    }
  }
}

TEST(Products, TheSizeOfTheDeviceChangesNoBit) {
  for (const DataType dtype : {DataType::kBFloat16, DataType::kFloat16}) {
    for (const std::int32_t size : {8, kReduced ? 200 : 2568}) {
      for (const std::int32_t count : {2, 11}) {
        Products products(count, size, {kReduced ? 160 : 200}, dtype, false, 7);
        EXPECT_EQ(products.multiply({0}, 0, count),
                  products.multiply({0}, 0, count, false, Activation::kSilu, kLargeDevice));
      }
    }
  }
}

void expect_gate(std::int32_t count, DataType dtype, Activation activation) {
  const std::int32_t rows = kReduced ? 17 : 88;
  Products products(count, kReduced ? 72 : 1160, {rows, rows}, dtype,
                    activation == Activation::kSilu, 5);
  const auto parts = products.multiply({0, 1}, 0, count);
  Elements gate(parts[0].size(), dtype);
  Elements up(parts[0].size(), dtype);
  for (std::size_t i = 0; i < parts[0].size(); ++i) {
    gate.set(i, parts[0][i]);
    up.set(i, parts[1][i]);
  }
  Elements out(parts[0].size(), dtype);
  ASSERT_EQ(device::launch_activation({gate.data(), up.data(), out.data(),
                                       static_cast<std::int64_t>(out.count()), activation, dtype},
                                      kDevice, nullptr),
            0);
  EXPECT_EQ(products.multiply({0, 1}, 0, count, true, activation)[0], out.values());
}

TEST(Products, AGateHasTheBitsOfItsPartsAfterOneAnother) {
  for (const DataType dtype : {DataType::kBFloat16, DataType::kFloat16}) {
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      for (const std::int32_t count : {3, 14}) expect_gate(count, dtype, activation);
    }
  }
}

TEST(Products, WhatIsAddedComesBehindTheRounding) {
  for (const DataType dtype : {DataType::kBFloat16, DataType::kFloat16}) {
    for (const std::int32_t count : {3, 12}) {
      Products products(count, 72, {20}, dtype, false, 11);
      const auto plain = products.multiply({0}, 0, count)[0];
      Elements added = Elements(plain.size(), dtype, 1).fill(12);
      products.added = added.data();
      const auto got = products.multiply({0}, 0, count)[0];
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i], round_to(plain[i] + added.at(i), dtype));
      }
    }
  }
}

TEST(Products, NotANumberStaysInItsRow) {
  for (const std::int32_t count : {4, 16}) {
    for (const std::int32_t bad : {2, count - 1}) {
      Products products(count, 72, {20}, DataType::kBFloat16, false, 9);
      products.x.set(place(bad, 72, 71), std::nan(""));
      const auto got = products.multiply({0}, 0, count)[0];
      for (std::int32_t m = 0; m < count; ++m) {
        for (std::int32_t n = 0; n < 20; ++n) {
          EXPECT_EQ(std::isnan(got[place(m, 20, n)]), m == bad);
        }
      }
    }
  }
}

TEST(Products, WhatIsNotServedIsNotLaunched) {
  ProductArguments arguments{};
  arguments.matrices = 1;
  arguments.size = 64;
  arguments.count = 1;
  arguments.dtype = DataType::kFloat32;
  EXPECT_NE(device::launch_product(arguments, kDevice, nullptr), 0);
  arguments.dtype = DataType::kBFloat16;
  EXPECT_EQ(device::launch_product(arguments, kDevice, nullptr), 0);  // a matrix of no rows
  arguments.size = 60;
  EXPECT_NE(device::launch_product(arguments, kDevice, nullptr), 0);
  arguments.size = 64;
  arguments.count = kMostProductRows + 1;
  EXPECT_NE(device::launch_product(arguments, kDevice, nullptr), 0);
}

}  // namespace
}  // namespace glimprouter
