// Mesh rasterizer for CPUs: the nearest face under every pixel centre.
//
// The image is cut into bands of rows, and each band is drawn by one thread, which
// looks for the faces that reach it in ascending order: a later face replaces an
// earlier one only if it is strictly nearer. Weights and depth of the pixels are a
// kernel of their own.

#include <algorithm>
#include <limits>

#include "batch.h"
#include "mesh_faces.h"
#include "mesh_weights.h"
#include "parallel.h"
#include "scratch.h"
#include "simd_doubles.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBandRows = 32;
constexpr int64_t kFacesPerTask = 1024;  // A multiple of kLanes.
constexpr int kWideBox = 6 * kDoubles;  // Columns; see DrawFace.

struct MeshWorkspace {
  Scratch<float> first_row, last_row;  // Per face.
  Scratch<float> depth;                // Of a band, per worker.
  Scratch<int32_t> face;               // The same.
};

Pool<MeshWorkspace>& MeshWorkspaces() {
  static auto* pool = new Pool<MeshWorkspace>;  // Never destroyed: threads outlive us.
  return *pool;
}

// Rows of the image while they are drawn; `stride` leaves room for a register behind
// each.
struct Band {
  int64_t row_begin, row_end, stride;
  float* depth;
  int32_t* face;
};

// What drawing needs of some faces within a band.
struct Batch {
  // Edge i lies opposite corner i, its value is >= bias inside. Values at the first
  // pixel, and how they grow from one pixel to the next.
  double edge[3][kDoubles], right[3][kDoubles], down[3][kDoubles], bias[3][kDoubles];
  double inverse_area[kDoubles];  // Of the sum of the three edge values.
  double z[3][kDoubles], inverse_z[3][kDoubles];
  // The bounding box; rows count from the band's first.
  double column[kDoubles], columns[kDoubles], row[kDoubles], rows[kDoubles];
};

void SetUpBatch(const Faces& f, const Band& band, Batch* batch) {
  const D none = SetDoubles(0.0), one = SetDoubles(1.0);
  const D half = SetDoubles(kSubpixels / 2), pixel = SetDoubles(kSubpixels);
  const D band_begin = SetDoubles(static_cast<double>(band.row_begin));
  const D band_last = SetDoubles(static_cast<double>(band.row_end - 1));
  const D row = Max(f.row_begin, band_begin);
  StoreDoubles(batch->column, f.column_begin);
  StoreDoubles(batch->columns, f.column_end - f.column_begin + one);
  StoreDoubles(batch->row, row - band_begin);
  StoreDoubles(batch->rows, Min(f.row_end, band_last) - row + one);
  const D x = f.column_begin * pixel + half, y = row * pixel + half;
  const D sign = Select(Less(none, f.area), one, none - one);
  StoreDoubles(batch->inverse_area, one / (f.area * sign));
  for (int i = 0; i < 3; ++i) {
    const int from = (i + 1) % 3, to = (i + 2) % 3;
    const D dx = sign * (f.x[to] - f.x[from]), dy = sign * (f.y[to] - f.y[from]);
    StoreDoubles(batch->edge[i], dx * (y - f.y[from]) - dy * (x - f.x[from]));
    StoreDoubles(batch->right[i], none - dy * pixel);
    StoreDoubles(batch->down[i], dx * pixel);
    // Pixels on an edge belong to the face below or to the right of it.
    const D level = Select(Less(none, dx), none, one);
    const D falling = Select(Less(none, dy), one, level);
    StoreDoubles(batch->bias[i], Select(Less(dy, none), none, falling));
    StoreDoubles(batch->z[i], f.z[i]);
    StoreDoubles(batch->inverse_z[i], one / f.z[i]);
  }
}

// Draws number `n` of a batch, column of registers by column. `kFlat` faces have the same
// depth at all corners, and therefore everywhere: rounding to float takes away what
// doubles leave of a difference. In `kWide` boxes, registers that the face misses are
// skipped; in others, drawing them in vain costs less than a mispredicted branch.
template <bool kFlat, bool kWide>
void DrawFace(const Batch& batch, int n, int32_t id, const Band& band) {
  D strip[3], across[3], down[3], bias[3], inverse_z[3];
  double lane[kDoubles];
  for (int k = 0; k < kDoubles; ++k) lane[k] = k;
  D lanes;
  std::memcpy(&lanes, lane, sizeof(lanes));
  for (int i = 0; i < 3; ++i) {
    const D right = SetDoubles(batch.right[i][n]);
    strip[i] = SetDoubles(batch.edge[i][n]) + lanes * right;
    across[i] = right * SetDoubles(kDoubles);
    down[i] = SetDoubles(batch.down[i][n]);
    bias[i] = SetDoubles(batch.bias[i][n]);
    inverse_z[i] = SetDoubles(batch.inverse_z[i][n]);
  }
  const D inverse_area = SetDoubles(batch.inverse_area[n]), one = SetDoubles(1.0);
  const int columns = static_cast<int>(batch.columns[n]);
  const int rows = static_cast<int>(batch.rows[n]);
  HalfF z = SetHalf(static_cast<float>(batch.z[0][n]));
  int64_t start = static_cast<int64_t>(batch.row[n]) * band.stride +
                  static_cast<int64_t>(batch.column[n]);
  for (int column = 0; column < columns; column += kDoubles, start += kDoubles) {
    D edge[3] = {strip[0], strip[1], strip[2]};
    float* depth = band.depth + start;
    int32_t* face = band.face + start;
    for (int row = 0; row < rows; ++row) {
      const DoubleMask covered =
          And(And(LessEqual(bias[0], edge[0]), LessEqual(bias[1], edge[1])),
              LessEqual(bias[2], edge[2]));
      if (!kWide || Any(covered)) {
        if (!kFlat) {
          const D inverse = (edge[0] * inverse_z[0] + edge[1] * inverse_z[1] +
                             edge[2] * inverse_z[2]) *
                            inverse_area;
          z = ToFloats(one / inverse);
        }
        const HalfMask nearer = And(Narrow(covered), Less(z, LoadHalf(depth)));
        StoreWhere(nearer, depth, z);
        StoreWhere(nearer, face, id);
      }
      for (int i = 0; i < 3; ++i) edge[i] = edge[i] + down[i];
      depth += band.stride;
      face += band.stride;
    }
    for (int i = 0; i < 3; ++i) strip[i] = strip[i] + across[i];
  }
}

