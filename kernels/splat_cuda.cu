// Gaussian splatting on GPUs: XLA handlers of the forward pass and its adjoint.
//
// Nothing is allocated and nothing waits: lists have a fixed capacity, all memory comes
// as results from XLA, and what the forward pass asked for is a result, not an error.

#include "splat_cuda_gradients.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::U32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using WordsOut = ffi::ResultBuffer<ffi::U32>;
using CountsOut = ffi::ResultBuffer<ffi::S32>;
using BytesOut = ffi::ResultBuffer<ffi::U8>;

SplatProblem Problem(const SplatOperands& operands, Dimensions lead, int64_t num_cameras,
                     int64_t height, int64_t width, bool has_depth, float near,
                     bool antialiased) {
  const auto batched = [&](const Floats& array, size_t inner) {
    return Batched<float>(array.typed_data(), lead, array.dimensions(), inner);
  };
  SplatProblem p;
  operands.Describe(&p, batched);
  p.cameras = batched(operands.cameras, 3);
  p.has_offsets = operands.has_offsets();
  if (p.has_offsets) p.offsets = batched(operands.offsets, 3);
  p.num_sets = Product(lead);
  p.num_cameras = num_cameras;
  p.height = height;
  p.width = width;
  p.has_depth = has_depth;
  p.near = near;
  p.antialiased = antialiased;
  return p;
}

// Numbers of pairs, slots and tiles must fit 31 bits, sets a grid's second axis.
bool TooLarge(const SplatProblem& p, int64_t capacity) {
  const int64_t limit = 0x7fffffff;
  return p.num_pairs() > limit || p.num_tiles() >= limit || capacity > limit ||
         p.num_views() * p.height * p.width > limit || p.num_sets > 65535;
}

ffi::Error OutOfRange() {
  return ffi::Error::InvalidArgument(
      "splat: more than 2^31 pairs of views and Gaussians, tiles, pixels or slots in one "
      "call; render fewer views at a time");
}

ffi::Error SplatForward(Stream stream, Floats means, Floats quaternions, Floats scales,
                        Floats opacities, Floats features, Floats cameras,
                        Floats intrinsics, Floats background, Floats offsets,
                        FloatsOut image, FloatsOut alpha, FloatsOut depth,
                        CountsOut num_wanted, FloatsOut records, WordsOut slots,
                        WordsOut owners, WordsOut entries, WordsOut tile_begin,
                        WordsOut last, FloatsOut transmittance, BytesOut scratch,
                        float near, bool antialiased) {
  const SplatOperands operands = {means,   quaternions, scales,     opacities, features,
                                  cameras, intrinsics,  background, offsets};
  const Dimensions shape = alpha->dimensions();
  if (shape.size() < 3) return Misshapen();
  const size_t lead = shape.size() - 3;
  if (lead > kMaxBatchAxes || !operands.Valid(shape.first(lead), shape[lead])) {
    return Misshapen();
  }
  const bool has_depth = depth->element_count() == alpha->element_count();
  const SplatProblem p = Problem(operands, shape.first(lead), shape[lead], shape[lead + 1],
                                 shape[lead + 2], has_depth, near, antialiased);
  const int64_t capacity = entries->element_count();
  if (TooLarge(p, capacity)) return OutOfRange();
  if (p.num_sets == 0) return ffi::Error::Success();
  const int64_t pixels = p.num_views() * p.height * p.width;
  const ListScratch list_scratch(scratch->untyped_data(), p.num_pairs(), capacity);
  const auto holds = [](auto& result, int64_t size) {
    return static_cast<int64_t>(result->element_count()) >= size;
  };
  if (capacity < 1 || !holds(num_wanted, p.num_sets) ||
      !holds(records, p.num_pairs() * 8) || !holds(slots, p.num_pairs() * 2) ||
      !holds(owners, capacity) || !holds(tile_begin, p.num_tiles() + 1) ||
      !holds(last, pixels) || !holds(transmittance, pixels) ||
      !holds(scratch, list_scratch.bytes)) {
    return Misshapen();
  }
  const SplatLists lists = {reinterpret_cast<Record*>(records->typed_data()),
                            slots->typed_data(),
                            owners->typed_data(),
                            entries->typed_data(),
                            tile_begin->typed_data(),
                            last->typed_data(),
                            transmittance->typed_data(),
                            capacity};
  ffi::Error error =
      FillLists(p, lists, list_scratch, num_wanted->typed_data(), stream);
  if (error.failure()) return error;
  WithColumns(p.num_columns(), [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    const int64_t groups = Most(int64_t{1}, (p.num_columns() + kColumns - 1) / kColumns);
    Launch(BlendTiles<kColumns>,
           dim3(static_cast<unsigned>(p.num_tiles()), static_cast<unsigned>(groups)),
           kThreads, stream, p, lists, image->typed_data(), alpha->typed_data(),
           has_depth ? depth->typed_data() : nullptr);
  });
  return LastError();
}

