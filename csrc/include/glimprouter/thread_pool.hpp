// Rows of a batch spread over the library's own threads (std::thread: no second OpenMP runtime).
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "glimprouter/row_op.hpp"

namespace glimprouter {

// Number of threads that a batch may use, the caller's included. Default 1. Process-wide.
void set_num_threads(int count);
int num_threads();

// One workspace per thread, grown only by reserve().
class WorkspaceSet {
 public:
  // Prepares for rows of max_vocabulary on num_threads() threads. Allocates only when it must.
  void reserve(std::int64_t max_vocabulary);
  RowWorkspace& at(int thread) { return workspaces_[static_cast<std::size_t>(thread)]; }

 private:
  std::vector<RowWorkspace> workspaces_;
};

// A borrowed callable: body(row index, workspace). Non-owning, for the duration of a call.
class RowBody {
 public:
  template <typename Body>
  RowBody(Body& body)  // NOLINT(google-explicit-constructor): a view of the callable
      : object_(static_cast<void*>(&body)),
        call_([](void* object, std::int64_t row, RowWorkspace& workspace) noexcept {
          (*static_cast<std::remove_reference_t<Body>*>(object))(row, workspace);
        }) {}
  void operator()(std::int64_t row, RowWorkspace& workspace) const noexcept {
    call_(object_, row, workspace);
  }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, RowWorkspace&) noexcept;
};

// Calls body for rows 0 .. count-1, each exactly once, in any order and on any of the threads.
// Runs on the calling thread alone when the batch is too small to share (count * vocabulary).
// workspaces.reserve(vocabulary) must have been called.
void parallel_rows(std::int64_t count, std::int64_t vocabulary, WorkspaceSet& workspaces,
                   RowBody body);

}  // namespace glimprouter
