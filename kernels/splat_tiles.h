// Blends the Gaussians of one tile, and the adjoint of that.
//
// A tile of 16 x 16 pixels is 16 blocks of 4 x 4. Each block has its own list of the
// Gaussians within reach, so that a block's transmittance stays in registers and
// nearly every lane works. Sums over pixels that the gradient needs are products of
// small matrices: moments about the tile's centre of dL/d(exponent), and cotangents
// weighted by the blending weights.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_TILES_H_
#define GEODIFF_JAX_KERNELS_SPLAT_TILES_H_

#include "splat_bins.h"

namespace geodiff {

constexpr int kBlock = 4, kPixels = kBlock * kBlock;
constexpr int kVectors = kPixels / kLanes;  // Registers per block.

// One value per pixel of a block.
struct Block {
  F v[kVectors];
};

inline Block LoadBlock(const float* from) {
  Block block;
  for (int i = 0; i < kVectors; ++i) block.v[i] = Load(from + i * kLanes);
  return block;
}

inline void StoreBlock(float* to, const Block& block) {
  for (int i = 0; i < kVectors; ++i) Store(to + i * kLanes, block.v[i]);
}

struct TileScratch {
  Scratch<Record> records;         // Per entry of the tile.
  Scratch<float> features;         // Per entry of the tile and channel.
  Scratch<uint16_t> masks;         // Blocks within reach, per entry.
  Scratch<uint32_t> list, kept;    // Entries of one block; those that blend.
  Scratch<float> alphas, weights;  // Per kept entry and pixel.
  Scratch<float> gradients;        // Per entry of the tile: moments, then channels.
  Scratch<float> cotangents;       // Of one block, per channel and pixel.
  Scratch<float> factors;          // The same per pixel and gradient column.
};

struct Tile {
  const Scene& scene;
  const Bins& bins;
  const TileEntry* entries;
  int64_t size, x, y;  // Number of entries; first pixel.
  TileScratch* scratch;

  Tile(const Scene& scene, const Bins& bins, int64_t index, TileScratch* scratch)
      : scene(scene),
        bins(bins),
        entries(bins.entries.data() + bins.tile_begin[index]),
        size(bins.tile_begin[index + 1] - bins.tile_begin[index]),
        x(index % scene.tiles_x() * kTile),
        y(index / scene.tiles_x() * kTile),
        scratch(scratch) {}

  const float* Features(int64_t kept) const {
    return scratch->features.data() + scratch->kept[kept] * scene.num_channels;
  }
  float Depth(int64_t kept) const { return scratch->records[scratch->kept[kept]].z; }
};

// Pixels of one block: their centres, and where they lie in the image.
struct BlockPixels {
  float x[kPixels], y[kPixels];
  int64_t index[kPixels];  // Row by row in the image, -1 outside.
  uint32_t inside = 0;     // A bit per pixel.

  BlockPixels(const Tile& tile, int block) {
    for (int p = 0; p < kPixels; ++p) {
      const int64_t column = tile.x + block % kBlock * kBlock + p % kBlock;
      const int64_t row = tile.y + block / kBlock * kBlock + p / kBlock;
      const bool in = column < tile.scene.width && row < tile.scene.height;
      x[p] = column + 0.5f;
      y[p] = row + 0.5f;
      index[p] = in ? row * tile.scene.width + column : -1;
      inside |= static_cast<uint32_t>(in) << p;
    }
  }
};

// A tile's entries, copied close together, and which blocks they reach. Two or three
// blocks blend an entry, so its features come along.
inline void LoadTile(const Tile& tile, bool adjoint) {
  const int64_t size = tile.size;
  Record* records = tile.scratch->records.Reserve(size);
  uint16_t* masks = tile.scratch->masks.Reserve(size);
  const int64_t channels = tile.scene.num_channels;
  float* features = tile.scratch->features.Reserve(size * channels);
  // One more: the last store of a list without a last entry.
  tile.scratch->list.Reserve(size + 1);
  tile.scratch->kept.Reserve(size + 1);
  tile.scratch->weights.Reserve((size + 1) * kPixels);
  if (adjoint) tile.scratch->alphas.Reserve((size + 1) * kPixels);
  float lefts[kPixels], tops[kPixels];
  for (int k = 0; k < kPixels; ++k) {
    lefts[k] = tile.x + (k % kBlock) * kBlock + 0.5f;
    tops[k] = tile.y + (k / kBlock) * kBlock + 0.5f;
  }
  const F zero = Set(0.0f), side = Set(kBlock - 1.0f);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t soon = std::min(i + kAhead, size - 1);
    __builtin_prefetch(&tile.bins.records[tile.entries[soon].gaussian]);
    __builtin_prefetch(tile.scene.features + tile.entries[soon].gaussian * channels);
    const float* own = tile.scene.features + tile.entries[i].gaussian * channels;
    for (int64_t c = 0; c < channels; ++c) features[i * channels + c] = own[c];
    const Record& r = records[i] = tile.bins.records[tile.entries[i].gaussian];
    const F y_slope = Set(-0.5f * r.b / r.c), x_slope = Set(-0.5f * r.b / r.a);
    uint32_t mask = 0;
    for (int v = 0; v < kVectors; ++v) {
      // LeastPower, for all blocks at once.
      const F x0 = Load(lefts + v * kLanes) - Set(r.x), x1 = x0 + side;
      const F y0 = Load(tops + v * kLanes) - Set(r.y), y1 = y0 + side;
      const F x_near = Min(Max(zero, x0), x1), y_near = Min(Max(zero, y0), y1);
      const F y_on_x = Min(Max(y_slope * x_near, y0), y1);
      const F x_on_y = Min(Max(x_slope * y_near, x0), x1);
      const F on_x = Set(r.a) * x_near * x_near +
                     (Set(r.b) * x_near + Set(r.c) * y_on_x) * y_on_x;
      const F on_y = Set(r.c) * y_near * y_near +
                     (Set(r.b) * y_near + Set(r.a) * x_on_y) * x_on_y;
      mask |= Bits(LessEqual(Min(on_x, on_y), Set(r.reach))) << (v * kLanes);
    }
    masks[i] = static_cast<uint16_t>(mask);
  }
}

