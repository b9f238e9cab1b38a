// Gaussian splatting on CPUs: XLA handlers of the forward pass and its adjoint.
//
// The adjoint projects and bins again rather than keep lists of unknown length.
// Every pair (Gaussian, tile) leaves its share of the gradient in a slot of its own
// and a Gaussian adds up its slots in tile order: no atomics, and the same bits for
// any number of threads.

#include <vector>

#include "splat_operands.h"
#include "splat_tiles.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

struct Workspace {
  Bins bins;
  Scratch<float> shares, d_backgrounds;
  Scratch<double> d_views;
  std::vector<TileScratch> tiles;  // Per worker.
};

Pool<Workspace>& Workspaces() {
  static auto* pool = new Pool<Workspace>;  // Never destroyed: threads may outlive us.
  return *pool;
}

// Gradients of one set of Gaussians, added to; and of one camera and its offsets.
struct Gradients {
  float *means, *quaternions, *scales, *opacities, *features;
  float *camera, *intrinsics, *background;
  float* offsets;  // Null where nobody asks.
};

void Forward(Parallel& parallel, const Scene& scene, Workspace& work, float* image,
             float* alpha, float* depth, bool* visible) {
  FillBins(parallel, scene, &work.bins);
  for (int64_t i = 0; i < scene.num_gaussians; ++i) visible[i] = work.bins.Visible(i);
  StageClock clock;
  parallel.For(scene.tiles_x() * scene.tiles_y(), [&](int64_t i, int64_t worker) {
    ForwardTile(Tile(scene, work.bins, i, &work.tiles[worker]), image, alpha, depth);
  });
  clock.Lap(kBlend);
}

constexpr int kViewEntries = 16;  // Rotation, translation, intrinsics.

// Sums the lanes of a chunk's view gradient in (3, 4) order, then fx, fy, cx, cy.
void StoreViewGradient(const View<F>& d, double* out) {
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) out[4 * i + j] = SumLanes(d.rotation[3 * i + j]);
    out[4 * i + 3] = SumLanes(d.translation[i]);
  }
  const F intrinsics[4] = {d.fx, d.fy, d.cx, d.cy};
  for (int i = 0; i < 4; ++i) out[12 + i] = SumLanes(intrinsics[i]);
}

// Adds up a Gaussian's shares; features go straight to the result.
void GatherShares(const Bins& bins, const float* shares, int64_t columns, int64_t i,
                  int64_t channels, float* d_features, float* sums) {
  std::fill(sums, sums + kMoments + 1, 0.0f);
  for (uint32_t slot = bins.slots[i]; slot < bins.slots[i + 1]; ++slot) {
    const float* share = shares + slot * columns;
    for (int k = 0; k < kMoments; ++k) sums[k] += share[k];
    for (int64_t c = 0; c < channels; ++c) d_features[c] += share[kMoments + c];
    if (columns > kMoments + channels) sums[kMoments] += share[columns - 1];
  }
}

// Gradient of Gaussians [begin, end), and their part of the camera's.
void BackwardChunk(const Scene& scene, const View<F>& view, const Bins& bins,
                   const float* shares, int64_t columns, int64_t begin, int64_t end,
                   const Gradients& out, double* d_view_out) {
  const F zero = Set(0.0f);
  View<F> total;
  F* const total_fields = reinterpret_cast<F*>(&total);
  for (size_t k = 0; k < sizeof(total) / sizeof(F); ++k) total_fields[k] = zero;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - first));
    float sums[kMoments + 1][kLanes] = {}, visible[kLanes] = {};
    for (int l = 0; l < lanes; ++l) {
      const int64_t i = first + l;
      if (!bins.Visible(i)) continue;
      visible[l] = 1.0f;
      float sum[kMoments + 1];
      GatherShares(bins, shares, columns, i, scene.num_channels,
                   out.features + i * scene.num_channels, sum);
      for (int k = 0; k <= kMoments; ++k) sums[k][l] = sum[k];
    }
    const Mask seen = Less(zero, Load(visible));
    if (Bits(seen) == 0) continue;
    const Gaussian<F> g = LoadGaussians(scene, first, end);
    Projection<F> projection;
    const Splat<F> splat = Project(g, view, scene.antialiased, &projection);
    Splat<F> d;
    d.x = Load(sums[0]);
    d.y = Load(sums[1]);
    d.a = Load(sums[2]);
    d.b = Load(sums[3]);
    d.c = Load(sums[4]);
    d.opacity = Load(sums[5]);
    d.z = Load(sums[6]);
    View<F> d_view;
    F* const d_fields = reinterpret_cast<F*>(&d_view);
    for (size_t k = 0; k < sizeof(d_view) / sizeof(F); ++k) d_fields[k] = zero;
    const Gaussian<F> d_g =
        ProjectAdjoint(g, view, scene.antialiased, projection, splat, d, &d_view);
    for (size_t k = 0; k < sizeof(d_view) / sizeof(F); ++k) {
      total_fields[k] = total_fields[k] + Select(seen, d_fields[k], zero);
    }
    float lane[11][kLanes];
    for (int k = 0; k < 3; ++k) Store(lane[k], d_g.mean[k]);
    for (int k = 0; k < 4; ++k) Store(lane[3 + k], d_g.quaternion[k]);
    for (int k = 0; k < 3; ++k) Store(lane[7 + k], d_g.scale[k]);
    Store(lane[10], d_g.opacity);
    for (int l = 0; l < lanes; ++l) {
      if (visible[l] == 0.0f) continue;
      const int64_t i = first + l;
      for (int k = 0; k < 3; ++k) out.means[3 * i + k] += lane[k][l];
      for (int k = 0; k < 4; ++k) out.quaternions[4 * i + k] += lane[3 + k][l];
      for (int k = 0; k < 3; ++k) out.scales[3 * i + k] += lane[7 + k][l];
      out.opacities[i] += lane[10][l];
      for (int k = 0; k < 2 && out.offsets != nullptr; ++k) {
        out.offsets[2 * i + k] = sums[k][l];
      }
    }
  }
  StoreViewGradient(total, d_view_out);
}

