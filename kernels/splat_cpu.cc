// Gaussian splatting on CPUs: XLA handlers of the forward pass and its adjoint.

#include "splat_operands.h"
#include "splat_passes.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

Pool<Workspace>& Workspaces() {
  static auto* pool = new Pool<Workspace>;  // Never destroyed: threads may outlive us.
  return *pool;
}

// Set of Gaussians number `set` of a batch with the given leading axes, before one of
// its cameras.
Scene Select(const SplatOperands& operands, int64_t set, int64_t camera, Dimensions lead,
             int64_t height, int64_t width, float near, bool antialiased) {
  const auto at = [&](const Array& array, size_t inner) {
    return array.typed_data() + BroadcastOffset(set, lead, array.dimensions(), inner);
  };
  Scene scene;
  operands.Describe(&scene, at);
  scene.intrinsics += camera * 4;
  scene.camera = at(operands.cameras, 3) + camera * 12;
  scene.offsets = operands.has_offsets()
                      ? at(operands.offsets, 3) + camera * scene.num_gaussians * 2
                      : nullptr;
  scene.height = height;
  scene.width = width;
  scene.near = near;
  scene.antialiased = antialiased;
  return scene;
}

ffi::Error OutOfMemory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    "splat: the Gaussians cover more tiles than memory can list");
}

ffi::Error SplatForward(ffi::ThreadPool pool, Array means, Array quaternions,
                        Array scales, Array opacities, Array features, Array cameras,
                        Array intrinsics, Array background, Array offsets, Result image,
                        Result alpha, Result depth,
                        ffi::ResultBuffer<ffi::PRED> visible, float near,
                        bool antialiased) {
  const SplatOperands operands = {means,   quaternions, scales,     opacities, features,
                                  cameras, intrinsics,  background, offsets};
  const Dimensions shape = alpha->dimensions();
  if (shape.size() < 3) return Misshapen();
  const size_t lead = shape.size() - 3;
  const int64_t num_cameras = shape[lead], height = shape[lead + 1];
  const int64_t width = shape[lead + 2], pixels = height * width;
  if (!operands.Valid(shape.first(lead), num_cameras)) return Misshapen();
  const int64_t num_gaussians = means.dimensions()[lead];
  const int64_t num_channels = features.dimensions().back();
  const auto holds = [](auto& result, int64_t size) {
    return static_cast<int64_t>(result->element_count()) == size;
  };
  if (!holds(image, Product(shape) * num_channels) ||
      !holds(visible, Product(shape.first(lead + 1)) * num_gaussians)) {
    return Misshapen();
  }
  const bool has_depth = depth->element_count() == alpha->element_count();
  std::fill_n(visible->typed_data(), visible->element_count(), false);
  const int64_t num_images = Product(shape) == 0 ? 0 : Product(shape) / pixels;
  try {
    Parallel parallel(pool);
    Pool<Workspace>::Lease lease(Workspaces());
    for (int64_t i = 0; i < num_images; ++i) {
      const Scene scene = Select(operands, i / num_cameras, i % num_cameras,
                                 shape.first(lead), height, width, near, antialiased);
      Forward(parallel, scene, *lease, image->typed_data() + i * pixels * num_channels,
              alpha->typed_data() + i * pixels,
              has_depth ? depth->typed_data() + i * pixels : nullptr,
              visible->typed_data() + i * scene.num_gaussians);
    }
  } catch (const std::bad_alloc&) {
    return OutOfMemory();
  }
  return ffi::Error::Success();
}

ffi::Error SplatBackward(ffi::ThreadPool pool, Array means, Array quaternions,
                         Array scales, Array opacities, Array features, Array cameras,
                         Array intrinsics, Array background, Array offsets,
                         Array d_image, Array d_alpha, Array d_depth, Result d_means,
                         Result d_quaternions, Result d_scales, Result d_opacities,
                         Result d_features, Result d_cameras, Result d_intrinsics,
                         Result d_background, Result d_offsets, float near,
                         bool antialiased) {
  const SplatOperands operands = {means,   quaternions, scales,     opacities, features,
                                  cameras, intrinsics,  background, offsets};
  const Dimensions shape = d_alpha.dimensions();
  if (shape.size() < 3) return Misshapen();
  const size_t lead = shape.size() - 3;
  const int64_t num_cameras = shape[lead], height = shape[lead + 1];
  const int64_t width = shape[lead + 2], pixels = height * width;
  if (d_means->dimensions().size() != lead + 2) return Misshapen();
  const Dimensions results = d_means->dimensions().first(lead);
  if (!operands.Valid(results, num_cameras) || !Broadcasts(shape, results, 3)) {
    return Misshapen();
  }
  const bool has_depth = d_depth.element_count() == d_alpha.element_count();
  for (Result* result : {&d_means, &d_quaternions, &d_scales, &d_opacities, &d_features,
                         &d_cameras, &d_intrinsics, &d_background, &d_offsets}) {
    std::fill_n((*result)->typed_data(), (*result)->element_count(), 0.0f);
  }
  const int64_t num_sets = pixels == 0 ? 0 : Product(results);
  const auto at = [&](const Array& array, int64_t set, size_t inner) {
    return array.typed_data() + BroadcastOffset(set, results, array.dimensions(), inner);
  };
  try {
    Parallel parallel(pool);
    Pool<Workspace>::Lease lease(Workspaces());
    for (int64_t set = 0; set < num_sets; ++set) {
      for (int64_t camera = 0; camera < num_cameras; ++camera) {
        const Scene scene = Select(operands, set, camera, results, height, width, near,
                                   antialiased);
        const int64_t n = scene.num_gaussians, c = scene.num_channels;
        const Cotangents cotangents = {
            at(d_image, set, 4) + camera * pixels * c,
            at(d_alpha, set, 3) + camera * pixels,
            has_depth ? at(d_depth, set, 3) + camera * pixels : nullptr};
        const int64_t view = set * num_cameras + camera;
        const Gradients out = {d_means->typed_data() + set * n * 3,
                               d_quaternions->typed_data() + set * n * 4,
                               d_scales->typed_data() + set * n * 3,
                               d_opacities->typed_data() + set * n,
                               d_features->typed_data() + set * n * c,
                               d_cameras->typed_data() + view * 12,
                               d_intrinsics->typed_data() + view * 4,
                               d_background->typed_data() + set * c,
                               operands.has_offsets()
                                   ? d_offsets->typed_data() + view * n * 2
                                   : nullptr};
        Backward(parallel, scene, cotangents, *lease, out);
      }
    }
  } catch (const std::bad_alloc&) {
    return OutOfMemory();
  }
  return ffi::Error::Success();
}

auto BindOperands() {
  return SplatOperands::Bind(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());
}

}  // namespace
}  // namespace geodiff

#pragma GCC visibility push(default)
// Seconds by stage since the process began, in the order of stages.h.
extern "C" void splat_stage_seconds(double* seconds) {
  for (int i = 0; i < geodiff::kNumStages; ++i) {
    seconds[i] = 1e-9 * geodiff::stage_nanoseconds[i].load(std::memory_order_relaxed);
  }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(splat_forward, geodiff::SplatForward,
                              geodiff::BindOperands()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Attr<float>("near")
                                  .Attr<bool>("antialiased"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(splat_backward, geodiff::SplatBackward,
                              geodiff::BindOperands()
                                  .Arg<geodiff::Array>()
                                  .Arg<geodiff::Array>()
                                  .Arg<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Ret<geodiff::Array>()
                                  .Attr<float>("near")
                                  .Attr<bool>("antialiased"));
#pragma GCC visibility pop
