// Sorting and prefix sums on the device: cub's, or the standard library's on hosts.
//
// Neither waits for the device. Scratch must hold SortScratch(size) bytes.

#ifndef GEODIFF_JAX_KERNELS_DEVICE_SORT_H_
#define GEODIFF_JAX_KERNELS_DEVICE_SORT_H_

#include "device.h"
#include "host_device.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#else
#include <algorithm>
#include <numeric>
#include <vector>
#endif

namespace geodiff {

// Enough for cub's digit counters: four bytes for each of 256 digits per block of at
// least 2048 keys (of 8064 on the GPUs we know).
inline int64_t SortScratch(int64_t size) { return size / 2 + 65536; }

// A pair of buffers that a sort moves values between.
struct Buffers {
  uint32_t *current, *other;
};

// Counts, read in an order; iterators of their own for cub.
struct CountsInOrder {
  using value_type = uint32_t;
  using reference = uint32_t;
  using pointer = const uint32_t*;
  using difference_type = int64_t;
  using iterator_category = std::random_access_iterator_tag;

  const uint32_t* slots;  // (n, 2): the second is the count.
  const uint32_t* order;

  GEODIFF_HD uint32_t operator[](int64_t i) const { return slots[2 * order[i] + 1]; }
  GEODIFF_HD uint32_t operator*() const { return (*this)[0]; }
  GEODIFF_HD CountsInOrder operator+(int64_t i) const { return {slots, order + i}; }
};

// Sums that stay at 2^32 - 1 instead of wrapping around.
struct SaturatingSum {
  GEODIFF_HD uint32_t operator()(uint32_t a, uint32_t b) const {
    return a > 0xffffffffu - b ? 0xffffffffu : a + b;
  }
};

#if defined(__CUDACC__)

// Stable, by the lowest `bits` bits; leaves the results in the buffers' `current`.
inline xla::ffi::Error SortPairs(void* scratch, int64_t scratch_bytes, int64_t size,
                                 int bits, Buffers* keys, Buffers* values,
                                 Stream stream) {
  cub::DoubleBuffer<uint32_t> k(keys->current, keys->other);
  cub::DoubleBuffer<uint32_t> v(values->current, values->other);
  const int count = static_cast<int>(size);
  size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, k, v, count, 0, bits, stream);
  if (bytes > static_cast<size_t>(scratch_bytes)) {
    return xla::ffi::Error::Internal("splat: cub wants more scratch for sorting");
  }
  cub::DeviceRadixSort::SortPairs(scratch, bytes, k, v, count, 0, bits, stream);
  *keys = {k.Current(), k.Alternate()};
  *values = {v.Current(), v.Alternate()};
  return LastError();
}

inline xla::ffi::Error SumCounts(void* scratch, int64_t scratch_bytes, int64_t size,
                                 CountsInOrder counts, uint32_t* sums, Stream stream) {
  const int count = static_cast<int>(size);
  size_t bytes = 0;
  cub::DeviceScan::InclusiveScan(nullptr, bytes, counts, sums, SaturatingSum(), count,
                                 stream);
  if (bytes > static_cast<size_t>(scratch_bytes)) {
    return xla::ffi::Error::Internal("splat: cub wants more scratch for sums");
  }
  cub::DeviceScan::InclusiveScan(scratch, bytes, counts, sums, SaturatingSum(), count,
                                 stream);
  return LastError();
}

#else

inline xla::ffi::Error SortPairs(void*, int64_t, int64_t size, int bits, Buffers* keys,
                                 Buffers* values, Stream) {
  std::vector<uint32_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return (keys->current[a] & mask) < (keys->current[b] & mask);
  });
  for (int64_t i = 0; i < size; ++i) {
    keys->other[i] = keys->current[order[i]];
    values->other[i] = values->current[order[i]];
  }
  std::swap(keys->current, keys->other);
  std::swap(values->current, values->other);
  return LastError();
}

inline xla::ffi::Error SumCounts(void*, int64_t, int64_t size, CountsInOrder counts,
                                 uint32_t* sums, Stream) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sums[i] = sum = SaturatingSum()(sum, counts[i]);
  return LastError();
}

#endif

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_DEVICE_SORT_H_
