// The one body of the casts between element types, included by every instruction-set file inside
// its anonymous namespace. Plain loops over integers without a branch: the compiler makes vectors
// of them, and the bits are those of element.hpp by construction, whatever the NaN and whatever the
// processor's own conversions would make of it.

// By a mask: of a branch around floating-point arithmetic no vector code is made.
inline std::uint32_t chosen(bool condition, std::uint32_t yes, std::uint32_t no) {
  return no ^ ((no ^ yes) & (0u - static_cast<std::uint32_t>(condition)));
}

struct Float32Element {
  using Stored = std::uint32_t;
  static std::uint32_t to_float(Stored bits) { return bits; }
  static Stored from_float(std::uint32_t bits) { return bits; }
};

struct BFloat16Element {
  using Stored = std::uint16_t;
  static std::uint32_t to_float(Stored bits) { return static_cast<std::uint32_t>(bits) << 16; }
  static Stored from_float(std::uint32_t bits) {
    const std::uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return static_cast<Stored>(chosen(is_nan, bits >> 16 | 0x40u, rounded));
  }
};

struct Float16Element {
  using Stored = std::uint16_t;
  static std::uint32_t to_float(Stored bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7FFFu;
    const std::uint32_t infinite = magnitude << 13 | 0x7F800000u;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);
    const float exact = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1.0p-24f;
    const auto subnormal = __builtin_bit_cast(std::uint32_t, exact);
    const std::uint32_t finite = chosen(magnitude < 0x400u, subnormal, normal);
    return sign | chosen(magnitude >= 0x7C00u, infinite, finite);
  }
  static Stored from_float(std::uint32_t bits) {
    const std::uint32_t sign = bits >> 16 & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
    const std::uint32_t infinite = chosen(magnitude > 0x7F800000u, 0x7E00u, 0x7C00u);
    const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    const std::uint32_t normal = (rounded - 0x38000000u) >> 13;
    // Adding 1/2 rounds at units of 2^-24.
    const float units = __builtin_bit_cast(float, magnitude) + 0.5f;
    const std::uint32_t subnormal = __builtin_bit_cast(std::uint32_t, units) - 0x3F000000u;
    const std::uint32_t finite = chosen(magnitude < 0x38800000u, subnormal, normal);
    return static_cast<Stored>(sign | chosen(magnitude >= 0x477FF000u, infinite, finite));
  }
};

template <typename Source, typename Target>
void cast_all(const std::byte* __restrict source, std::byte* __restrict target,
              std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {  // through bytes: a tensor may start anywhere
    typename Source::Stored read;
    __builtin_memcpy(&read, source + i * static_cast<std::int64_t>(sizeof read), sizeof read);
    const typename Target::Stored written = Target::from_float(Source::to_float(read));
    __builtin_memcpy(target + i * static_cast<std::int64_t>(sizeof written), &written,
                     sizeof written);
  }
}

template <typename Source>
void cast_from(const std::byte* source, std::byte* target, DataType target_type,
               std::int64_t count) {
  if (target_type == DataType::kFloat32) {
    cast_all<Source, Float32Element>(source, target, count);
  } else if (target_type == DataType::kBFloat16) {
    cast_all<Source, BFloat16Element>(source, target, count);
  } else {
    cast_all<Source, Float16Element>(source, target, count);
  }
}

// The types differ.
void cast(const std::byte* source, DataType source_type, std::byte* target, DataType target_type,
          std::int64_t count) {
  if (source_type == DataType::kFloat32) {
    cast_from<Float32Element>(source, target, target_type, count);
  } else if (source_type == DataType::kBFloat16) {
    cast_from<BFloat16Element>(source, target, target_type, count);
  } else {
    cast_from<Float16Element>(source, target, target_type, count);
  }
}
