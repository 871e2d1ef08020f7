// Casts between element types on every instruction set against the scalar definition, element.hpp.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "arithmetic/element.hpp"
#include "cpu/cpu_backend.hpp"
#include "ops/cast.hpp"

namespace glimprouter {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16};

// Every instruction set that this processor runs, one after the other; the one before comes back.
template <typename Body>
void on_every_instruction_set(Body&& body) {
  const std::string before(active_backend().name);
  for (const CpuKernels* kernels : compiled_backends()) {
    if (!backend_supported(*kernels)) continue;
    set_active_backend(kernels->name);
    SCOPED_TRACE(std::string(kernels->name));
    body();
  }
  set_active_backend(before);
}

std::vector<std::byte> bytes_of_every_16_bits() {
  std::vector<std::byte> bytes(2 * 65536);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto narrow = static_cast<std::uint16_t>(bits);
    std::memcpy(&bytes[2 * bits], &narrow, 2);
  }
  return bytes;
}

// Every exponent and sign with mantissas at, just below and just above what either narrow type
// rounds by; NaN with payloads high and low are among them.
std::vector<std::byte> bytes_of_many_floats() {
  std::vector<std::uint32_t> mantissas{0, 1, 2, 0x7FFFFF, 0x7FFFFE, 0x400000, 0x3FFFFF, 0x400001};
  for (const std::uint32_t unit : {13u, 14u, 16u, 17u}) {  // 14, 17: an odd last place
    for (const std::uint32_t base : {0u, 1u << unit, 0x7FFFFFu & ~((1u << unit) - 1u)}) {
      for (const std::uint32_t half : {(1u << 12), (1u << 15)}) {
        for (const std::uint32_t near : {half - 1, half, half + 1}) {
          mantissas.push_back(base | near);
        }
      }
    }
  }
  for (int shift = 0; shift < 23; ++shift) {  // ties of half's subnormal numbers
    mantissas.push_back(1u << shift);
    mantissas.push_back((1u << shift) | 0x400000u);
    mantissas.push_back((1u << shift) - 1u);
    mantissas.push_back((3u << shift) & 0x7FFFFFu);
  }
  std::vector<std::byte> bytes;
  for (std::uint32_t top = 0; top < 512; ++top) {  // sign and exponent
    for (const std::uint32_t mantissa : mantissas) {
      const std::uint32_t bits = top << 23 | mantissa;
      const auto* const first = reinterpret_cast<const std::byte*>(&bits);
      bytes.insert(bytes.end(), first, first + 4);
    }
  }
  return bytes;
}

std::vector<std::byte> values_of(DataType type) {
  return type == DataType::kFloat32 ? bytes_of_many_floats() : bytes_of_every_16_bits();
}

// By the definition, one by one; the same type keeps its bits.
std::vector<std::byte> expected_cast(const std::vector<std::byte>& source, DataType from,
                                     DataType to) {
  if (from == to) return source;
  const std::int64_t count = static_cast<std::int64_t>(source.size()) / element_size(from);
  std::vector<std::byte> target(static_cast<std::size_t>(count * element_size(to)));
  for (std::int64_t i = 0; i < count; ++i) {
    store_element(target.data() + i * element_size(to), to,
                  element({source.data(), from, count}, i));
  }
  return target;
}

TEST(Cast, EveryPairOfTypesOnEveryInstructionSet) {
  for (const DataType from : kTypes) {
    const std::vector<std::byte> source = values_of(from);
    const std::int64_t count = static_cast<std::int64_t>(source.size()) / element_size(from);
    for (const DataType to : kTypes) {
      const std::vector<std::byte> expected = expected_cast(source, from, to);
      on_every_instruction_set([&] {
        std::vector<std::byte> target(expected.size(), std::byte{0xEE});
        cast_elements(source.data(), from, target.data(), to, count);
        EXPECT_TRUE(target == expected)
            << "from type " << static_cast<int>(from) << " to " << static_cast<int>(to);
      });
    }
  }
}

TEST(Cast, ShortRowsAtAnyAddressTouchNothingElse) {
  for (const DataType from : kTypes) {
    const std::vector<std::byte> source = values_of(from);
    for (const DataType to : kTypes) {
      const std::vector<std::byte> all = expected_cast(source, from, to);
      on_every_instruction_set([&] {
        for (std::int64_t count = 0; count <= 67; ++count) {
          const std::int64_t first = 31 * count;  // of the elements
          std::vector<std::byte> read(static_cast<std::size_t>(count * element_size(from)) + 1);
          std::memcpy(read.data() + 1, source.data() + first * element_size(from), read.size() - 1);
          const auto written = static_cast<std::size_t>(count * element_size(to));
          std::vector<std::byte> target(written + 3, std::byte{0xEE});
          cast_elements(read.data() + 1, from, target.data() + 1, to, count);
          EXPECT_EQ(std::memcmp(target.data() + 1, all.data() + first * element_size(to), written),
                    0);
          EXPECT_EQ(target.front(), std::byte{0xEE});
          EXPECT_EQ(target[written + 1], std::byte{0xEE});
        }
      });
    }
  }
}

// Of a narrow type.
float as_float(DataType type, std::uint16_t bits) {
  return type == DataType::kFloat16 ? float_from_half(bits) : float_from_bfloat16(bits);
}

std::uint16_t cast_to(DataType type, float value) {
  std::uint16_t bits = 0;
  cast_elements(&value, DataType::kFloat32, &bits, type, 1);
  return bits;
}

// The definition itself, against arithmetic in double precision.
TEST(Cast, RoundsToTheNearestAndTiesToEven) {
  for (const DataType type : {DataType::kBFloat16, DataType::kFloat16}) {
    const std::uint16_t infinity = type == DataType::kFloat16 ? 0x7C00 : 0x7F80;
    for (std::uint16_t bits = 0; bits + 1 < infinity; ++bits) {
      const float low = as_float(type, bits);
      const float high = as_float(type, static_cast<std::uint16_t>(bits + 1));
      ASSERT_EQ(cast_to(type, low), bits);
      ASSERT_EQ(cast_to(type, -low), bits | 0x8000);
      const auto middle = static_cast<float>((static_cast<double>(low) + high) / 2);
      if (middle == low || middle == high) continue;  // no float lies between
      ASSERT_EQ(cast_to(type, middle), bits % 2 == 0 ? bits : bits + 1);
      ASSERT_EQ(cast_to(type, std::nextafter(middle, low)), bits);
      ASSERT_EQ(cast_to(type, std::nextafter(middle, high)), bits + 1);
    }
    EXPECT_EQ(cast_to(type, std::numeric_limits<float>::infinity()), infinity);
    EXPECT_EQ(cast_to(type, std::numeric_limits<float>::max()), infinity);
    EXPECT_TRUE(std::isnan(as_float(type, cast_to(type, std::bit_cast<float>(0x7F800001u)))));
  }
}

}  // namespace
}  // namespace glimprouter
