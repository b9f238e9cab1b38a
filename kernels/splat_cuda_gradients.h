// From shares of the gradient to those of Gaussians and cameras, on the device.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_CUDA_GRADIENTS_H_
#define GEODIFF_JAX_KERNELS_SPLAT_CUDA_GRADIENTS_H_

#include "splat_cuda_lists.h"
#include "splat_cuda_tiles.h"

namespace geodiff {

constexpr int kViewEntries = 16;  // camera_from_world (3, 4), then fx, fy, cx, cy.
constexpr int kTeam = 8;          // Threads that gather a Gaussian's shares (ours).
constexpr int kGathered = 8;      // Of a pair: moments, depth, padding.

// Gradients of the operands, set by set.
struct SplatGradients {
  float *means, *quaternions, *scales, *opacities, *features, *cameras, *intrinsics,
      *background, *offsets;
};

// Scratch of the adjoint.
struct AdjointScratch {
  float* shares;       // Per slot: moments, columns.
  float* gathered;     // Per pair: kGathered.
  float* backgrounds;  // Per tile: channels.
  float* views;        // Per view and block of Gaussians: kViewEntries.
  int64_t bytes;

  AdjointScratch(void* data, const SplatProblem& p, int64_t capacity) {
    Pieces pieces(data);
    shares = pieces.Take<float>(capacity * (kMoments + p.num_columns()));
    gathered = pieces.Take<float>(p.num_pairs() * kGathered);
    backgrounds = pieces.Take<float>(p.num_tiles() * p.num_channels);
    views = pieces.Take<float>(p.num_views() * BlocksFor(p.num_gaussians) *
                               kViewEntries);
    bytes = pieces.used();
  }
};

// A team per Gaussian and set; its threads take columns in turn and add up slots in
// order, and features over the cameras in order.
__global__ void GatherShares(SplatProblem p, SplatLists lists, AdjointRange range,
                             const float* shares, float* gathered, float* d_features) {
  const int64_t team = ThreadIndex() / kTeam;
  if (team >= p.num_sets * p.num_gaussians) return;
  const int64_t set = team / p.num_gaussians, gaussian = team % p.num_gaussians;
  const int64_t stride = kMoments + p.num_columns();
  for (int64_t c = threadIdx.x % kTeam; c < stride; c += kTeam) {
    const bool is_feature = c >= kMoments && c < kMoments + p.num_channels;
    float over_cameras = 0.0f;
    for (int64_t camera = 0; camera < p.num_cameras; ++camera) {
      const int64_t pair =
          (set * p.num_cameras + camera) * p.num_gaussians + gaussian;
      const uint32_t* slots =
          lists.slots +
          2 * (pair + range.first_list_set * p.num_cameras * p.num_gaussians);
      if (slots[1] == 0) continue;
      const int64_t end = Least(int64_t{slots[0]} + slots[1], lists.capacity);
      float sum = 0.0f;
      for (int64_t slot = slots[0]; slot < end; ++slot) sum += shares[slot * stride + c];
      over_cameras += sum;
      if (!is_feature) {
        gathered[pair * kGathered + (c < kMoments ? c : kMoments)] = sum;
      }
    }
    if (is_feature) {
      d_features[((range.first_set + set) * p.num_gaussians + gaussian) *
                     p.num_channels +
                 c - kMoments] = over_cameras;
    }
  }
}

__device__ inline void AddGaussian(const Gaussian<float>& d, Gaussian<float>* sum) {
  for (int k = 0; k < 3; ++k) sum->mean[k] += d.mean[k];
  for (int k = 0; k < 4; ++k) sum->quaternion[k] += d.quaternion[k];
  for (int k = 0; k < 3; ++k) sum->scale[k] += d.scale[k];
  sum->opacity += d.opacity;
}

// blockIdx.x is a block of Gaussians, blockIdx.y a set. Adds up over cameras; leaves the
// block's part of every camera's gradient in its row of `views`.
__global__ void __launch_bounds__(kThreads)
    ProjectAdjoints(SplatProblem p, SplatLists lists, AdjointRange range,
                    const float* gathered, float* views, SplatGradients out) {
  __shared__ float partial[kWarps][kViewEntries];
  const int64_t gaussian = ThreadIndex(), local_set = blockIdx.y;
  const int64_t set = range.first_set + local_set;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const bool exists = gaussian < p.num_gaussians;
  Gaussian<float> sum = {};
  for (int64_t camera = 0; camera < p.num_cameras; ++camera) {
    const int64_t local_view = local_set * p.num_cameras + camera;
    const int64_t pair = local_view * p.num_gaussians + gaussian;
    const int64_t list_pair =
        pair + range.first_list_set * p.num_cameras * p.num_gaussians;
    View<float> d_view = {};
    float d_x = 0.0f, d_y = 0.0f;
    if (exists && lists.slots[2 * list_pair + 1] > 0) {
      const float* moments = gathered + pair * kGathered;
      const Record r = lists.records[list_pair];
      float d_record[kMoments];
      MomentsToGradients(r, r.x, r.y, moments, d_record);
      d_x = d_record[0];
      d_y = d_record[1];
      const Splat<float> d = {d_record[0],
                              d_record[1],
                              p.has_depth ? moments[kMoments] : 0.0f,
                              d_record[2],
                              d_record[3],
                              d_record[4],
                              d_record[5]};
      const Gaussian<float> g = LoadGaussian(p, set, gaussian);
      const View<float> view = LoadView(p, set * p.num_cameras + camera);
      Projection<float> projection;
      const Splat<float> splat = Project(g, view, p.antialiased, &projection);
      AddGaussian(
          ProjectAdjoint(g, view, p.antialiased, projection, splat, d, &d_view), &sum);
    }
    if (exists && p.has_offsets) {
      const int64_t skipped = range.first_set * p.num_cameras * p.num_gaussians;
      float* to = out.offsets + 2 * (skipped + pair);
      to[0] = d_x;
      to[1] = d_y;
    }
    float entries[kViewEntries];
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) entries[4 * i + j] = d_view.rotation[3 * i + j];
      entries[4 * i + 3] = d_view.translation[i];
    }
    entries[12] = d_view.fx;
    entries[13] = d_view.fy;
    entries[14] = d_view.cx;
    entries[15] = d_view.cy;
    partial[warp][SumColumn<kViewEntries>(lane)] = WarpSums<kViewEntries>(entries);
    __syncthreads();
    if (threadIdx.x < kViewEntries) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += partial[w][threadIdx.x];
      views[(local_view * gridDim.x + blockIdx.x) * kViewEntries + threadIdx.x] = total;
    }
    __syncthreads();
  }
  if (!exists) return;
  const int64_t i = set * p.num_gaussians + gaussian;
  for (int k = 0; k < 3; ++k) out.means[3 * i + k] = sum.mean[k];
  for (int k = 0; k < 4; ++k) out.quaternions[4 * i + k] = sum.quaternion[k];
  for (int k = 0; k < 3; ++k) out.scales[3 * i + k] = sum.scale[k];
  out.opacities[i] = sum.opacity;
}

