// Projects the Gaussians of one view, sorts them by depth and bins them into tiles.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_BINS_H_
#define GEODIFF_JAX_KERNELS_SPLAT_BINS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "scratch.h"
#include "splat_record.h"
#include "stages.h"

namespace geodiff {

constexpr int kChunk = 1024;  // Gaussians per task; a multiple of any kLanes.
// Gaussians that are near in depth lie far apart in memory: so many are fetched ahead.
constexpr int kAhead = 12;

// One set of Gaussians, one camera, as the caller laid them out.
struct Scene {
  const float *means, *quaternions, *scales, *opacities, *features;
  const float *camera;      // (3, 4) camera_from_world.
  const float *intrinsics;  // fx, fy, cx, cy.
  const float *background;
  const float *offsets;     // Per Gaussian, pixels added to its centre; may be null.
  int64_t num_gaussians, num_channels, width, height;
  float near;
  bool antialiased;

  int64_t tiles_x() const { return (width + kTile - 1) / kTile; }
  int64_t tiles_y() const { return (height + kTile - 1) / kTile; }
};

// Tiles that a Gaussian touches: a box, and for boxes up to 64 tiles a bit for each.
struct TileBox {
  int32_t x, y, width, height;
  uint64_t bits;
};

// Entry of a tile's list. `slot` numbers all (Gaussian, tile) pairs Gaussian by
// Gaussian: where the tile leaves its share of the gradient.
struct TileEntry {
  uint32_t gaussian, slot;
};

struct Bins {
  Scratch<Record> records;        // Per Gaussian, set where visible.
  Scratch<TileBox> boxes;         // Per Gaussian.
  Scratch<uint32_t> slots;        // Per Gaussian and one more: first slot.
  Scratch<uint64_t> order, order_swap;  // Visible, by depth: depth bits | index.
  Scratch<uint32_t> cursors;      // Per chunk of the order and tile.
  Scratch<uint32_t> tile_begin;   // Per tile and one more.
  Scratch<TileEntry> entries;
  int64_t num_visible = 0;

