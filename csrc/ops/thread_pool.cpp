#include "glimprouter/thread_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace glimprouter {
namespace {

constexpr int kMaxThreads = 256;
// Waking a thread costs a few microseconds: about as long as this many elements take.
constexpr std::int64_t kMinElementsToShare = 1 << 16;

// Worker threads that wait for a batch and take its tasks one by one.
class ThreadPool {
 public:
  explicit ThreadPool(int workers) : process_(getpid()) {
    for (int i = 0; i < workers; ++i) {
      threads_.emplace_back([this, i] { work(i + 1); });
    }
  }

  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // Threads do not survive fork(): the child evaluates its rows alone.
  bool belongs_to_this_process() const { return process_ == getpid(); }

  void run(std::int64_t count, const TaskBody& body) {
    // No more than there are tasks for.
    const auto wanted =
        static_cast<int>(std::min(count - 1, static_cast<std::int64_t>(threads_.size())));
    {
      const std::lock_guard lock(mutex_);
      body_ = &body;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      invited_ = running_ = wanted;
    }
    for (int i = 0; i < wanted; ++i) wake_.notify_one();
    take_tasks(0);
    std::unique_lock lock(mutex_);
    running_ -= invited_;  // who has not begun by now has nothing to do
    invited_ = 0;
    finished_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void take_tasks(int thread) {
    for (;;) {
      const std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= count_) return;
      (*body_)(task, thread);
    }
  }

  void work(int thread) {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || invited_ > 0; });
      if (stop_) return;
      --invited_;
      lock.unlock();
      take_tasks(thread);
      lock.lock();
      if (--running_ == 0) finished_.notify_one();
    }
  }

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::vector<std::thread> threads_;
  const TaskBody* body_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  int invited_ = 0;  // workers that have not begun yet
  int running_ = 0;  // workers that have not ended yet
  bool stop_ = false;
};

struct Shared {
  std::mutex mutex;  // held during a batch: one batch at a time uses the workers
  std::unique_ptr<ThreadPool> pool;
  std::atomic<int> count{1};
};

// Never destroyed: worker threads may still wait while the process exits.
Shared& shared() {
  static Shared* instance = new Shared;
  return *instance;
}

}  // namespace

void set_num_threads(int count) {
  if (count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("num_threads must lie in [1, " + std::to_string(kMaxThreads) +
                                "], got " + std::to_string(count));
  }
  Shared& state = shared();
  const std::lock_guard lock(state.mutex);
  if (count == state.count.load()) return;
  if (state.pool && !state.pool->belongs_to_this_process()) {
    static_cast<void>(state.pool.release());  // its threads live in the parent
  }
  state.pool.reset();
  if (count > 1) state.pool = std::make_unique<ThreadPool>(count - 1);
  state.count.store(count);
}

int num_threads() { return shared().count.load(); }

void WorkspaceSet::reserve(std::int64_t max_vocabulary) {
  const auto wanted = static_cast<std::size_t>(num_threads());
  if (!workspaces_.empty() && workspaces_.front().max_vocabulary() < max_vocabulary) {
    workspaces_.clear();
  }
  while (workspaces_.size() < wanted) workspaces_.emplace_back(max_vocabulary);
}

void parallel_tasks(std::int64_t count, std::int64_t elements, TaskBody body,
                    WorkspaceSet* workspaces, std::int64_t vocabulary) {
  Shared& state = shared();
  if (count > 1 && elements >= kMinElementsToShare && state.count.load() > 1) {
    const std::unique_lock lock(state.mutex, std::try_to_lock);
    if (lock.owns_lock() && state.pool && state.pool->belongs_to_this_process()) {
      // Under the lock: the number of threads cannot change until the batch is done.
      if (workspaces != nullptr) workspaces->reserve(vocabulary);
      state.pool->run(count, body);
      return;
    }
  }
  if (workspaces != nullptr) workspaces->reserve(vocabulary);
  for (std::int64_t task = 0; task < count; ++task) body(task, 0);
}

void parallel_rows(std::int64_t count, std::int64_t vocabulary, WorkspaceSet& workspaces,
                   RowBody body) {
  auto task = [&](std::int64_t row, int thread) noexcept { body(row, workspaces.at(thread)); };
  parallel_tasks(count, count * vocabulary, TaskBody(task), &workspaces, vocabulary);
}

}  // namespace glimprouter