// Entries that reach the block, in order.
inline int64_t ListBlock(const Tile& tile, int block) {
  uint32_t* list = tile.scratch->list.data();
  const uint16_t* masks = tile.scratch->masks.data();
  int64_t length = 0;
  for (int64_t i = 0; i < tile.size; ++i) {
    list[length] = static_cast<uint32_t>(i);
    length += masks[i] >> block & 1;
  }
  return length;
}

// Blends a block front to back and keeps the weights (alpha times transmittance) of
// every entry that shows. With kAdjoint it keeps alpha and transmittance instead;
// a clamped alpha, which has no gradient, is kept negated.
// Returns the number kept; *transmittance holds what is left at the end, and *taken
// (not with kAdjoint) what was taken.
template <bool kAdjoint>
inline int64_t SweepBlock(const BlockPixels& pixels, int64_t length,
                          TileScratch* scratch, Block* transmittance,
                          Block* taken) {
  const uint32_t* list = scratch->list.data();
  const Record* records = scratch->records.data();
  uint32_t* kept = scratch->kept.data();
  float *alphas = scratch->alphas.data(), *weights = scratch->weights.data();
  const F one = Set(1.0f), zero = Set(0.0f), max_alpha = Set(kMaxAlpha);
  const Block px = LoadBlock(pixels.x), py = LoadBlock(pixels.y);
  Block t, sum = {};
  float flags[kPixels];
  for (int i = 0; i < kPixels; ++i) flags[i] = pixels.inside >> i & 1 ? 1.0f : 0.0f;
  Block active = LoadBlock(flags);  // Positive while the pixel takes more.
  for (int v = 0; v < kVectors; ++v) t.v[v] = one;
  int64_t num_kept = 0;
  uint32_t any_active = 1;
  constexpr int kBatch = 16;
  for (int64_t first = 0; first < length && any_active != 0; first += kBatch) {
    // Opacities do not wait for transmittances: ahead of them, registers stay busy.
    float raws[kBatch * kPixels];
    const int64_t count = std::min<int64_t>(kBatch, length - first);
    for (int64_t k = 0; k < count; ++k) {
      const Record& r = records[list[first + k]];
      for (int v = 0; v < kVectors; ++v) {
        const F dx = px.v[v] - Set(r.x), dy = py.v[v] - Set(r.y);
        const F sigma = Set(r.a) * dx * dx + Set(r.c) * dy * dy + Set(r.b) * dx * dy;
        const F raw = Set(r.opacity) * ExpOfNegative(zero - sigma);
        const Mask shows = And(LessEqual(zero, sigma), LessEqual(Set(kMinAlpha), raw));
        Store(raws + k * kPixels + v * kLanes, Select(shows, raw, zero));
      }
    }
    for (int64_t k = 0; k < count; ++k) {
      uint32_t any_blended = 0;
      any_active = 0;
      for (int v = 0; v < kVectors; ++v) {
        const F raw = Load(raws + k * kPixels + v * kLanes);
        const F alpha = Min(raw, max_alpha);
        const Mask shows = And(Less(zero, raw), Less(zero, active.v[v]));
        const F next = t.v[v] * (one - alpha);
        const Mask goes_on = Less(Set(kMinTransmittance), next);
        const Mask blended = And(shows, goes_on);
        any_blended |= Bits(blended);
        active.v[v] = Select(AndNot(shows, goes_on), zero, active.v[v]);
        any_active |= Bits(Less(zero, active.v[v]));
        float* weight = weights + num_kept * kPixels + v * kLanes;
        if (kAdjoint) {
          float* to = alphas + num_kept * kPixels + v * kLanes;
          const F marked = Select(Less(max_alpha, raw), zero - alpha, alpha);
          Store(to, Select(blended, marked, zero));
          Store(weight, t.v[v]);
        } else {
          const F share = Select(blended, alpha * t.v[v], zero);
          sum.v[v] = sum.v[v] + share;
          Store(weight, share);
        }
        t.v[v] = Select(blended, next, t.v[v]);
      }
      kept[num_kept] = list[first + k];
      num_kept += any_blended != 0;
      if (any_active == 0) break;
    }
  }
  *transmittance = t;
  if (!kAdjoint) {
    // Of the two expressions, the one that cancels less.
    for (int v = 0; v < kVectors; ++v) {
      taken->v[v] = Select(Less(t.v[v], Set(0.5f)), one - t.v[v], sum.v[v]);
    }
  }
  return num_kept;
}

