// The words of CUDA that our kernels use, on a host: for tests, not for speed.
//
// Blocks run one after the other. A block's threads are fibers that take turns at
// barriers and warp-wide operations, in an order that alternates, so that a missing
// barrier shows. A block whose threads wait for each other in vain ends the program.

#ifndef GEODIFF_JAX_KERNELS_DEVICE_ON_HOST_H_
#define GEODIFF_JAX_KERNELS_DEVICE_ON_HOST_H_

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block at a time per thread of the host: its threads share these.
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 blockIdx{0}, threadIdx{0}, gridDim{1}, blockDim{1};

namespace geodiff {

class Block {
 public:
  static Block*& Current() {
    static thread_local Block* current = nullptr;
    return current;
  }

  void Run(unsigned num_threads, const std::function<void()>& kernel) {
    if (fibers_.size() != num_threads) fibers_ = std::vector<Fiber>(num_threads);
    kernel_ = &kernel;
    block_arrivals_ = counts_[0] = 0;
    warps_.assign(num_threads / 32 + 1, Warp());
    for (Fiber& fiber : fibers_) fiber.Prepare(&scheduler_);
    Current() = this;
    bool forwards = true;
    for (unsigned finished = 0; finished < num_threads; forwards = !forwards) {
      progress_ = false;
      for (unsigned k = 0; k < num_threads; ++k) {
        const unsigned i = forwards ? k : num_threads - 1 - k;
        if (fibers_[i].finished) continue;
        threadIdx.x = i;
        swapcontext(&scheduler_, &fibers_[i].context);
        finished += fibers_[i].finished;
      }
      if (!progress_) Fail("threads of a block wait for each other in vain");
    }
  }

  // Returns once every thread has called it as often as the caller.
  void Synchronize() {
    progress_ = true;
    const uint64_t goal = ++Self().barriers * fibers_.size();
    ++block_arrivals_;
    while (block_arrivals_ < goal) Yield();
  }

  // What each lane of the warp passed: valid until the caller's next warp operation.
  const uint32_t* Exchange(unsigned lanes, uint32_t value) {
    if (lanes != 0xffffffffu) Fail("only full warps are emulated");
    progress_ = true;
    Warp& warp = warps_[threadIdx.x / 32];
    const uint64_t operation = Self().exchanges++;
    uint32_t* values = warp.values[operation % 2];
    values[threadIdx.x % 32] = value;
    ++warp.arrivals;
    while (warp.arrivals < (operation + 1) * 32) Yield();
    return values;
  }

  // The sum over the block's threads. Three counters in turn: one is read while the
  // next is cleared.
  int Count(bool value) {
    const uint64_t operation = Self().counts++;
    counts_[operation % 3] += value;
    counts_[(operation + 1) % 3] = 0;
    Synchronize();
    return counts_[operation % 3];
  }

 private:
  struct Fiber {
    static constexpr size_t kStack = 1 << 16;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    uint64_t barriers = 0, exchanges = 0, counts = 0;
    bool finished = true;

    void Prepare(ucontext_t* scheduler) {
      getcontext(&context);
      context.uc_stack.ss_sp = stack.get();
      context.uc_stack.ss_size = kStack;
      context.uc_link = scheduler;
      barriers = exchanges = counts = 0;
      finished = false;
      makecontext(&context, &Block::Enter, 0);
    }
  };
  struct Warp {
    uint64_t arrivals = 0;
    uint32_t values[2][32];
  };

  static void Enter() {
    Block& block = *Current();
    (*block.kernel_)();
    block.progress_ = true;
    block.Self().finished = true;
  }
  Fiber& Self() { return fibers_[threadIdx.x]; }
  void Yield() {
    const unsigned self = threadIdx.x;
    swapcontext(&fibers_[self].context, &scheduler_);
    threadIdx.x = self;
  }
  [[noreturn]] static void Fail(const char* reason) {
    std::fprintf(stderr, "device_on_host: %s\n", reason);
    std::abort();
  }

  ucontext_t scheduler_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  const std::function<void()>* kernel_ = nullptr;
  uint64_t block_arrivals_ = 0;
  int counts_[3] = {};
  bool progress_ = false;
};

using Stream = xla::ffi::ThreadPool;  // Handlers want a context; this one is idle.
using StreamContext = xla::ffi::ThreadPool;

template <typename... Parameters, typename... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, Stream,
            Arguments... arguments) {
  static thread_local Block block;
  const std::function<void()> call = [&] { kernel(arguments...); };
  gridDim = grid;
  blockDim = dim3(threads);
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) block.Run(threads, call);
  }
}

inline void Copy(void* to, const void* from, size_t bytes, Stream) {
  std::memcpy(to, from, bytes);
}
inline void Fill(void* to, int byte, size_t bytes, Stream) {
  if (bytes > 0) std::memset(to, byte, bytes);
}
inline xla::ffi::Error LastError() { return xla::ffi::Error::Success(); }

inline float Exp(float x) { return std::exp(x); }
inline int LowestBit(unsigned bits) { return __builtin_ctz(bits); }

}  // namespace geodiff

inline void __syncthreads() { geodiff::Block::Current()->Synchronize(); }
inline int __syncthreads_count(bool value) {
  return geodiff::Block::Current()->Count(value);
}
inline unsigned __ballot_sync(unsigned lanes, bool value) {
  const uint32_t* values = geodiff::Block::Current()->Exchange(lanes, value);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(values[i]) << i;
  return bits;
}
template <typename T>
T geodiff_shuffle(unsigned lanes, T value, unsigned from) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = geodiff::Block::Current()->Exchange(lanes, bits)[from % 32];
  std::memcpy(&value, &bits, 4);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int offset) {
  return geodiff_shuffle(lanes, value, threadIdx.x ^ offset);
}
template <typename T>
T __shfl_sync(unsigned lanes, T value, int lane) {
  return geodiff_shuffle(lanes, value, lane);
}
template <typename T>
T __shfl_up_sync(unsigned lanes, T value, int offset) {
  const int lane = threadIdx.x % 32;
  return geodiff_shuffle(lanes, value, lane >= offset ? lane - offset : lane);
}
template <typename T>
T atomicMin(T* to, T value) {
  const T old = *to;
  *to = value < old ? value : old;
  return old;
}
template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to += value;
  return old;
}

#endif  // GEODIFF_JAX_KERNELS_DEVICE_ON_HOST_H_
