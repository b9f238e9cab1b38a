// What one source needs to run on GPUs and, for tests, on a host.
//
// nvcc compiles it for GPUs. Any other compiler gets the same few words of CUDA from
// device_on_host.h, which runs every thread of a block as a fiber.

#ifndef GEODIFF_JAX_KERNELS_DEVICE_H_
#define GEODIFF_JAX_KERNELS_DEVICE_H_

#define GEODIFF_SCALAR  // simd.h: one lane.

#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "xla/ffi/api/ffi.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

namespace geodiff {

using Stream = cudaStream_t;
using StreamContext = xla::ffi::PlatformStream<cudaStream_t>;

template <typename... Parameters, typename... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, Stream stream,
            Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  kernel<<<grid, threads, 0, stream>>>(arguments...);
}

inline void Copy(void* to, const void* from, size_t bytes, Stream stream) {
  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

inline void Fill(void* to, int byte, size_t bytes, Stream stream) {
  if (bytes > 0) cudaMemsetAsync(to, byte, bytes, stream);
}

// What went wrong since the last call; launches and copies report here.
inline xla::ffi::Error LastError() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return xla::ffi::Error::Success();
  return xla::ffi::Error::Internal(cudaGetErrorString(error));
}

__device__ inline float Exp(float x) { return __expf(x); }  // Within 8 ulp above -6.
__device__ inline int LowestBit(unsigned bits) { return __ffs(bits) - 1; }

}  // namespace geodiff

// Handlers neither wait for the device nor allocate: XLA may record them once and
// replay them (CUDA graphs).
#define GEODIFF_DEVICE_HANDLER(name, handler, binding) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, handler, binding, \
                                {xla::ffi::Traits::kCmdBufferCompatible})

#else
#include "device_on_host.h"
#define GEODIFF_DEVICE_HANDLER(name, handler, binding) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, handler, binding)
#endif

namespace geodiff {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kThreads = 256;  // Per block, of every kernel.
constexpr int kWarps = kThreads / kWarp;

inline unsigned BlocksFor(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

__device__ inline int64_t ThreadIndex() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// Sums kCount values over the lanes of a warp, all at once: at every step a lane hands
// half of its values over and keeps the other half, so that 10 values take 13 shuffles
// and not 50. Lane l returns the sum of values[SumColumn<kCount>(l)]; the order of
// additions is fixed. Destroys the values.
template <int kCount, int kOffset = kWarp / 2>
__device__ inline float WarpSums(float* values) {
  if constexpr (kOffset == 0) {
    return values[0];
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    const bool upper = threadIdx.x & kOffset;
    for (int i = 0; i < kHalf; ++i) {
      if (i + kHalf < kCount) {
        const float give = upper ? values[i] : values[i + kHalf];
        const float keep = upper ? values[i + kHalf] : values[i];
        values[i] = keep + __shfl_xor_sync(kAllLanes, give, kOffset);
      } else {
        values[i] += __shfl_xor_sync(kAllLanes, values[i], kOffset);
      }
    }
    return WarpSums<kHalf, kOffset / 2>(values);
  }
}

template <int kCount, int kOffset = kWarp / 2>
__device__ inline int SumColumn(int lane) {
  if constexpr (kOffset == 0) {
    return 0;
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    const int column = SumColumn<kHalf, kOffset / 2>(lane);
    return (lane & kOffset) && column + kHalf < kCount ? column + kHalf : column;
  }
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_DEVICE_H_
