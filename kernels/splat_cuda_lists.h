// Projection, depth sort and tile lists on the device.
//
// Pairs are sorted by depth, then their slots by tile, stably. One sort of slots by
// (tile, depth) would move 12 bytes of every slot through ceil((32 + tile bits) / 8)
// = 6 passes; this moves 8 bytes of every pair through 4 and of every slot through 2,
// well under half as much where a Gaussian meets two tiles, for as many launches.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_CUDA_LISTS_H_
#define GEODIFF_JAX_KERNELS_SPLAT_CUDA_LISTS_H_

#include "device_sort.h"
#include "splat_cuda.h"
#include "splat_spans.h"

namespace geodiff {

constexpr uint32_t kNoDepth = 0x7fffffffu;  // Beyond every depth; 31 bits.
constexpr int kDepthBits = 31;
constexpr uint32_t kNoTile = 0xffffffffu;
// Pairs with more slots have their tiles listed by a whole warp (ours).
constexpr uint32_t kOwnSlots = 32;

// Scratch of FillLists.
struct ListScratch {
  uint32_t *keys, *swapped_keys, *swapped;  // Of pairs, then of slots.
  uint32_t *order, *ends;                   // Pairs by depth; end of their slots.
  float* determinants;                      // Of the pairs' conics.
  void* sort;
  int64_t sort_bytes, bytes;

