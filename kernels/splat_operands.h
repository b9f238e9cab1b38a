// What the handlers of splatting take, on CPUs and GPUs alike.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_OPERANDS_H_
#define GEODIFF_JAX_KERNELS_SPLAT_OPERANDS_H_

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "batch.h"

namespace geodiff {

// Operands in the order of kernels/README.md, with leading axes.
struct SplatOperands {
  using Array = xla::ffi::Buffer<xla::ffi::F32>;
  Array means, quaternions, scales, opacities, features, cameras, intrinsics, background,
      offsets;

  // Whether all shapes fit together, behind the leading axes of `batch`.
  bool Valid(Dimensions batch, int64_t num_cameras) const {
    const size_t lead = batch.size();
    const auto fits = [&](const Array& array, std::initializer_list<int64_t> inner) {
      const Dimensions d = array.dimensions();
      return Broadcasts(d, batch, inner.size()) &&
             std::equal(inner.begin(), inner.end(), d.begin() + lead);
    };
    if (!Broadcasts(features.dimensions(), batch, 2)) return false;
    const int64_t n = features.dimensions()[lead], c = features.dimensions()[lead + 1];
    return n < UINT32_MAX && fits(means, {n, 3}) && fits(quaternions, {n, 4}) &&
           fits(scales, {n, 3}) && fits(opacities, {n}) && fits(background, {c}) &&
           fits(cameras, {num_cameras, 3, 4}) && fits(intrinsics, {num_cameras, 4}) &&
           (fits(offsets, {num_cameras, n, 2}) || fits(offsets, {num_cameras, 0, 2}));
  }

  // Offsets nobody asked for are empty.
  bool has_offsets() const { return offsets.element_count() > 0; }

  // Fills the fields that a scene on CPUs and a problem on GPUs have in common.
  // at(array, inner) finds the items, of `inner` axes, of one set or of all.
  template <typename Fields, typename At>
  void Describe(Fields* fields, const At& at) const {
    const size_t rank = features.dimensions().size();
    fields->means = at(means, 2);
    fields->quaternions = at(quaternions, 2);
    fields->scales = at(scales, 2);
    fields->opacities = at(opacities, 1);
    fields->features = at(features, 2);
    fields->intrinsics = at(intrinsics, 2);
    fields->background = at(background, 1);
    fields->num_gaussians = features.dimensions()[rank - 2];
    fields->num_channels = features.dimensions()[rank - 1];
  }

  // Binds the operands, after `binding`'s contexts.
  template <typename Binding>
  static auto Bind(Binding binding) {
    return std::move(binding)
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>()
        .template Arg<Array>();
  }
};

inline xla::ffi::Error Misshapen() {
  return xla::ffi::Error::InvalidArgument(
      "splat: operands do not fit; see kernels/README.md");
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_OPERANDS_H_
