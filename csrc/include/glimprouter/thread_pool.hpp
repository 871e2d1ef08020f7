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

// A borrowed callable: body(index, context). Non-owning, for the duration of a call.
template <typename Context>
class BorrowedBody {
 public:
  template <typename Body>
  BorrowedBody(Body& body)  // NOLINT(google-explicit-constructor): a view of the callable
      : object_(static_cast<void*>(&body)),
        call_([](void* object, std::int64_t index, Context context) noexcept {
          (*static_cast<std::remove_reference_t<Body>*>(object))(index, context);
        }) {}
  void operator()(std::int64_t index, Context context) const noexcept {
    call_(object_, index, context);
  }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, Context) noexcept;
};
using RowBody = BorrowedBody<RowWorkspace&>;
using TaskBody = BorrowedBody<int>;  // context: number of the thread, the caller's being 0

// Calls body for tasks 0 .. count-1, each exactly once, in any order and on any of the threads.
// elements: how much they touch together; the calling thread does little work alone.
// workspaces: when given, holds one for each of the threads by then.
void parallel_tasks(std::int64_t count, std::int64_t elements, TaskBody body,
                    WorkspaceSet* workspaces = nullptr, std::int64_t vocabulary = 0);

// The same for rows of logits, with a workspace a thread.
void parallel_rows(std::int64_t count, std::int64_t vocabulary, WorkspaceSet& workspaces,
                   RowBody body);

}  // namespace glimprouter
