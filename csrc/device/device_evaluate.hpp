// Rows of logits on a device without a router: glimpse and sample.
#pragma once

#include <cstdint>
#include <span>

#include "device/device_backend.hpp"
#include "glimprouter/row_op.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// Starts the evaluation of every row and returns. results: [logits.rows], logprobs: [logits.rows,
// request.num_logprob_ids], both in device memory. requests: [logits.rows] in host memory, or
// empty: `request` for all. Scratch memory is kept per stream and grows when it must, so a call
// with the largest batch comes before the first capture into a graph. Throws std::invalid_argument
// for more rows than a launch takes, std::runtime_error when the device refuses.
void evaluate_rows(const Device& device, const LogitsView& logits, const RowRequest& request,
                   std::span<const RowRequest> requests, RowResult* results, float* logprobs,
                   DeviceStream stream);

}  // namespace glimprouter