// Draws `count` faces, in the order of `ids`, which names none behind them.
void DrawFaces(const Mesh& mesh, const int32_t ids[kDoubles], int count, int64_t width,
               int64_t height, const Band& band) {
  Batch batch;
  SetUpBatch(SetUpFaces(mesh, ids, width, height), band, &batch);
  for (int n = 0; n < count; ++n) {
    const bool wide = batch.columns[n] > kWideBox;
    if (batch.z[0][n] == batch.z[1][n] && batch.z[0][n] == batch.z[2][n]) {
      (wide ? DrawFace<true, true> : DrawFace<true, false>)(batch, n, ids[n], band);
    } else {
      (wide ? DrawFace<false, true> : DrawFace<false, false>)(batch, n, ids[n], band);
    }
  }
}

// Rows that faces [begin, end) reach; none of those which are not drawn. Fills whole
// registers.
void FindRows(const Mesh& mesh, int64_t begin, int64_t end, int64_t width,
              int64_t height, float* first_row, float* last_row) {
  const D nowhere = SetDoubles(1e9), none = SetDoubles(-1.0);
  for (int64_t face = begin; face < end; face += kDoubles) {
    int32_t ids[kDoubles];
    for (int k = 0; k < kDoubles; ++k) ids[k] = static_cast<int32_t>(face + k);
    const Faces f = SetUpFaces(mesh, ids, width, height);
    StoreHalf(first_row + face, ToFloats(Select(f.drawn, f.row_begin, nowhere)));
    StoreHalf(last_row + face, ToFloats(Select(f.drawn, f.row_end, none)));
  }
}

// Draws what reaches a band. Every band looks at the rows of all faces, a register at a
// time: that costs less than making lists, which one thread would have to do.
void DrawBand(const Mesh& mesh, const float* first_row, const float* last_row,
              int64_t width, int64_t height, const Band& band) {
  const F band_begin = Set(static_cast<float>(band.row_begin));
  const F band_last = Set(static_cast<float>(band.row_end - 1));
  int32_t ids[kDoubles];
  int count = 0;
  for (int64_t face = 0; face < mesh.num_faces; face += kLanes) {
    uint32_t reach = Bits(And(LessEqual(Load(first_row + face), band_last),
                              LessEqual(band_begin, Load(last_row + face))));
    for (; reach != 0; reach &= reach - 1) {
      ids[count++] = static_cast<int32_t>(face + __builtin_ctz(reach));
      if (count < kDoubles) continue;
      DrawFaces(mesh, ids, count, width, height, band);
      count = 0;
    }
  }
  std::fill(ids + count, ids + kDoubles, -1);
  DrawFaces(mesh, ids, count, width, height, band);
}

void Rasterize(Parallel& parallel, const Mesh& mesh, int64_t width, int64_t height,
               MeshWorkspace& work, int32_t* face) {
  const int64_t num_tasks = (mesh.num_faces + kFacesPerTask - 1) / kFacesPerTask;
  float* first_row = work.first_row.Reserve(mesh.num_faces + kLanes);
  float* last_row = work.last_row.Reserve(mesh.num_faces + kLanes);
  parallel.For(num_tasks, [&](int64_t task, int64_t) {
    const int64_t begin = task * kFacesPerTask;
    // Up to a whole register of DrawBand's.
    const int64_t end = (mesh.num_faces + kLanes - 1) / kLanes * kLanes;
    FindRows(mesh, begin, std::min(end, begin + kFacesPerTask), width, height, first_row,
             last_row);
  });
  const int64_t stride = width + kDoubles, area = kBandRows * stride;
  float* depths = work.depth.Reserve(parallel.num_workers() * area);
  int32_t* ids = work.face.Reserve(parallel.num_workers() * area);
  parallel.For((height + kBandRows - 1) / kBandRows, [&](int64_t index, int64_t worker) {
    const int64_t row_begin = index * kBandRows;
    const Band band = {row_begin, std::min(height, row_begin + kBandRows), stride,
                       depths + worker * area, ids + worker * area};
    std::fill_n(band.depth, area, std::numeric_limits<float>::infinity());
    std::fill_n(band.face, area, -1);
    DrawBand(mesh, first_row, last_row, width, height, band);
    for (int64_t row = 0; row < band.row_end - row_begin; ++row) {
      std::copy_n(band.face + row * stride, width, face + (row_begin + row) * width);
    }
  });
}

