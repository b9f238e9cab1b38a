// Blending of tiles on the device, and its adjoint.
//
// A block draws a tile, a thread a pixel, a warp an area of 8 x 4 pixels. Entries are
// fetched in batches; whoever fetches one also finds out which warps it reaches, so that
// a warp only looks at entries that reach its area. What is blended (channels, then
// depth) is taken kColumns at a time.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_CUDA_TILES_H_
#define GEODIFF_JAX_KERNELS_SPLAT_CUDA_TILES_H_

#include <type_traits>

#include "splat_cuda.h"

namespace geodiff {

// A batch of a tile's entries in shared memory.
template <int kSize, int kColumns>
struct EntryBatch {
  Record records[kSize];
  float columns[kSize][kColumns];
  uint32_t slots[kSize];
  uint8_t warps[kSize];  // A bit for every warp reached.

  // Called by one thread for one place in the batch.
  __device__ void Fetch(const SplatProblem& p, const SplatLists& lists, int place,
                        int64_t entry, const float* features, float tile_x,
                        float tile_y, int64_t first_column) {
    const uint32_t slot = lists.entries[entry], pair = lists.owners[slot];
    const Record r = lists.records[pair];
    const float* own = features + pair % p.num_gaussians * p.num_channels;
    for (int c = 0; c < kColumns; ++c) {
      columns[place][c] = p.Column(own, r.z, first_column + c);
    }
    records[place] = r;
    slots[place] = slot;
    warps[place] = static_cast<uint8_t>(WarpsReached(r, tile_x, tile_y));
  }

  // For warp-wide loops: a bit for every entry of a group of 32 that reaches the warp.
  __device__ unsigned Reaching(int group, int count) const {
    const int place = group + threadIdx.x % kWarp;
    const bool reaches =
        place < count && (warps[place] >> (threadIdx.x / kWarp) & 1) != 0;
    return __ballot_sync(kAllLanes, reaches);
  }
};

// blockIdx.x is a tile, blockIdx.y a group of columns. depth may be null.
template <int kColumns>
__global__ void __launch_bounds__(kThreads)
    BlendTiles(SplatProblem p, SplatLists lists, float* image, float* alpha,
               float* depth) {
  __shared__ EntryBatch<kThreads, kColumns> batch;
  const int64_t tile = blockIdx.x, first_column = int64_t{blockIdx.y} * kColumns;
  const TilePixel pixel(p, tile);
  const float pixel_x = static_cast<float>(pixel.x) + 0.5f;
  const float pixel_y = static_cast<float>(pixel.y) + 0.5f;
  const int64_t in_view = tile % p.tiles_per_view(), set = pixel.view / p.num_cameras;
  const float tile_x = static_cast<float>(in_view % p.tiles_x() * kTile);
  const float tile_y = static_cast<float>(in_view / p.tiles_x() * kTile);
  const float* features = p.features.At(set);
  const int64_t begin = lists.tile_begin[tile], end = lists.tile_begin[tile + 1];
  float transmittance = 1.0f, taken = 0.0f, sums[kColumns] = {};
  uint32_t last = 0;
  bool done = !pixel.inside;
  for (int64_t first = begin; first < end; first += kThreads) {
    if (__syncthreads_count(done) == kThreads) break;
    const int count = static_cast<int>(Least(end - first, int64_t{kThreads}));
    if (static_cast<int>(threadIdx.x) < count) {
      batch.Fetch(p, lists, threadIdx.x, first + threadIdx.x, features, tile_x, tile_y,
                  first_column);
    }
    __syncthreads();
    for (int group = 0; group < count; group += kWarp) {
      unsigned places = batch.Reaching(group, count);
      for (; places != 0; places &= places - 1) {
        const int place = group + LowestBit(places);
        const Sample sample(batch.records[place], pixel_x, pixel_y);
        if (done || !sample.shows) continue;
        const float next = transmittance * (1.0f - sample.alpha);
        if (!(next > kMinTransmittance)) {
          done = true;
          continue;
        }
        const float weight = sample.alpha * transmittance;
        taken += weight;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[c] += weight * batch.columns[place][c];
        transmittance = next;
        last = static_cast<uint32_t>(first + place + 1);
      }
      if (__ballot_sync(kAllLanes, !done) == 0) break;
    }
  }
  if (!pixel.inside) return;
  const float* background = p.background.At(set);
  for (int c = 0; c < kColumns; ++c) {
    const int64_t column = first_column + c;
    if (column < p.num_channels) {
      image[pixel.index * p.num_channels + column] =
          sums[c] + transmittance * background[column];
    } else if (column < p.num_columns()) {
      depth[pixel.index] = sums[c];
    }
  }
  if (blockIdx.y > 0) return;
  // Of the two expressions, the one that cancels less.
  alpha[pixel.index] = transmittance < 0.5f ? 1.0f - transmittance : taken;
  lists.last[pixel.index] = last;
  lists.transmittance[pixel.index] = transmittance;
}

// Gradients of the loss with respect to what BlendTiles wrote, one item per set;
// depth's data may be null.
struct SplatCotangents {
  Batched<float> image, alpha, depth;
};

// The largest of the block's values, which every thread gets. `shared` has kWarps.
__device__ inline uint32_t BlockMost(uint32_t value, uint32_t* shared) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = Most(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) value = Most(value, shared[warp]);
  return value;
}