  ListScratch(void* data, int64_t pairs, int64_t capacity) {
    Pieces pieces(data);
    const int64_t most = pairs > capacity ? pairs : capacity;
    keys = pieces.Take<uint32_t>(most);
    swapped_keys = pieces.Take<uint32_t>(most);
    swapped = pieces.Take<uint32_t>(most);
    order = pieces.Take<uint32_t>(pairs);
    ends = pieces.Take<uint32_t>(pairs);
    determinants = pieces.Take<float>(pairs);
    sort_bytes = SortScratch(most);
    sort = pieces.Take<char>(sort_bytes);
    bytes = pieces.used();
  }
};

__device__ inline Gaussian<float> LoadGaussian(const SplatProblem& p, int64_t set,
                                               int64_t gaussian) {
  const float* mean = p.means.At(set) + 3 * gaussian;
  const float* quaternion = p.quaternions.At(set) + 4 * gaussian;
  const float* scale = p.scales.At(set) + 3 * gaussian;
  Gaussian<float> g;
  for (int k = 0; k < 3; ++k) g.mean[k] = mean[k];
  for (int k = 0; k < 4; ++k) g.quaternion[k] = quaternion[k];
  for (int k = 0; k < 3; ++k) g.scale[k] = scale[k];
  g.opacity = p.opacities.At(set)[gaussian];
  return g;
}

__device__ inline const float* Intrinsics(const SplatProblem& p, int64_t view) {
  return p.intrinsics.At(view / p.num_cameras) + view % p.num_cameras * 4;
}

__device__ inline View<float> LoadView(const SplatProblem& p, int64_t view) {
  return MakeView(p.cameras.At(view / p.num_cameras) + view % p.num_cameras * 12,
                  Intrinsics(p, view), p.width, p.height);
}

// A thread per pair.
__global__ void ProjectPairs(SplatProblem p, SplatLists lists, ListScratch scratch) {
  const int64_t pair = ThreadIndex();
  if (pair >= p.num_pairs()) return;
  const int64_t view = pair / p.num_gaussians;
  const Gaussian<float> g =
      LoadGaussian(p, view / p.num_cameras, pair % p.num_gaussians);
  Projection<float> projection;
  Splat<float> splat = Project(g, LoadView(p, view), p.antialiased, &projection);
  if (p.has_offsets) {
    const float* offset = p.offsets.At(view / p.num_cameras) +
                          2 * (pair % (p.num_cameras * p.num_gaussians));
    splat.x += offset[0];
    splat.y += offset[1];
  }
  Record record;
  uint32_t key = kNoDepth, count = 0;
  if (MakeRecord(splat, projection.var_x + kBlur, projection.var_y + kBlur,
                 Intrinsics(p, view), p.near, &record)) {
    const float determinant = projection.inverse_det;
    const TileSpan rows = TileRows(record, determinant, p.height);
    for (int32_t row = rows.begin; row < rows.end; ++row) {
      const TileSpan span = TileColumns(record, determinant, row, p.width, p.height);
      count += span.end - span.begin;
    }
    if (count > 0) {
      key = FloatBits(record.z);
      lists.records[pair] = record;
      scratch.determinants[pair] = determinant;
    }
  }
  scratch.keys[pair] = key;
  scratch.order[pair] = static_cast<uint32_t>(pair);
  lists.slots[2 * pair + 1] = count;
}

// Writes the slots of one row of tiles from `slot` on.
__device__ inline void WriteRow(const SplatLists& lists, const ListScratch& scratch,
                                uint32_t* slots, uint32_t pair, TileSpan span,
                                int64_t first_tile, int64_t slot) {
  for (int32_t x = span.begin; x < span.end; ++x, ++slot) {
    if (slot >= lists.capacity) return;
    scratch.keys[slot] = static_cast<uint32_t>(first_tile + x);
    lists.owners[slot] = pair;
    slots[slot] = static_cast<uint32_t>(slot);
  }
}

// A thread per pair, in order of depth; at least one thread per slot. `slots` gets the
// number of every slot, to be sorted by tile.
__global__ void ListTiles(SplatProblem p, SplatLists lists, ListScratch scratch,
                          uint32_t* slots, int32_t* num_wanted) {
  const int64_t index = ThreadIndex(), num_pairs = p.num_pairs();
  const int lane = threadIdx.x % kWarp;
  const uint32_t total = scratch.ends[num_pairs - 1];
  if (index < p.num_sets) {
    // Rounded up: more than a set's capacity if and only if the pool overflows.
    const int64_t mean = (int64_t{total} + p.num_sets - 1) / p.num_sets;
    num_wanted[index] = static_cast<int32_t>(Least(mean, int64_t{0x7fffffff}));
  }
  // What nobody claims sorts to the end.
  if (index < lists.capacity && index >= total) {
    scratch.keys[index] = kNoTile;
    slots[index] = 0;
    lists.owners[index] = 0;
  }
  uint32_t pair = 0, count = 0;
  int64_t first = 0;
  if (index < num_pairs) {
    pair = scratch.order[index];
    count = lists.slots[2 * pair + 1];
    first = int64_t{scratch.ends[index]} - count;
    lists.slots[2 * pair] = static_cast<uint32_t>(first);
  }
  if (count > 0 && count <= kOwnSlots) {
    const Record r = lists.records[pair];
    const float determinant = scratch.determinants[pair];
    const int64_t tiles = pair / p.num_gaussians * p.tiles_per_view();
    const TileSpan rows = TileRows(r, determinant, p.height);
    for (int32_t row = rows.begin; row < rows.end; ++row) {
      const TileSpan span = TileColumns(r, determinant, row, p.width, p.height);
      WriteRow(lists, scratch, slots, pair, span, tiles + row * p.tiles_x(), first);
      first += span.end - span.begin;
    }
  }
  unsigned large = __ballot_sync(kAllLanes, count > kOwnSlots);
  for (; large != 0; large &= large - 1) {
    const int owner = LowestBit(large);
    const uint32_t shared_pair = __shfl_sync(kAllLanes, pair, owner);
    const Record r = lists.records[shared_pair];
    const float determinant = scratch.determinants[shared_pair];
    const int64_t tiles = shared_pair / p.num_gaussians * p.tiles_per_view();
    const TileSpan rows = TileRows(r, determinant, p.height);
    // At most 2^31 slots fit, and what lies beyond them is not written.
    uint32_t slot = __shfl_sync(
        kAllLanes, static_cast<uint32_t>(Least(first, int64_t{0x7fffffff})), owner);
    for (int32_t base = rows.begin; base < rows.end; base += kWarp) {
      const int32_t row = base + lane;
      TileSpan span = {0, 0};
      if (row < rows.end) {
        span = TileColumns(r, determinant, row, p.width, p.height);
      }
      const uint32_t length = span.end - span.begin;
      uint32_t end = length;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const uint32_t before = __shfl_up_sync(kAllLanes, end, offset);
        if (lane >= offset) end += before;
      }
      WriteRow(lists, scratch, slots, shared_pair, span, tiles + row * p.tiles_x(),
               int64_t{slot} + end - length);
      slot += __shfl_sync(kAllLanes, end, kWarp - 1);
    }
  }
}