inline bool Finite(const Block* blocks, int count) {
  F probe = Set(0.0f);
  for (int i = 0; i < count; ++i) {
    for (int v = 0; v < kVectors; ++v) probe = probe + blocks[i].v[v] * Set(0.0f);
  }
  return Bits(LessEqual(probe, Set(0.0f))) == (1u << kLanes) - 1;
}

// Weighted sums over the kept entries of kChannels channels from `first` on. With
// kExact, what is not finite stays off pixels of weight 0, where it would be NaN.
template <int kChannels, bool kExact = false>
inline void BlendChannels(const Tile& tile, int64_t num_kept, int64_t first,
                          float* sums) {
  Block acc[kChannels] = {};
  const float* weights = tile.scratch->weights.data();
  for (int64_t k = 0; k < num_kept; ++k) {
    const Block w = LoadBlock(weights + k * kPixels);
    const float* features = tile.Features(k) + first;
    for (int c = 0; c < kChannels; ++c) {
      const F f = Set(features[c]);
      for (int v = 0; v < kVectors; ++v) {
        const F sum = acc[c].v[v] + w.v[v] * f;
        acc[c].v[v] =
            kExact ? Select(Less(Set(0.0f), w.v[v]), sum, acc[c].v[v]) : sum;
      }
    }
  }
  if (!kExact && !Finite(acc, kChannels)) {
    BlendChannels<kChannels, true>(tile, num_kept, first, sums);
    return;
  }
  for (int c = 0; c < kChannels; ++c) StoreBlock(sums + c * kPixels, acc[c]);
}

inline void ForwardBlock(const Tile& tile, int block, float* image, float* alpha,
                         float* depth) {
  const BlockPixels pixels(tile, block);
  if (pixels.inside == 0) return;
  Block transmittance, taken;
  const int64_t num_kept = SweepBlock<false>(pixels, ListBlock(tile, block),
                                             tile.scratch, &transmittance, &taken);
  float t[kPixels], sums[8 * kPixels];
  StoreBlock(t, transmittance);
  StoreBlock(sums, taken);
  for (int p = 0; p < kPixels; ++p) {
    if (pixels.index[p] >= 0) alpha[pixels.index[p]] = sums[p];
  }
  const int64_t channels = tile.scene.num_channels;
  for (int64_t first = 0; first < channels;) {
    const int64_t rest = channels - first;
    const int count = rest >= 8 ? 8 : rest >= 4 ? 4 : static_cast<int>(rest);
    switch (count) {
      case 8: BlendChannels<8>(tile, num_kept, first, sums); break;
      case 4: BlendChannels<4>(tile, num_kept, first, sums); break;
      case 3: BlendChannels<3>(tile, num_kept, first, sums); break;
      case 2: BlendChannels<2>(tile, num_kept, first, sums); break;
      default: BlendChannels<1>(tile, num_kept, first, sums); break;
    }
    for (int p = 0; p < kPixels; ++p) {
      if (pixels.index[p] < 0) continue;
      float* out = image + pixels.index[p] * channels + first;
      for (int c = 0; c < count; ++c) {
        out[c] = sums[c * kPixels + p] + t[p] * tile.scene.background[first + c];
      }
    }
    first += count;
  }
  if (depth == nullptr) return;
  Block sum = {};
  for (int64_t k = 0; k < num_kept; ++k) {
    const Block w = LoadBlock(tile.scratch->weights.data() + k * kPixels);
    const F z = Set(tile.Depth(k));
    for (int v = 0; v < kVectors; ++v) sum.v[v] = sum.v[v] + w.v[v] * z;
  }
  StoreBlock(sums, sum);
  for (int p = 0; p < kPixels; ++p) {
    if (pixels.index[p] >= 0) depth[pixels.index[p]] = sums[p];
  }
}