  bool Visible(int64_t gaussian) const { return slots[gaussian + 1] > slots[gaussian]; }
};

// Gaussians [first, first + kLanes), the last one repeated beyond `end`.
inline Gaussian<F> LoadGaussians(const Scene& scene, int64_t first, int64_t end) {
  float lanes[11][kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const int64_t i = std::min<int64_t>(first + l, end - 1);
    for (int k = 0; k < 3; ++k) lanes[k][l] = scene.means[3 * i + k];
    for (int k = 0; k < 4; ++k) lanes[3 + k][l] = scene.quaternions[4 * i + k];
    for (int k = 0; k < 3; ++k) lanes[7 + k][l] = scene.scales[3 * i + k];
    lanes[10][l] = scene.opacities[i];
  }
  Gaussian<F> g;
  for (int k = 0; k < 3; ++k) g.mean[k] = Load(lanes[k]);
  for (int k = 0; k < 4; ++k) g.quaternion[k] = Load(lanes[3 + k]);
  for (int k = 0; k < 3; ++k) g.scale[k] = Load(lanes[7 + k]);
  g.opacity = Load(lanes[10]);
  return g;
}

inline uint32_t CountTiles(const TileBox& box) {
  const int64_t area = static_cast<int64_t>(box.width) * box.height;
  return area <= 64 ? __builtin_popcountll(box.bits) : static_cast<uint32_t>(area);
}

// The tiles within reach; none if the Gaussian is culled.
inline TileBox FindTiles(const Scene& scene, const Record& r, float var_x, float var_y) {
  TileBox box = {0, 0, 0, 0, 0};
  // Extents of the ellipse, with the slack that PixelRange's round-off may need.
  const float extent_x = std::sqrt(2.0f * r.reach * var_x) * 1.0001f + 0.001f;
  const float extent_y = std::sqrt(2.0f * r.reach * var_y) * 1.0001f + 0.001f;
  int32_t x0, x1, y0, y1;
  PixelRange(r.x, extent_x, scene.width, &x0, &x1);
  PixelRange(r.y, extent_y, scene.height, &y0, &y1);
  if (!(x0 < x1 && y0 < y1)) return box;
  box.x = x0 / kTile;
  box.y = y0 / kTile;
  box.width = (x1 - 1) / kTile - box.x + 1;
  box.height = (y1 - 1) / kTile - box.y + 1;
  const int64_t area = static_cast<int64_t>(box.width) * box.height;
  if (area > 64) return box;
  if (box.width == 1 || box.height == 1) {
    box.bits = area == 64 ? ~uint64_t{0} : (uint64_t{1} << area) - 1;
    return box;
  }
  for (int k = 0; k < area; ++k) {
    const float left = (box.x + k % box.width) * kTile + 0.5f - r.x;
    const float top = (box.y + k / box.width) * kTile + 0.5f - r.y;
    const float power = LeastPower(r, left, left + (kTile - 1), top, top + (kTile - 1));
    if (!(power > r.reach)) box.bits |= uint64_t{1} << k;
  }
  return box;
}

inline void ProjectChunk(const Scene& scene, const View<F>& view, int64_t begin,
                         int64_t end, Bins* bins) {
  for (int64_t first = begin; first < end; first += kLanes) {
    const Gaussian<F> g = LoadGaussians(scene, first, end);
    Projection<F> projection;
    const Splat<F> s = Project(g, view, scene.antialiased, &projection);
    float x[kLanes], y[kLanes], z[kLanes], a[kLanes], b[kLanes], c[kLanes];
    float opacity[kLanes], var_x[kLanes], var_y[kLanes];
    Store(x, s.x);
    Store(y, s.y);
    Store(z, s.z);
    Store(a, s.a);
    Store(b, s.b);
    Store(c, s.c);
    Store(opacity, s.opacity);
    Store(var_x, projection.var_x + Set(kBlur));
    Store(var_y, projection.var_y + Set(kBlur));
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - first));
    for (int l = 0; l < lanes; ++l) {
      TileBox& box = bins->boxes[first + l];
      box = {0, 0, 0, 0, 0};
      Record& r = bins->records[first + l];
      if (scene.offsets != nullptr) {
        x[l] += scene.offsets[2 * (first + l)];
        y[l] += scene.offsets[2 * (first + l) + 1];
      }
      const Splat<float> lane = {x[l], y[l], z[l], a[l], b[l], c[l], opacity[l]};
      if (MakeRecord(lane, var_x[l], var_y[l], scene.intrinsics, scene.near, &r)) {
        box = FindTiles(scene, r, var_x[l], var_y[l]);
      }
    }
  }
}

// Sorts by the upper halves, stably: three passes of 11 bits.
inline void SortByDepth(uint64_t* values, uint64_t* swap, int64_t size) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  uint32_t counts[3][kBuckets] = {};
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t key = static_cast<uint32_t>(values[i] >> 32);
    for (int pass = 0; pass < 3; ++pass) {
      ++counts[pass][key >> (pass * kBits) & (kBuckets - 1)];
    }
  }
  uint64_t *from = values, *to = swap;
  for (int pass = 0; pass < 3; ++pass) {
    uint32_t sum = 0;
    for (uint32_t& count : counts[pass]) {
      const uint32_t here = count;
      count = sum;
      sum += here;
    }
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t key = static_cast<uint32_t>(from[i] >> 32);
      to[counts[pass][key >> (pass * kBits) & (kBuckets - 1)]++] = from[i];
    }
    std::swap(from, to);
  }
  std::copy(from, from + size, values);
}

template <typename Visit>
inline void ForEachTile(const TileBox& box, int64_t tiles_x, const Visit& visit) {
  const int64_t area = static_cast<int64_t>(box.width) * box.height;
  if (area <= 64) {
    for (uint64_t bits = box.bits; bits != 0; bits &= bits - 1) {
      const int k = __builtin_ctzll(bits);
      visit((box.y + k / box.width) * tiles_x + box.x + k % box.width);
    }
    return;
  }
  for (int64_t y = box.y; y < box.y + box.height; ++y) {
    for (int64_t x = box.x; x < box.x + box.width; ++x) visit(y * tiles_x + x);
  }
}

