// All of the public interface.
#pragma once

#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "glimprouter/row_op.hpp"
#include "glimprouter/step_router.hpp"
#include "glimprouter/steps_on.hpp"
#include "glimprouter/thread_pool.hpp"