// depth may be null.
inline void ForwardTile(const Tile& tile, float* image, float* alpha, float* depth) {
  LoadTile(tile, false);
  for (int block = 0; block < kPixels; ++block) {
    ForwardBlock(tile, block, image, alpha, depth);
  }
}

// Gradients of the loss with respect to what ForwardTile wrote; depth may be null.
struct Cotangents {
  const float *image, *alpha, *depth;

  // Columns of a tile's gradient table: moments, channels, depth.
  int64_t Columns(int64_t num_channels) const {
    return kMoments + num_channels + (depth != nullptr);
  }
};

inline int64_t RoundUp(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Lays a block's cotangents out per channel (alpha's last) and, as the factors of the
// gradient table's columns, per pixel. Zero outside the image.
inline void LoadCotangents(const Tile& tile, const Cotangents& cotangents,
                           const BlockPixels& pixels, int64_t stride) {
  const int64_t channels = tile.scene.num_channels;
  const int64_t depth_rows = cotangents.depth != nullptr;
  float* rows = tile.scratch->cotangents.data();
  float* factors = tile.scratch->factors.data();
  std::fill(factors, factors + kPixels * stride, 0.0f);
  for (int p = 0; p < kPixels; ++p) {
    const int64_t i = pixels.index[p];
    float* columns = factors + p * stride + kMoments;
    for (int64_t c = 0; c < channels; ++c) {
      columns[c] = i < 0 ? 0.0f : cotangents.image[i * channels + c];
      rows[c * kPixels + p] = columns[c];
    }
    if (depth_rows) {
      columns[channels] = i < 0 ? 0.0f : cotangents.depth[i];
      rows[channels * kPixels + p] = columns[channels];
    }
    rows[(channels + depth_rows) * kPixels + p] = i < 0 ? 0.0f : cotangents.alpha[i];
  }
}

// Back to front over the kept entries: replaces alphas by dL/d(exponent) and
// transmittances by blending weights. `behind` is what lies behind the last entry:
// the background's share of the loss per transmittance.
inline void ReverseBlock(const Tile& tile, int64_t num_kept, bool has_depth,
                         Block behind) {
  const int64_t channels = tile.scene.num_channels;
  const float* rows = tile.scratch->cotangents.data();
  const F zero = Set(0.0f);
  for (int64_t k = num_kept - 1; k >= 0; --k) {
    const float* features = tile.Features(k);
    Block value = {};
    for (int64_t c = 0; c < channels; ++c) {
      const Block row = LoadBlock(rows + c * kPixels);
      const F f = Set(features[c]);
      for (int v = 0; v < kVectors; ++v) value.v[v] = value.v[v] + row.v[v] * f;
    }
    if (has_depth) {
      const Block row = LoadBlock(rows + channels * kPixels);
      const F z = Set(tile.Depth(k));
      for (int v = 0; v < kVectors; ++v) value.v[v] = value.v[v] + row.v[v] * z;
    }
    for (int v = 0; v < kVectors; ++v) {
      float* alpha_at = tile.scratch->alphas.data() + k * kPixels + v * kLanes;
      float* weight_at = tile.scratch->weights.data() + k * kPixels + v * kLanes;
      const F marked = Load(alpha_at), t = Load(weight_at);
      const F alpha = Max(marked, zero - marked);
      const F gain = value.v[v] - behind.v[v];
      // alpha = opacity exp(-exponent), and a clamped one (marked) does not move.
      Store(alpha_at, Select(Less(zero, marked), zero - alpha * t * gain, zero));
      Store(weight_at, alpha * t);
      behind.v[v] = behind.v[v] + alpha * gain;
    }
  }
}