void InterpolateAll(Parallel& parallel, const Mesh& mesh, int64_t width, int64_t height,
                    const int32_t* face, float* weights, float* depth) {
  parallel.For((height + kBandRows - 1) / kBandRows, [&](int64_t band, int64_t) {
    const int64_t row_end = std::min(height, (band + 1) * kBandRows);
    for (int64_t row = band * kBandRows; row < row_end; ++row) {
      InterpolateRow(mesh, width, row, face + row * width, weights + 3 * row * width,
                     depth + row * width);
    }
  });
}

using Points = ffi::Buffer<ffi::F32>;
using Indices = ffi::Buffer<ffi::S32>;

// Points (..., p, 3), faces (..., f, 3), images (..., h, w) of equal rank; leading axes
// of operands are those of the results, or 1.
bool Fits(const Points& points, const Indices& faces, Dimensions image) {
  if (image.size() < 2) return false;
  const Dimensions lead = image.first(image.size() - 2);
  return Broadcasts(points.dimensions(), lead, 2) && points.dimensions().back() == 3 &&
         Broadcasts(faces.dimensions(), lead, 2) && faces.dimensions().back() == 3;
}

ffi::Error Misfit() {
  return ffi::Error::InvalidArgument(
      "mesh: expected points (..., p, 3), faces (..., f, 3) and images (..., h, w) of "
      "equal rank; see kernels/README.md");
}

ffi::Error MeshOutOfMemory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "mesh: out of memory");
}

int64_t BatchSize(Dimensions image) { return Product(image.first(image.size() - 2)); }

// Item number `i` of the batch of images.
template <typename Array>
auto ItemAt(const Array& array, int64_t i, Dimensions image) {
  return array.typed_data() + BroadcastOffset(i, image, array.dimensions(), 2);
}

Mesh MeshAt(const Points& points, const Indices& faces, int64_t i, Dimensions image) {
  const size_t axis = image.size() - 2;
  return {ItemAt(points, i, image), points.dimensions()[axis], ItemAt(faces, i, image),
          faces.dimensions()[axis]};
}

ffi::Error MeshRasterize(ffi::ThreadPool pool, Points points, Indices faces,
                         ffi::ResultBuffer<ffi::S32> face) {
  const Dimensions image = face->dimensions();
  const size_t rank = image.size();
  if (!Fits(points, faces, image)) return Misfit();
  const int64_t height = image[rank - 2], width = image[rank - 1];
  const int64_t batch = BatchSize(image);
  if (batch * height * width == 0) return ffi::Error::Success();
  try {
    Parallel parallel(pool);
    Pool<MeshWorkspace>::Lease lease(MeshWorkspaces());
    for (int64_t i = 0; i < batch; ++i) {
      Rasterize(parallel, MeshAt(points, faces, i, image), width, height, *lease,
                face->typed_data() + i * height * width);
    }
  } catch (const std::bad_alloc&) {
    return MeshOutOfMemory();
  }
  return ffi::Error::Success();
}

ffi::Error MeshInterpolate(ffi::ThreadPool pool, Points points, Indices faces,
                           Indices face, ffi::ResultBuffer<ffi::F32> weights,
                           ffi::ResultBuffer<ffi::F32> depth) {
  const Dimensions image = depth->dimensions();
  const size_t rank = image.size();
  if (!Fits(points, faces, image) ||
      !Broadcasts(face.dimensions(), image.first(rank - 2), 2) ||
      weights->element_count() != 3 * depth->element_count()) {
    return Misfit();
  }
  const int64_t height = image[rank - 2], width = image[rank - 1];
  if (face.dimensions()[rank - 2] != height || face.dimensions()[rank - 1] != width) {
    return Misfit();
  }
  const int64_t pixels = height * width;
  const int64_t batch = pixels == 0 ? 0 : BatchSize(image);
  try {
    Parallel parallel(pool);
    for (int64_t i = 0; i < batch; ++i) {
      InterpolateAll(parallel, MeshAt(points, faces, i, image), width, height,
                     ItemAt(face, i, image), weights->typed_data() + 3 * i * pixels,
                     depth->typed_data() + i * pixels);
    }
  } catch (const std::bad_alloc&) {
    return MeshOutOfMemory();
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace geodiff

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(mesh_rasterize, geodiff::MeshRasterize,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mesh_interpolate, geodiff::MeshInterpolate,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
#pragma GCC visibility pop
