// Leading axes of operands: how vmap reaches a kernel.

#ifndef GEODIFF_JAX_KERNELS_BATCH_H_
#define GEODIFF_JAX_KERNELS_BATCH_H_

#include <cstddef>
#include <cstdint>

#include "host_device.h"
#include "xla/ffi/api/ffi.h"

namespace geodiff {

using Dimensions = xla::ffi::Span<const int64_t>;

inline int64_t Product(Dimensions dimensions) {
  int64_t product = 1;
  for (const int64_t size : dimensions) product *= size;
  return product;
}

// Whether an operand of items with `inner` axes has the leading axes of a batch, or 1.
inline bool Broadcasts(Dimensions operand, Dimensions batch, size_t inner) {
  if (operand.size() != batch.size() + inner) return false;
  for (size_t i = 0; i < batch.size(); ++i) {
    if (operand[i] != 1 && operand[i] != batch[i]) return false;
  }
  return true;
}

// Where number `index` of a batch lies in an operand, in elements. The last `inner`
// axes are one item's; leading axes are the batch's or 1 (broadcast), which is what
// jax.ffi's vmap_method="expand_dims" hands over.
inline int64_t BroadcastOffset(int64_t index, Dimensions batch, Dimensions operand,
                               size_t inner) {
  int64_t stride = 1;
  for (size_t i = operand.size() - inner; i < operand.size(); ++i) stride *= operand[i];
  int64_t offset = 0;
  for (size_t axis = operand.size() - inner; axis-- > 0;) {
    if (operand[axis] != 1) offset += index % batch[axis] * stride;
    index /= batch[axis];
    stride *= operand[axis];
  }
  return offset;
}

constexpr int kMaxBatchAxes = 4;  // Of device kernels: vmaps inside each other.

// The same as BroadcastOffset for device code, which gets it by value.
template <typename T>
struct Batched {
  const T* data = nullptr;
  int64_t sizes[kMaxBatchAxes], strides[kMaxBatchAxes];
  int axes = 0;

  Batched() = default;
  Batched(const T* data, Dimensions batch, Dimensions operand, size_t inner)
      : data(data), axes(static_cast<int>(operand.size() - inner)) {
    int64_t stride = Product(operand.last(inner));
    for (int axis = axes; axis-- > 0;) {
      sizes[axis] = batch[axis];
      strides[axis] = operand[axis] == 1 ? 0 : stride;
      stride *= operand[axis];
    }
  }

  GEODIFF_HD const T* At(int64_t index) const {
    int64_t offset = 0;
    for (int axis = axes; axis-- > 0;) {
      offset += index % sizes[axis] * strides[axis];
      index /= sizes[axis];
    }
    return data + offset;
  }
};

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_BATCH_H_
