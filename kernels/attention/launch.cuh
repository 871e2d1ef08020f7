// How attention over pages is launched: one kernel for any batch, by the loads that are wanted.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/direct.cuh"
#include "kernels/attention/staged.cuh"
#include "kernels/kv/launch.cuh"

namespace glimprouter::device {

inline LaunchStatus launch_attention(const AttentionArguments& arguments, const DeviceShape& device,
                                     Stream stream) {
  if (arguments.sequences == 0 || arguments.most_tokens == 0) return 0;
  const std::int64_t groups = attention_row_groups(arguments);
  const std::int32_t chunks = attention_chunks(arguments);
  const std::int32_t kv_heads = arguments.pages.layer.num_kv_heads;
  if (groups > kMaxGridX || std::max(chunks, kv_heads) > static_cast<std::int32_t>(kMaxGridY)) {
    return kInvalidConfiguration;
  }
  const std::int32_t rows = attention_block_rows(arguments);
  LaunchShape shape = shape_on(device, stream);
  shape.grid.x = static_cast<unsigned>(groups);
  shape.grid.y = static_cast<unsigned>(chunks);
  shape.grid.z = static_cast<unsigned>(kv_heads);
  shape.block = static_cast<unsigned>(rows) * kWarpSize;
  if (copies_ahead(arguments)) {
    return rows == 4 ? launch(&staged_attention_kernel<4>, shape, arguments)
                     : launch(&staged_attention_kernel<8>, shape, arguments);
  }
  return rows == 4 ? launch(&attention_kernel<4>, shape, arguments)
                   : launch(&attention_kernel<8>, shape, arguments);
}

}  // namespace glimprouter::device