ffi::Error SplatBackward(Stream stream, Floats means, Floats quaternions, Floats scales,
                         Floats opacities, Floats features, Floats cameras,
                         Floats intrinsics, Floats background, Floats offsets,
                         Floats records, Words slots, Words owners, Words entries,
                         Words tile_begin, Words last, Floats transmittance,
                         Floats d_image, Floats d_alpha, Floats d_depth,
                         FloatsOut d_means, FloatsOut d_quaternions, FloatsOut d_scales,
                         FloatsOut d_opacities, FloatsOut d_features,
                         FloatsOut d_cameras, FloatsOut d_intrinsics,
                         FloatsOut d_background, FloatsOut d_offsets, BytesOut scratch,
                         float near, bool antialiased) {
  const SplatOperands operands = {means,   quaternions, scales,     opacities, features,
                                  cameras, intrinsics,  background, offsets};
  const Dimensions shape = d_alpha.dimensions();
  if (shape.size() < 3) return Misshapen();
  const size_t lead = shape.size() - 3;
  const int64_t num_cameras = shape[lead];
  if (lead > kMaxBatchAxes || d_means->dimensions().size() != lead + 2) {
    return Misshapen();
  }
  const Dimensions sets = d_means->dimensions().first(lead);
  if (!operands.Valid(sets, num_cameras) || !Broadcasts(shape, sets, 3) ||
      !Broadcasts(last.dimensions(), sets, 3)) {
    return Misshapen();
  }
  const Dimensions list_sets = last.dimensions().first(lead);
  const bool has_depth = d_depth.element_count() == d_alpha.element_count();
  SplatProblem p = Problem(operands, sets, num_cameras, shape[lead + 1], shape[lead + 2],
                           has_depth, near, antialiased);
  const int64_t num_sets = p.num_sets, capacity = entries.element_count();
  if (TooLarge(p, capacity)) return OutOfRange();
  // The lists are those of one forward call, whole; or of some axes of the batch only,
  // and then sets take turns.
  const bool together = Product(list_sets) == num_sets;
  if (!together) p.num_sets = 1;
  const AdjointScratch adjoint_scratch(scratch->untyped_data(), p, capacity);
  if (static_cast<int64_t>(scratch->size_bytes()) < adjoint_scratch.bytes) {
    return Misshapen();
  }
  const SplatLists lists = {
      reinterpret_cast<Record*>(records.typed_data()), slots.typed_data(),
      owners.typed_data(),     entries.typed_data(),   tile_begin.typed_data(),
      last.typed_data(),       transmittance.typed_data(), capacity};
  const auto batched = [&](const Floats& array, size_t inner) {
    return Batched<float>(array.typed_data(), sets, array.dimensions(), inner);
  };
  const SplatCotangents cotangents = {
      batched(d_image, 4), batched(d_alpha, 3),
      has_depth ? batched(d_depth, 3) : Batched<float>()};
  const SplatGradients out = {d_means->typed_data(),     d_quaternions->typed_data(),
                              d_scales->typed_data(),    d_opacities->typed_data(),
                              d_features->typed_data(),  d_cameras->typed_data(),
                              d_intrinsics->typed_data(), d_background->typed_data(),
                              d_offsets->typed_data()};
  const int64_t turns = num_sets == 0 ? 0 : together ? 1 : num_sets;
  for (int64_t turn = 0; turn < turns; ++turn) {
    // A list set's number, from its batch's axes.
    const AdjointRange range = {turn, BroadcastOffset(turn, sets, list_sets, 0)};
    FillGradients(p, lists, range, cotangents, adjoint_scratch, out, stream);
  }
  return LastError();
}

auto BindOperands() {
  return SplatOperands::Bind(ffi::Ffi::Bind().Ctx<StreamContext>());
}

}  // namespace
}  // namespace geodiff

#pragma GCC visibility push(default)
GEODIFF_DEVICE_HANDLER(splat_forward_cuda, geodiff::SplatForward,
                       geodiff::BindOperands()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Words>()
                           .Ret<geodiff::Words>()
                           .Ret<geodiff::Words>()
                           .Ret<geodiff::Words>()
                           .Ret<geodiff::Words>()
                           .Ret<geodiff::Floats>()
                           .Ret<xla::ffi::Buffer<xla::ffi::U8>>()
                           .Attr<float>("near")
                           .Attr<bool>("antialiased"));
GEODIFF_DEVICE_HANDLER(splat_backward_cuda, geodiff::SplatBackward,
                       geodiff::BindOperands()
                           .Arg<geodiff::Floats>()
                           .Arg<geodiff::Words>()
                           .Arg<geodiff::Words>()
                           .Arg<geodiff::Words>()
                           .Arg<geodiff::Words>()
                           .Arg<geodiff::Words>()
                           .Arg<geodiff::Floats>()
                           .Arg<geodiff::Floats>()
                           .Arg<geodiff::Floats>()
                           .Arg<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<geodiff::Floats>()
                           .Ret<xla::ffi::Buffer<xla::ffi::U8>>()
                           .Attr<float>("near")
                           .Attr<bool>("antialiased"));
#pragma GCC visibility pop
