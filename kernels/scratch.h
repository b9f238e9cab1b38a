// Uninitialised, aligned, reusable memory for one kernel call.

#ifndef GEODIFF_JAX_KERNELS_SCRATCH_H_
#define GEODIFF_JAX_KERNELS_SCRATCH_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace geodiff {

template <typename T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Room for `size` values, which are lost when it has to grow.
  T* Reserve(size_t size) {
    if (size > capacity_) {
      const size_t wanted = size + size / 4;
      if (wanted > (size_t{1} << 62) / sizeof(T)) throw std::bad_alloc();
      std::free(data_);
      data_ = nullptr;
      capacity_ = 0;
      const size_t bytes = (wanted * sizeof(T) + 63) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = wanted;
    }
    return data_;
  }

  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t capacity_ = 0;
};

// Keeps workspaces alive between calls, so that they need no page faults. XLA runs
// kernels on any thread, hence no thread_local.
template <typename Workspace>
class Pool {
 public:
  class Lease {
   public:
    explicit Lease(Pool& pool) : pool_(pool), workspace_(pool.Take()) {}
    ~Lease() { pool_.Return(std::move(workspace_)); }
    Workspace& operator*() const { return *workspace_; }

   private:
    Pool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  std::unique_ptr<Workspace> Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }

  void Return(std::unique_ptr<Workspace> workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SCRATCH_H_