void Backward(Parallel& parallel, const Scene& scene, const Cotangents& cotangents,
              Workspace& work, const Gradients& out) {
  FillBins(parallel, scene, &work.bins);
  StageClock clock;
  const Bins& bins = work.bins;
  const int64_t n = scene.num_gaussians, channels = scene.num_channels;
  const int64_t columns = cotangents.Columns(channels);
  const int64_t num_tiles = scene.tiles_x() * scene.tiles_y();
  float* shares = work.shares.Reserve(size_t{bins.slots[n]} * columns);
  float* d_backgrounds = work.d_backgrounds.Reserve(num_tiles * channels);
  parallel.For(num_tiles, [&](int64_t i, int64_t worker) {
    float* d_background = d_backgrounds + i * channels;
    std::fill(d_background, d_background + channels, 0.0f);
    BackwardTile(Tile(scene, bins, i, &work.tiles[worker]), cotangents, shares,
                 d_background);
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0;
    for (int64_t i = 0; i < num_tiles; ++i) sum += d_backgrounds[i * channels + c];
    out.background[c] += static_cast<float>(sum);
  }
  clock.Lap(kBlendAdjoint);
  const int64_t num_chunks = (n + kChunk - 1) / kChunk;
  double* d_views = work.d_views.Reserve(num_chunks * kViewEntries);
  const View<F> view =
      MakeView(scene.camera, scene.intrinsics, scene.width, scene.height);
  parallel.For(num_chunks, [&](int64_t chunk, int64_t) {
    const int64_t begin = chunk * kChunk;
    BackwardChunk(scene, view, bins, shares, columns, begin,
                  std::min(n, begin + kChunk), out, d_views + chunk * kViewEntries);
  });
  for (int k = 0; k < kViewEntries; ++k) {
    double sum = 0.0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      sum += d_views[chunk * kViewEntries + k];
    }
    (k < 12 ? out.camera[k] : out.intrinsics[k - 12]) = static_cast<float>(sum);
  }
  clock.Lap(kProjectAdjoint);
}

// Set of Gaussians number `set` of a batch with the given leading axes, before one of
// its cameras.
Scene Select(const SplatOperands& operands, int64_t set, int64_t camera, Dimensions lead,
             int64_t height, int64_t width, float near, bool antialiased) {
  const auto at = [&](const Array& array, size_t inner) {
    return array.typed_data() + BroadcastOffset(set, lead, array.dimensions(), inner);
  };
  const size_t rank = operands.features.dimensions().size();
  Scene scene;
  scene.means = at(operands.means, 2);
  scene.quaternions = at(operands.quaternions, 2);
  scene.scales = at(operands.scales, 2);
  scene.opacities = at(operands.opacities, 1);
  scene.features = at(operands.features, 2);
  scene.camera = at(operands.cameras, 3) + camera * 12;
  scene.intrinsics = at(operands.intrinsics, 2) + camera * 4;
  scene.background = at(operands.background, 1);
  scene.num_gaussians = operands.features.dimensions()[rank - 2];
  scene.num_channels = operands.features.dimensions()[rank - 1];
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
  const int64_t num_channels = image->dimensions().back();
  if (!operands.Valid(lead, num_cameras)) return Misshapen();
  const bool has_depth = depth->element_count() == alpha->element_count();
  std::fill_n(visible->typed_data(), visible->element_count(), false);
  Parallel parallel(pool);
  Pool<Workspace>::Lease lease(Workspaces());
  Workspace& work = *lease;
  if (work.tiles.size() < static_cast<size_t>(parallel.num_workers())) {
    work.tiles = std::vector<TileScratch>(parallel.num_workers());
  }
  const int64_t num_images = Product(shape) == 0 ? 0 : Product(shape) / pixels;
  try {
    for (int64_t i = 0; i < num_images; ++i) {
      const Scene scene = Select(operands, i / num_cameras, i % num_cameras,
                                 shape.first(lead), height, width, near, antialiased);
      Forward(parallel, scene, work, image->typed_data() + i * pixels * num_channels,
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
  if (!operands.Valid(lead, num_cameras)) return Misshapen();
  const Dimensions results = d_means->dimensions().first(lead);
  const bool has_depth = d_depth.element_count() == d_alpha.element_count();
  for (Result* result : {&d_means, &d_quaternions, &d_scales, &d_opacities, &d_features,
                         &d_cameras, &d_intrinsics, &d_background, &d_offsets}) {
    std::fill_n((*result)->typed_data(), (*result)->element_count(), 0.0f);
  }
  Parallel parallel(pool);
  Pool<Workspace>::Lease lease(Workspaces());
  Workspace& work = *lease;
  if (work.tiles.size() < static_cast<size_t>(parallel.num_workers())) {
    work.tiles = std::vector<TileScratch>(parallel.num_workers());
  }
  const int64_t num_sets = pixels == 0 ? 0 : Product(results);
  const auto at = [&](const Array& array, int64_t set, size_t inner) {
    return array.typed_data() + BroadcastOffset(set, results, array.dimensions(), inner);
  };
  try {
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
        Backward(parallel, scene, cotangents, work, out);
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