// A thread per tile and one more: the first of the sorted keys that is not below it.
__global__ void FindTiles(int64_t num_tiles, const uint32_t* keys, int64_t capacity,
                          uint32_t* tile_begin) {
  const int64_t tile = ThreadIndex();
  if (tile > num_tiles) return;
  int64_t low = 0, high = capacity;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < tile) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  tile_begin[tile] = static_cast<uint32_t>(low);
}

inline int TileBits(int64_t num_tiles) {
  int bits = 1;
  while ((int64_t{1} << bits) <= num_tiles) ++bits;  // The highest key is no tile's.
  return bits;
}

// num_wanted (num_sets) receives the number of slots that a set asks for, on average.
inline xla::ffi::Error FillLists(const SplatProblem& p, const SplatLists& lists,
                                 const ListScratch& scratch, int32_t* num_wanted,
                                 Stream stream) {
  const int64_t pairs = p.num_pairs(), tiles = p.num_tiles();
  if (pairs == 0) {
    Fill(num_wanted, 0, p.num_sets * sizeof(int32_t), stream);
    Fill(lists.tile_begin, 0, (tiles + 1) * sizeof(uint32_t), stream);
    return LastError();
  }
  Launch(ProjectPairs, dim3(BlocksFor(pairs)), kThreads, stream, p, lists, scratch);
  Buffers keys = {scratch.keys, scratch.swapped_keys};
  Buffers order = {scratch.order, scratch.swapped};
  xla::ffi::Error error = SortPairs(scratch.sort, scratch.sort_bytes, pairs, kDepthBits,
                                    &keys, &order, stream);
  if (error.failure()) return error;
  if (order.current != scratch.order) {
    Copy(scratch.order, order.current, pairs * sizeof(uint32_t), stream);
  }
  error = SumCounts(scratch.sort, scratch.sort_bytes, pairs,
                    {lists.slots, scratch.order}, scratch.ends, stream);
  if (error.failure()) return error;
  const int bits = TileBits(tiles);
  // An even number of passes ends where it began.
  Buffers entries = {lists.entries, scratch.swapped};
  if ((bits + 7) / 8 % 2 == 1) std::swap(entries.current, entries.other);
  const int64_t threads = pairs > lists.capacity ? pairs : lists.capacity;
  Launch(ListTiles, dim3(BlocksFor(threads)), kThreads, stream, p, lists, scratch,
         entries.current, num_wanted);
  keys = {scratch.keys, scratch.swapped_keys};
  error = SortPairs(scratch.sort, scratch.sort_bytes, lists.capacity, bits, &keys,
                    &entries, stream);
  if (error.failure()) return error;
  if (entries.current != lists.entries) {
    Copy(lists.entries, entries.current, lists.capacity * sizeof(uint32_t), stream);
  }
  Launch(FindTiles, dim3(BlocksFor(tiles + 1)), kThreads, stream, tiles,
         const_cast<const uint32_t*>(keys.current), lists.capacity, lists.tile_begin);
  return LastError();
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_CUDA_LISTS_H_
