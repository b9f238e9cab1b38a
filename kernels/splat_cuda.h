// Data of the CUDA splatting kernels: the problem, the lists, and where they lie.
//
// A call serves `sets` of Gaussians (vmap), each before `cameras` cameras, in the same
// launches. Views are numbered set by set, pairs (view, Gaussian) view by view, tiles
// view by view. A slot is a (pair, tile) that meet: slots of a pair are consecutive, and
// pairs follow each other by depth. All sets share one pool of `capacity` slots; pairs
// that find no room, the farthest ones, are left out.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_CUDA_H_
#define GEODIFF_JAX_KERNELS_SPLAT_CUDA_H_

#include "device.h"
#include "splat_operands.h"
#include "splat_record.h"

namespace geodiff {

struct SplatProblem {
  Batched<float> means, quaternions, scales, opacities, features, cameras, intrinsics,
      background;  // One item is a set's.
  Batched<float> offsets;  // (cameras, Gaussians, 2) pixels, if has_offsets.
  int64_t num_sets, num_cameras, num_gaussians, num_channels, width, height;
  float near;
  bool antialiased, has_depth, has_offsets;

  GEODIFF_HD int64_t num_views() const { return num_sets * num_cameras; }
  GEODIFF_HD int64_t num_pairs() const { return num_views() * num_gaussians; }
  GEODIFF_HD int64_t tiles_x() const { return (width + kTile - 1) / kTile; }
  GEODIFF_HD int64_t tiles_per_view() const {
    return tiles_x() * ((height + kTile - 1) / kTile);
  }
  GEODIFF_HD int64_t num_tiles() const { return num_views() * tiles_per_view(); }
  // What is blended: channels, then depth.
  GEODIFF_HD int64_t num_columns() const { return num_channels + has_depth; }
  GEODIFF_HD float Column(const float* gaussian_features, float z, int64_t column) const {
    return column < num_channels ? gaussian_features[column]
           : column < num_columns() ? z : 0.0f;
  }
};

// What the forward pass finds and the adjoint needs again.
struct SplatLists {
  Record* records;       // Per pair, set where visible.
  uint32_t* slots;       // Per pair: first slot, number of slots.
  uint32_t* owners;      // Per slot: its pair.
  uint32_t* entries;     // Slots, tile by tile, by depth.
  uint32_t* tile_begin;  // Per tile and one more: first entry.
  uint32_t* last;        // Per pixel: one past its last entry blended.
  float* transmittance;  // Per pixel: what is left at the end.
  int64_t capacity;      // Of slots.
};

// A tile's pixels: eight warps of 8 x 4 pixels.
constexpr int kAreaWidth = 8, kAreaHeight = 4;
static_assert(kAreaWidth * kAreaHeight == kWarp && kTile * kTile == kThreads);

struct TilePixel {
  int64_t view, x, y, index;  // Index among all pixels of all views.
  bool inside;

  __device__ TilePixel(const SplatProblem& p, int64_t tile) {
    view = tile / p.tiles_per_view();
    const int64_t in_view = tile % p.tiles_per_view();
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    x = in_view % p.tiles_x() * kTile + warp % 2 * kAreaWidth + lane % kAreaWidth;
    y = in_view / p.tiles_x() * kTile + warp / 2 * kAreaHeight + lane / kAreaWidth;
    inside = x < p.width && y < p.height;
    index = (view * p.height + y) * p.width + x;
  }
};

// A bit for every warp whose pixels the record reaches (LeastPower, for 8 boxes).
__device__ inline uint32_t WarpsReached(const Record& r, float tile_x, float tile_y) {
  const float y_slope = -0.5f * r.b / r.c, x_slope = -0.5f * r.b / r.a;
  uint32_t mask = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const float x0 = tile_x + static_cast<float>(warp % 2 * kAreaWidth) + 0.5f - r.x;
    const float y0 = tile_y + static_cast<float>(warp / 2 * kAreaHeight) + 0.5f - r.y;
    const float x1 = x0 + (kAreaWidth - 1), y1 = y0 + (kAreaHeight - 1);
    const float x = Least(Most(0.0f, x0), x1), y = Least(Most(0.0f, y0), y1);
    const float y_on_x = Least(Most(y_slope * x, y0), y1);
    const float x_on_y = Least(Most(x_slope * y, x0), x1);
    const float on_x = r.a * x * x + (r.b * x + r.c * y_on_x) * y_on_x;
    const float on_y = r.c * y * y + (r.b * y + r.a * x_on_y) * x_on_y;
    if (!(Least(on_x, on_y) > r.reach)) mask |= 1u << warp;
  }
  return mask;
}

// A record at a pixel. The forward pass and the adjoint must decide alike, so every
// multiply-add is spelled out and nothing is left for the compiler to contract.
struct Sample {
  float dx, dy, raw, alpha;
  bool shows;

  __device__ Sample(const Record& r, float pixel_x, float pixel_y) {
    dx = pixel_x - r.x;
    dy = pixel_y - r.y;
    const float on_x = fmaf(r.a, dx, r.b * dy);
    const float sigma = fmaf(on_x, dx, (r.c * dy) * dy);
    raw = r.opacity * Exp(-sigma);
    alpha = raw < kMaxAlpha ? raw : kMaxAlpha;
    shows = sigma >= 0.0f && raw >= kMinAlpha;
  }
};

constexpr int64_t Align(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Hands out pieces of a scratch buffer.
class Pieces {
 public:
  explicit Pieces(void* data) : data_(static_cast<char*>(data)) {}

  template <typename T>
  T* Take(int64_t count) {
    T* piece = reinterpret_cast<T*>(data_ + used_);
    used_ += Align(count * static_cast<int64_t>(sizeof(T)));
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* data_;
  int64_t used_ = 0;
};

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_CUDA_H_
