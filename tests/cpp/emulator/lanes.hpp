// The builds that the tests run in: a planted bug is required to be caught where it can be seen.
#pragma once

namespace glimprouter::simt {

enum class Lane { kPlain, kAddress, kThread };

#if defined(__SANITIZE_THREAD__)
inline constexpr Lane kLane = Lane::kThread;
#elif defined(__SANITIZE_ADDRESS__)
inline constexpr Lane kLane = Lane::kAddress;  // UndefinedBehaviorSanitizer comes with it
#else
inline constexpr Lane kLane = Lane::kPlain;
#endif

// ThreadSanitizer runs the kernels some thirty times slower: tests leave out what only repeats.
inline constexpr bool kReduced = kLane == Lane::kThread;

}  // namespace glimprouter::simt
