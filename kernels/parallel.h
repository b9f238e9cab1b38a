// Parallel loops on XLA's own CPU thread pool.
//
// The caller works too, so a loop finishes even when every pool thread is busy
// (nested or concurrent calls cannot deadlock). Which thread runs which task is
// left to chance: tasks must write to disjoint memory and must not depend on
// the number of threads, which is what makes results bitwise reproducible.

#ifndef GEODIFF_JAX_KERNELS_PARALLEL_H_
#define GEODIFF_JAX_KERNELS_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace geodiff {

class Parallel {
 public:
  explicit Parallel(xla::ffi::ThreadPool pool)
      : pool_(pool), num_threads_(pool.num_threads()) {
    if (num_threads_ < 1) num_threads_ = 1;
  }

  // Upper bound of the `worker` numbers that `task` receives.
  int64_t num_workers() const { return num_threads_; }

  // Calls task(index, worker) once for every index in [0, num_tasks); `worker`
  // names a scratch slot that no other running task holds. Tasks may throw only for
  // lack of memory: std::bad_alloc is what the caller gets.
  template <typename Task>
  void For(int64_t num_tasks, const Task& task) {
    int64_t helpers = num_tasks - 1;
    if (helpers > num_threads_ - 1) helpers = num_threads_ - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < num_tasks; ++i) task(i, int64_t{0});
      return;
    }
    auto loop = std::make_shared<Loop>();
    loop->num_tasks = num_tasks;
    loop->task = [&task](int64_t i, int64_t worker) { task(i, worker); };
    for (int64_t worker = 1; worker <= helpers; ++worker) {
      pool_.Schedule([loop, worker] { loop->Work(worker); });
    }
    loop->Work(0);
    loop->Wait();
  }

 private:
  // Owned jointly by the caller and the helpers: a helper that starts after the
  // caller has returned finds no task left and touches nothing else.
  struct Loop {
    std::function<void(int64_t, int64_t)> task;
    int64_t num_tasks = 0;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> finished{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable all_finished;

    void Work(int64_t worker) {
      for (;;) {
        const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= num_tasks) return;
        try {
          task(i, worker);
        } catch (...) {
          failed.store(true, std::memory_order_relaxed);
        }
        if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks) {
          std::lock_guard<std::mutex> lock(mutex);
          all_finished.notify_all();
        }
      }
    }

    void Wait() {
      std::unique_lock<std::mutex> lock(mutex);
      all_finished.wait(lock, [this] {
        return finished.load(std::memory_order_acquire) == num_tasks;
      });
      if (failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
    }
  };

  xla::ffi::ThreadPool pool_;
  int64_t num_threads_;
};

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_PARALLEL_H_
