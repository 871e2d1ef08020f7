// What messages call models and phases.
#pragma once

#include "glimprouter/types/step_types.hpp"

namespace glimprouter {

inline const char* name_of(Model model) { return model == Model::kSmall ? "small" : "large"; }

inline const char* phase_in_words(Phase phase) {
  constexpr const char* kNames[] = {"waits for the small model's glimpse",
                                    "waits for the small model",
                                    "waits for the large model",
                                    "waits for decide()",
                                    "writes its answer",
                                    "is done"};
  return kNames[static_cast<int>(phase)];
}

}  // namespace glimprouter
