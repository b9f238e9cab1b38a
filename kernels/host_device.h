// Marks arithmetic that every kernel shares, whatever it runs on.

#ifndef GEODIFF_JAX_KERNELS_HOST_DEVICE_H_
#define GEODIFF_JAX_KERNELS_HOST_DEVICE_H_

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GEODIFF_HD __host__ __device__ inline
#else
#define GEODIFF_HD inline
#endif

namespace geodiff {

// std::min and std::max, which CUDA lacks: the first operand where either is NaN.
template <typename T>
GEODIFF_HD T Least(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
GEODIFF_HD T Most(T a, T b) {
  return a < b ? b : a;
}

GEODIFF_HD uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_HOST_DEVICE_H_