// Adds up the rows of (groups, rows, columns). blockIdx.x is a group, blockIdx.y sixteen
// of its columns, of which the first `split` go to `out` and the rest to `rest`.
__global__ void __launch_bounds__(kThreads)
    SumRows(const float* values, int64_t num_rows, int64_t num_columns, int64_t split,
            float* out, float* rest) {
  constexpr int kWide = 16, kHigh = kThreads / kWide;
  __shared__ double partial[kHigh][kWide];
  const int64_t group = blockIdx.x;
  const int x = threadIdx.x % kWide, y = threadIdx.x / kWide;
  const int64_t column = int64_t{blockIdx.y} * kWide + x;
  double sum = 0.0;
  if (column < num_columns) {
    const float* first = values + group * num_rows * num_columns + column;
#pragma unroll 8
    for (int64_t row = y; row < num_rows; row += kHigh) sum += first[row * num_columns];
  }
  partial[y][x] = sum;
  __syncthreads();
  if (y > 0 || column >= num_columns) return;
  for (int i = 1; i < kHigh; ++i) sum += partial[i][x];
  if (column < split) {
    out[group * split + column] = static_cast<float>(sum);
  } else {
    rest[group * (num_columns - split) + column - split] = static_cast<float>(sum);
  }
}

// The whole adjoint for the sets of `p`, which start at those of `range`.
inline void FillGradients(const SplatProblem& p, const SplatLists& lists,
                          const AdjointRange& range, const SplatCotangents& cotangents,
                          const AdjointScratch& scratch, const SplatGradients& out,
                          Stream stream) {
  const unsigned tiles = static_cast<unsigned>(p.num_tiles());
  WithColumns(p.num_columns(), [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    int64_t first = 0;
    do {
      Launch(BlendTilesAdjoint<kColumns>, dim3(tiles), kThreads, stream, p, lists, range,
             cotangents, first, scratch.shares, scratch.backgrounds);
      first += kColumns;
    } while (first < p.num_columns());
  });
  const int64_t channels = p.num_channels, tiles_per_set =
      p.tiles_per_view() * p.num_cameras;
  Launch(SumRows,
         dim3(static_cast<unsigned>(p.num_sets), static_cast<unsigned>((channels + 15) / 16)),
         kThreads, stream, const_cast<const float*>(scratch.backgrounds), tiles_per_set,
         channels, channels, out.background + range.first_set * channels,
         static_cast<float*>(nullptr));
  Launch(GatherShares, dim3(BlocksFor(p.num_sets * p.num_gaussians * kTeam)), kThreads,
         stream, p, lists, range, const_cast<const float*>(scratch.shares),
         scratch.gathered, out.features);
  const unsigned blocks = BlocksFor(p.num_gaussians);
  Launch(ProjectAdjoints, dim3(blocks, static_cast<unsigned>(p.num_sets)), kThreads,
         stream, p, lists, range, const_cast<const float*>(scratch.gathered),
         scratch.views, out);
  const int64_t first_view = range.first_set * p.num_cameras;
  Launch(SumRows, dim3(static_cast<unsigned>(p.num_views())), kThreads, stream,
         const_cast<const float*>(scratch.views), int64_t{blocks}, int64_t{kViewEntries},
         int64_t{12}, out.cameras + first_view * 12, out.intrinsics + first_view * 4);
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_CUDA_GRADIENTS_H_
