// Both passes of splatting one view on CPUs.
//
// The adjoint projects and bins again rather than keep lists of unknown length.
// Every pair (Gaussian, tile) leaves its share of the gradient in a slot of its own
// and a Gaussian adds up its slots in tile order: no atomics, and the same bits for
// any number of threads.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_PASSES_H_
#define GEODIFF_JAX_KERNELS_SPLAT_PASSES_H_

#include <vector>

#include "splat_tiles.h"

namespace geodiff {

struct Workspace {
  Bins bins;
  Scratch<float> shares, d_backgrounds;
  Scratch<double> d_views;
  std::vector<TileScratch> tiles;  // Per worker.

  void ReserveTiles(const Parallel& parallel) {
    const auto workers = static_cast<size_t>(parallel.num_workers());
    if (tiles.size() < workers) tiles = std::vector<TileScratch>(workers);
  }
};

// Gradients of one set of Gaussians, added to; and of one camera and its offsets.
struct Gradients {
  float *means, *quaternions, *scales, *opacities, *features;
  float *camera, *intrinsics, *background;
  float* offsets;  // Null where nobody asks.
};

inline void Forward(Parallel& parallel, const Scene& scene, Workspace& work, float* image,
                    float* alpha, float* depth, bool* visible) {
  FillBins(parallel, scene, &work.bins);
  work.ReserveTiles(parallel);
  for (int64_t i = 0; i < scene.num_gaussians; ++i) visible[i] = work.bins.Visible(i);
  StageClock clock;
  parallel.For(scene.tiles_x() * scene.tiles_y(), [&](int64_t i, int64_t worker) {
    ForwardTile(Tile(scene, work.bins, i, &work.tiles[worker]), image, alpha, depth);
  });
  clock.Lap(kBlend);
}

constexpr int kViewEntries = 16;  // Rotation, translation, intrinsics.

// Sums the lanes of a chunk's view gradient in (3, 4) order, then fx, fy, cx, cy.
inline void StoreViewGradient(const View<F>& d, double* out) {
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) out[4 * i + j] = SumLanes(d.rotation[3 * i + j]);
    out[4 * i + 3] = SumLanes(d.translation[i]);
  }
  const F intrinsics[4] = {d.fx, d.fy, d.cx, d.cy};
  for (int i = 0; i < 4; ++i) out[12 + i] = SumLanes(intrinsics[i]);
}

// Adds up a Gaussian's shares; features go straight to the result.
inline void GatherShares(const Bins& bins, const float* shares, int64_t columns,
                         int64_t i, int64_t channels, float* d_features, float* sums) {
  std::fill(sums, sums + kMoments + 1, 0.0f);
  for (uint32_t slot = bins.slots[i]; slot < bins.slots[i + 1]; ++slot) {
    const float* share = shares + slot * columns;
    for (int k = 0; k < kMoments; ++k) sums[k] += share[k];
    for (int64_t c = 0; c < channels; ++c) d_features[c] += share[kMoments + c];
    if (columns > kMoments + channels) sums[kMoments] += share[columns - 1];
  }
}

// Gradient of Gaussians [begin, end), and their part of the camera's.
inline void BackwardChunk(const Scene& scene, const View<F>& view, const Bins& bins,
                          const float* shares, int64_t columns, int64_t begin,
                          int64_t end, const Gradients& out, double* d_view_out) {
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

inline void Backward(Parallel& parallel, const Scene& scene, const Cotangents& cotangents,
                     Workspace& work, const Gradients& out) {
  FillBins(parallel, scene, &work.bins);
  work.ReserveTiles(parallel);
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

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_PASSES_H_
