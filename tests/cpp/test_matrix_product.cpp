// Products of rows and matrices: against double, the same bits in any batch, on any instruction set
// and number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "glimprouter/thread_pool.hpp"
#include "made_values.hpp"
#include "ops/matrix_product.hpp"

namespace glimprouter {
namespace {

struct Case {
  std::int64_t rows, outputs, size;
};
constexpr Case kCases[] = {{1, 1, 16},   {1, 302, 64},   {2, 17, 48},   {3, 64, 192},
                           {4, 65, 192}, {7, 130, 80},   {31, 66, 448}, {33, 128, 64},
                           {70, 30, 32}, {70, 128, 1024}};  // the last one is shared among threads

std::vector<float> product_of(const Case& shape, const std::vector<float>& rows,
                              const std::vector<float>& weights, const float* bias,
                              const float* added) {
  std::vector<float> out(static_cast<std::size_t>(shape.rows * shape.outputs));
  ProductRows arranged;
  arranged.arrange(rows.data(), shape.rows, shape.size);
  multiply_rows({weights.data(), bias, shape.outputs, shape.size}, arranged, added, out.data());
  return out;
}

class EveryInstructionSet : public testing::Test {
 protected:
  ~EveryInstructionSet() override {
    set_active_backend(before_);
    set_num_threads(1);
  }

 private:
  const std::string before_{active_backend().name};
};

using MatrixProduct = EveryInstructionSet;

TEST_F(MatrixProduct, WithinItsRoundingOfDouble) {
  for (const Case& shape : kCases) {
    const std::vector<float> rows = values_of(shape.rows * shape.size, 1);
    const std::vector<float> weights = values_of(shape.outputs * shape.size, 2);
    const std::vector<float> bias = values_of(shape.outputs, 3);
    const std::vector<float> added = values_of(shape.rows * shape.outputs, 4);
    const std::vector<float> out = product_of(shape, rows, weights, bias.data(), added.data());
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      for (std::int64_t output = 0; output < shape.outputs; ++output) {
        const auto at = static_cast<std::size_t>(row * shape.outputs + output);
        double want = static_cast<double>(bias[static_cast<std::size_t>(output)]) + added[at];
        double magnitude = std::abs(want);
        for (std::int64_t i = 0; i < shape.size; ++i) {
          const double term =
              static_cast<double>(rows[static_cast<std::size_t>(row * shape.size + i)]) *
              weights[static_cast<std::size_t>(output * shape.size + i)];
          want += term;
          magnitude += std::abs(term);
        }
        EXPECT_NEAR(out[at], want, 0x1.0p-20 * magnitude) << shape.size << " " << row;
      }
    }
  }
}

TEST_F(MatrixProduct, ARowHasTheSameBitsInAnyBatchOnAnyInstructionSetAndNumberOfThreads) {
  for (const Case& shape : kCases) {
    const std::vector<float> rows = values_of(shape.rows * shape.size, 5);
    const std::vector<float> weights = values_of(shape.outputs * shape.size, 6);
    set_active_backend("generic");
    const std::vector<float> want = product_of(shape, rows, weights, nullptr, nullptr);
    for (const CpuKernels* kernels : compiled_backends()) {
      if (!backend_supported(*kernels)) continue;
      set_active_backend(kernels->name);
      for (const int threads : {1, 3}) {
        set_num_threads(threads);
        EXPECT_EQ(product_of(shape, rows, weights, nullptr, nullptr), want) << kernels->name;
      }
      set_num_threads(1);
      for (std::int64_t count = 1; count <= shape.rows; ++count) {  // the last rows alone
        const std::vector<float> some(rows.end() - count * shape.size, rows.end());
        const std::vector<float> out =
            product_of({count, shape.outputs, shape.size}, some, weights, nullptr, nullptr);
        EXPECT_EQ(out, std::vector<float>(want.end() - count * shape.outputs, want.end()))
            << kernels->name << " " << count;
      }
    }
  }
}

TEST_F(MatrixProduct, MayBeAddedToItsOwnPlace) {
  const Case shape{21, 70, 32};
  const std::vector<float> rows = values_of(shape.rows * shape.size, 7);
  const std::vector<float> weights = values_of(shape.outputs * shape.size, 8);
  std::vector<float> place = values_of(shape.rows * shape.outputs, 9);
  const std::vector<float> want = product_of(shape, rows, weights, nullptr, place.data());
  ProductRows arranged;
  arranged.arrange(rows.data(), shape.rows, shape.size);
  multiply_rows({weights.data(), nullptr, shape.outputs, shape.size}, arranged, place.data(),
                place.data());
  EXPECT_EQ(place, want);
}

}  // namespace
}  // namespace glimprouter