// Adjoint of BlendTiles, back to front. Every entry's share of the gradient, moments of
// dL/d(exponent) about the Gaussian's centre and then columns, goes to its slot's row of
// `shares`; and every tile's gradient of the background to its row of `backgrounds`.
// A warp sums over its pixels, and the block over its warps, in a fixed order: no
// atomics, the same bits in every run. With first_column > 0 moments add up.
// The lists are those of sets first_list_set on, where the problem's set 0 is
// `first_set` of the batch.
struct AdjointRange {
  int64_t first_set, first_list_set;
};

template <int kColumns>
__global__ void __launch_bounds__(kThreads)
    BlendTilesAdjoint(SplatProblem p, SplatLists lists, AdjointRange range,
                      SplatCotangents cotangents, int64_t first_column, float* shares,
                      float* backgrounds) {
  constexpr int kSums = kMoments + kColumns;
  constexpr int kSize = kColumns <= 8 ? 64 : 32;  // Bounded by shared memory.
  __shared__ EntryBatch<kSize, kColumns> batch;
  __shared__ float partial[kWarps][kSize][kSums];
  __shared__ uint32_t lasts[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t tile = blockIdx.x, stride = kMoments + p.num_columns();
  const TilePixel pixel(p, tile);
  const float pixel_x = static_cast<float>(pixel.x) + 0.5f;
  const float pixel_y = static_cast<float>(pixel.y) + 0.5f;
  const int64_t in_view = tile % p.tiles_per_view();
  const float tile_x = static_cast<float>(in_view % p.tiles_x() * kTile);
  const float tile_y = static_cast<float>(in_view / p.tiles_x() * kTile);
  const int64_t set = range.first_set + pixel.view / p.num_cameras;
  const float* features = p.features.At(set);
  const float* background = p.background.At(set);
  const int64_t list_views = range.first_list_set * p.num_cameras;
  const int64_t list_tile = tile + list_views * p.tiles_per_view();
  const int64_t begin = lists.tile_begin[list_tile];
  const int64_t end = lists.tile_begin[list_tile + 1];

  float transmittance = 1.0f, behind = 0.0f, cotangent[kColumns] = {};
  uint32_t last = 0;
  if (pixel.inside) {
    const int64_t in_lists = pixel.index + list_views * p.height * p.width;
    const int64_t in_set =
        ((pixel.view % p.num_cameras) * p.height + pixel.y) * p.width + pixel.x;
    transmittance = lists.transmittance[in_lists];
    last = lists.last[in_lists];
    if (first_column == 0) behind = -cotangents.alpha.At(set)[in_set];
    const float* of_image = cotangents.image.At(set) + in_set * p.num_channels;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t column = first_column + c;
      if (column < p.num_channels) {
        cotangent[c] = of_image[column];
        behind += cotangent[c] * background[column];
      } else if (column < p.num_columns()) {
        cotangent[c] = cotangents.depth.At(set)[in_set];
      }
    }
  }
  {
    float values[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] = transmittance * cotangent[c];
    const float sum = WarpSums<kColumns>(values);
    partial[warp][0][SumColumn<kColumns>(lane)] = sum;
  }
  const int64_t tile_last = Most(begin, int64_t{BlockMost(last, lasts)});
  const int64_t own_column = first_column + threadIdx.x;
  if (threadIdx.x < kColumns && own_column < p.num_channels) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += partial[w][0][threadIdx.x];
    backgrounds[tile * p.num_channels + own_column] = sum;
  }
  // Entries that no pixel blended have no share.
  if (first_column == 0) {
    for (int64_t entry = tile_last + warp; entry < end; entry += kWarps) {
      float* row = shares + lists.entries[entry] * stride;
      for (int64_t c = lane; c < stride; c += kWarp) row[c] = 0.0f;
    }
  }
  // Place 0 of a batch is its last entry.
  for (int64_t past = tile_last; past > begin; past -= kSize) {
    __syncthreads();
    const int count = static_cast<int>(Least(past - begin, int64_t{kSize}));
    if (static_cast<int>(threadIdx.x) < count) {
      batch.Fetch(p, lists, threadIdx.x, past - 1 - threadIdx.x, features, tile_x,
                  tile_y, first_column);
    }
    __syncthreads();
    for (int group = 0; group < count; group += kWarp) {
      unsigned places = batch.Reaching(group, count);
      for (; places != 0; places &= places - 1) {
        const int place = group + LowestBit(places);
        const Record& r = batch.records[place];
        const Sample sample(r, pixel_x, pixel_y);
        const bool blended = sample.shows && past - 1 - place < int64_t{last};
        float sums[kSums] = {};
        if (blended) {
          // 1 - alpha is at least 0.01.
          transmittance /= 1.0f - sample.alpha;
          const float weight = sample.alpha * transmittance;
          float gain = -behind;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            gain += cotangent[c] * batch.columns[place][c];
            sums[kMoments + c] = weight * cotangent[c];
          }
          behind += sample.alpha * gain;
          // alpha = opacity exp(-exponent), and a clamped one does not move.
          const float e = sample.raw > kMaxAlpha ? 0.0f : -weight * gain;
          sums[0] = e;
          sums[1] = e * sample.dx;
          sums[2] = e * sample.dy;
          sums[3] = sums[1] * sample.dx;
          sums[4] = sums[1] * sample.dy;
          sums[5] = sums[2] * sample.dy;
        }
        const bool any = __ballot_sync(kAllLanes, blended) != 0;
        const float sum = any ? WarpSums<kSums>(sums) : 0.0f;
        partial[warp][place][SumColumn<kSums>(lane)] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * kSums; i += kThreads) {
      const int place = i / kSums, c = i % kSums;
      if (c >= kMoments && first_column + c - kMoments >= p.num_columns()) continue;
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) {
        if (batch.warps[place] >> w & 1) sum += partial[w][place][c];
      }
      float* row = shares + batch.slots[place] * stride;
      if (c >= kMoments) {
        row[c + first_column] = sum;
      } else {
        row[c] = first_column > 0 ? row[c] + sum : sum;
      }
    }
  }
}

// Smallest group of columns, of those compiled, that takes all at once; or the largest.
template <typename Visit>
void WithColumns(int64_t num_columns, const Visit& visit) {
  if (num_columns <= 4) {
    visit(std::integral_constant<int, 4>());
  } else if (num_columns <= 8) {
    visit(std::integral_constant<int, 8>());
  } else {
    visit(std::integral_constant<int, 16>());
  }
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_CUDA_TILES_H_