// Counting sort by tile of the Gaussians in depth order. The order is cut into
// chunks that count, then write, independently; their number changes nothing.
inline void FillTiles(Parallel& parallel, int64_t tiles_x, int64_t num_tiles,
                      Bins* bins) {
  const int64_t n = bins->num_visible;
  const int64_t chunk = std::max<int64_t>(2048, (n + 15) / 16);
  const int64_t num_chunks = std::max<int64_t>(1, (n + chunk - 1) / chunk);
  uint32_t* cursors = bins->cursors.Reserve(num_chunks * num_tiles);
  const auto for_each = [&](int64_t k, const auto& visit) {
    const int64_t end = std::min(n, (k + 1) * chunk);
    for (int64_t i = k * chunk; i < end; ++i) {
      const int64_t soon = std::min(i + kAhead, end - 1);
      const auto gaussian = static_cast<uint32_t>(bins->order[soon]);
      __builtin_prefetch(&bins->boxes[gaussian]);
      __builtin_prefetch(&bins->slots[gaussian]);
      visit(static_cast<uint32_t>(bins->order[i]));
    }
  };
  parallel.For(num_chunks, [&](int64_t k, int64_t) {
    uint32_t* counts = cursors + k * num_tiles;
    std::fill(counts, counts + num_tiles, 0);
    for_each(k, [&](uint32_t gaussian) {
      ForEachTile(bins->boxes[gaussian], tiles_x, [&](int64_t tile) { ++counts[tile]; });
    });
  });
  uint32_t* begin = bins->tile_begin.Reserve(num_tiles + 1);
  uint32_t sum = 0;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    begin[tile] = sum;
    for (int64_t k = 0; k < num_chunks; ++k) {
      uint32_t& cursor = cursors[k * num_tiles + tile];
      const uint32_t count = cursor;
      cursor = sum;
      sum += count;
    }
  }
  begin[num_tiles] = sum;
  TileEntry* entries = bins->entries.Reserve(sum);
  parallel.For(num_chunks, [&](int64_t k, int64_t) {
    uint32_t* cursor = cursors + k * num_tiles;
    for_each(k, [&](uint32_t gaussian) {
      uint32_t slot = bins->slots[gaussian];
      ForEachTile(bins->boxes[gaussian], tiles_x, [&](int64_t tile) {
        entries[cursor[tile]++] = {gaussian, slot++};
      });
    });
  });
}

// Throws std::bad_alloc if there are more pairs than memory, or than 2^32.
inline void FillBins(Parallel& parallel, const Scene& scene, Bins* bins) {
  StageClock clock;
  const int64_t n = scene.num_gaussians;
  const int64_t num_tiles = scene.tiles_x() * scene.tiles_y();
  bins->records.Reserve(n);
  bins->boxes.Reserve(n);
  uint32_t* slots = bins->slots.Reserve(n + 1);
  uint64_t* order = bins->order.Reserve(n);
  const View<F> view =
      MakeView(scene.camera, scene.intrinsics, scene.width, scene.height);
  parallel.For((n + kChunk - 1) / kChunk, [&](int64_t chunk, int64_t) {
    const int64_t begin = chunk * kChunk;
    ProjectChunk(scene, view, begin, std::min(n, begin + kChunk), bins);
  });
  clock.Lap(kProject);
  uint64_t num_pairs = 0;
  int64_t num_visible = 0;
  for (int64_t i = 0; i < n; ++i) {
    slots[i] = static_cast<uint32_t>(num_pairs);
    const uint32_t count = CountTiles(bins->boxes[i]);
    if (count == 0) continue;
    num_pairs += count;
    const uint64_t depth = FloatBits(bins->records[i].z);  // In order: all are positive.
    order[num_visible++] = depth << 32 | static_cast<uint32_t>(i);
    if (num_pairs > UINT32_MAX) throw std::bad_alloc();
  }
  slots[n] = static_cast<uint32_t>(num_pairs);
  bins->num_visible = num_visible;
  SortByDepth(order, bins->order_swap.Reserve(num_visible), num_visible);
  clock.Lap(kSort);
  FillTiles(parallel, scene.tiles_x(), num_tiles, bins);
  clock.Lap(kBin);
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_BINS_H_
