// Chooses the row kernels for this processor.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "cpu/kernel_tables.hpp"

namespace glimprouter {
namespace {

std::vector<const CpuKernels*> kernels_in_build() {
  return {
      &kGenericKernels,
#if defined(__x86_64__)
      &kAvx2Kernels,
      &kAvx512Kernels,
#elif defined(__aarch64__)
      &kNeonKernels,
#endif
  };
}

std::vector<const CpuKernels*>& registry() {
  static std::vector<const CpuKernels*> tables = kernels_in_build();
  return tables;
}

const CpuKernels& find_backend(std::string_view name) {
  std::string known;
  for (const CpuKernels* kernels : registry()) {
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    if (kernels->name != name) continue;
    if (backend_supported(*kernels)) return *kernels;
    throw std::invalid_argument("instruction set \"" + std::string(name) +
                                "\" is not supported by this processor; unset GLIMPROUTER_ISA to "
                                "let glimprouter choose");
  }
  throw std::invalid_argument("unknown instruction set \"" + std::string(name) +
                              "\": GLIMPROUTER_ISA takes one of " + known);
}

const CpuKernels& choose_backend() {
  if (const char* forced = std::getenv("GLIMPROUTER_ISA"); forced != nullptr && *forced != '\0') {
    return find_backend(forced);
  }
  const CpuKernels* best = &kGenericKernels;
  for (const CpuKernels* kernels : kernels_in_build()) {
    if (backend_supported(*kernels)) best = kernels;
  }
  return *best;
}

std::atomic<const CpuKernels*> active{nullptr};

}  // namespace

std::span<const CpuKernels* const> compiled_backends() { return registry(); }

void add_backend(const CpuKernels& kernels) { registry().insert(registry().begin(), &kernels); }

bool backend_supported(const CpuKernels& kernels) {
#if defined(__x86_64__)
  if (&kernels == &kAvx2Kernels) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
  if (&kernels == &kAvx512Kernels) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  static_cast<void>(kernels);
  return true;
}

const CpuKernels& active_backend() {
  const CpuKernels* kernels = active.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = &choose_backend();
    active.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

void set_active_backend(std::string_view name) {
  active.store(&find_backend(name), std::memory_order_release);
}

}  // namespace glimprouter
