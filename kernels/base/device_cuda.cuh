// The CUDA bodies of device.cuh, which says what they do. Included by it only.
#pragma once

namespace glimprouter::device {

GR_DEVICE Vec16 load16(const void* source) {
  const uint4 value = *static_cast<const uint4*>(source);
  return Vec16{{value.x, value.y, value.z, value.w}};
}

GR_DEVICE Vec16 load16_if(const void* source, bool condition) {
  Vec16 value;
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(value.word[0]), "=&r"(value.word[1]), "=&r"(value.word[2]), "=&r"(value.word[3])
      : "l"(__cvta_generic_to_global(source)), "r"(static_cast<std::uint32_t>(condition))
      : "memory");
  return value;
}

GR_DEVICE Vec16 load16_once_if(const void* source, bool condition) {
  Vec16 value;
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(value.word[0]), "=&r"(value.word[1]), "=&r"(value.word[2]), "=&r"(value.word[3])
      : "l"(__cvta_generic_to_global(source)), "r"(static_cast<std::uint32_t>(condition)));
  return value;
}

GR_DEVICE void store16(void* target, const Vec16& value) {
  *static_cast<uint4*>(target) =
      make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

// Past the first-level cache: what is copied is not read from global memory again.
GR_DEVICE void copy16_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(global))
               : "memory");
}

GR_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <unsigned kLeft>
GR_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}

GR_DEVICE float larger_number(float a, float b) { return fmaxf(a, b); }

GR_DEVICE float larger_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

GR_DEVICE std::uint32_t larger_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

GR_DEVICE std::uint32_t larger_bfloat16s(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

template <bool kBFloat16>
GR_DEVICE void multiply_tile(const std::uint32_t (&left)[4], const std::uint32_t (&right)[2],
                             float (&sums)[4]) {
  if constexpr (kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
}

GR_DEVICE float inverse_square_root(float x) { return rsqrtf(x); }
GR_DEVICE float exponential(float x) { return expf(x); }
GR_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }

GR_DEVICE void prefetch_global(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" : : "l"(__cvta_generic_to_global(address)));
}

GR_DEVICE std::uint32_t ticket_increment(std::uint32_t* counter, std::uint32_t last) {
  __threadfence();
  const std::uint32_t ticket = atomicInc(counter, last);
  __threadfence();
  return ticket;
}

GR_DEVICE std::uint32_t atomic_add(std::uint32_t* target, std::uint32_t value) {
  return atomicAdd(target, value);
}

GR_DEVICE std::uint64_t atomic_add(std::uint64_t* target, std::uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(target), value);
}

GR_DEVICE std::uint32_t atomic_add_shared(std::uint32_t* target, std::uint32_t value) {
  return atomicAdd_block(target, value);
}

// atomicAdd would compare and swap in a loop. The carry goes the way of the upper half.
GR_DEVICE void atomic_add_shared(std::uint64_t* target, std::uint64_t value) {
  auto* const words = reinterpret_cast<std::uint32_t*>(target);
  const auto low = static_cast<std::uint32_t>(value);
  const std::uint32_t before = atomicAdd_block(words, low);
  const std::uint32_t high =
      static_cast<std::uint32_t>(value >> 32) + (before + low < low ? 1u : 0u);
  if (high != 0) atomicAdd_block(words + 1, high);
}

GR_DEVICE void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

GR_DEVICE void wait_for_dependencies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace glimprouter::device