// gradients[kept] += exponents' moments | weights' products with the cotangents.
template <int kRows>
inline void AddProducts(const Tile& tile, int64_t first, const float* moments,
                        int64_t stride) {
  const float* exponents = tile.scratch->alphas.data() + first * kPixels;
  const float* weights = tile.scratch->weights.data() + first * kPixels;
  const float* factors = tile.scratch->factors.data();
  for (int64_t column = 0; column < stride; column += kPixels) {
    Block acc[kRows] = {};
    for (int p = 0; p < kPixels; ++p) {
      const Block factor = LoadBlock(factors + p * stride + column);
      for (int k = 0; k < kRows; ++k) {
        const F w = Set(weights[k * kPixels + p]);
        for (int v = 0; v < kVectors; ++v) {
          acc[k].v[v] = acc[k].v[v] + w * factor.v[v];
        }
      }
      if (column > 0) continue;
      const Block moment = LoadBlock(moments + p * kPixels);
      for (int k = 0; k < kRows; ++k) {
        const F e = Set(exponents[k * kPixels + p]);
        for (int v = 0; v < kVectors; ++v) {
          acc[k].v[v] = acc[k].v[v] + e * moment.v[v];
        }
      }
    }
    for (int k = 0; k < kRows; ++k) {
      float* row = tile.scratch->gradients.data() +
                   tile.scratch->kept[first + k] * stride + column;
      Block sum = LoadBlock(row);
      for (int v = 0; v < kVectors; ++v) sum.v[v] = sum.v[v] + acc[k].v[v];
      StoreBlock(row, sum);
    }
  }
}

inline void BackwardBlock(const Tile& tile, int block, const Cotangents& cotangents,
                          int64_t stride, float* d_background) {
  const BlockPixels pixels(tile, block);
  if (pixels.inside == 0) return;
  Block transmittance;
  const int64_t num_kept = SweepBlock<true>(pixels, ListBlock(tile, block),
                                            tile.scratch, &transmittance, nullptr);
  LoadCotangents(tile, cotangents, pixels, stride);
  const int64_t channels = tile.scene.num_channels;
  const bool has_depth = cotangents.depth != nullptr;
  const float* rows = tile.scratch->cotangents.data();
  Block behind = LoadBlock(rows + (channels + has_depth) * kPixels);
  for (int v = 0; v < kVectors; ++v) behind.v[v] = Set(0.0f) - behind.v[v];
  for (int64_t c = 0; c < channels; ++c) {
    const Block row = LoadBlock(rows + c * kPixels);
    F sum = Set(0.0f);
    for (int v = 0; v < kVectors; ++v) {
      behind.v[v] = behind.v[v] + row.v[v] * Set(tile.scene.background[c]);
      sum = sum + row.v[v] * transmittance.v[v];
    }
    d_background[c] += SumLanes(sum);
  }
  if (num_kept == 0) return;
  ReverseBlock(tile, num_kept, has_depth, behind);
  float moments[kPixels * kPixels] = {};
  for (int p = 0; p < kPixels; ++p) {
    const float x = pixels.x[p] - (tile.x + kTile / 2);
    const float y = pixels.y[p] - (tile.y + kTile / 2);
    const float row[kMoments] = {1.0f, x, y, x * x, x * y, y * y};
    std::copy(row, row + kMoments, moments + p * kPixels);
  }
  int64_t k = 0;
  for (; k + 4 <= num_kept; k += 4) AddProducts<4>(tile, k, moments, stride);
  for (; k < num_kept; ++k) AddProducts<1>(tile, k, moments, stride);
}

// Writes every pair's share of the gradient, [x, y, a, b, c, opacity, channels, depth],
// to its slot of `shares`, and adds the tile's to d_background.
inline void BackwardTile(const Tile& tile, const Cotangents& cotangents, float* shares,
                         float* d_background) {
  LoadTile(tile, true);
  const int64_t columns = cotangents.Columns(tile.scene.num_channels);
  const int64_t stride = RoundUp(columns, kPixels);
  float* gradients = tile.scratch->gradients.Reserve(tile.size * stride);
  std::fill(gradients, gradients + tile.size * stride, 0.0f);
  tile.scratch->cotangents.Reserve(columns * kPixels);
  tile.scratch->factors.Reserve(stride * kPixels);
  for (int block = 0; block < kPixels; ++block) {
    BackwardBlock(tile, block, cotangents, stride, d_background);
  }
  for (int64_t i = 0; i < tile.size; ++i) {
    float* share = shares + tile.entries[i].slot * columns;
    const float* row = gradients + i * stride;
    MomentsToGradients(tile.scratch->records[i], tile.x + 0.5f * kTile,
                       tile.y + 0.5f * kTile, row, share);
    std::copy(row + kMoments, row + columns, share + kMoments);
  }
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_TILES_H_
