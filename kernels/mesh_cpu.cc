// Mesh rasterizer for CPUs: the nearest face under every pixel centre.
//
// The image is cut into bands of rows. Faces are binned into the bands that
// they touch, in ascending order, and each band is drawn by one thread, so a
// later face replaces an earlier one only if it is strictly nearer. Weights and
// depth of the pixels are a kernel of their own, which follows mesh_rasterizer.py
// term by term: its jnp gives the gradients.

#include <algorithm>
#include <limits>
#include <vector>

#include "batch.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"
#include "triangle.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBandRows = 16;
constexpr int64_t kFacesPerTask = 1024;
constexpr float kSliver = 1e-4f;  // Square pixels; as in mesh_rasterizer.py.

struct MeshWorkspace {
  Scratch<Triangle> triangles;
  Scratch<uint8_t> drawn;   // Per face.
  Scratch<int32_t> binned;  // Faces, band by band.
  Scratch<float> depth;     // Of a band, per worker.
  Scratch<int32_t> face;    // The same.
};

Pool<MeshWorkspace>& MeshWorkspaces() {
  static auto* pool = new Pool<MeshWorkspace>;  // Never destroyed: threads outlive us.
  return *pool;
}

// Rows of the image while they are drawn; `stride` leaves room for a vector behind each.
struct Band {
  int64_t row_begin, row_end, stride;
  float* depth;
  int32_t* face;
};

// Keeps the nearer of some pixels and of a face that covers them in part.
inline void KeepNearest(D inverse_depth, DoubleMask covered, int32_t id, float* depth,
                        int32_t* face) {
  const HalfF z = __builtin_convertvector(1.0 / inverse_depth, HalfF);
  const HalfF old_depth = LoadAs<HalfF>(depth);
  const HalfMask old_face = LoadAs<HalfMask>(face);
  const HalfMask nearer = __builtin_convertvector(covered, HalfMask) & (z < old_depth);
  const HalfF new_depth = nearer ? z : old_depth;
  const HalfMask new_face = nearer ? HalfMask{} + id : old_face;
  __builtin_memcpy(depth, &new_depth, sizeof(new_depth));
  __builtin_memcpy(face, &new_face, sizeof(new_face));
}

// Edge values are integers below 2^50: doubles hold them exactly.
void DrawFace(const Triangle& t, int32_t id, const Band& band) {
  const int64_t first = std::max<int64_t>(t.row_begin, band.row_begin);
  const int64_t last = std::min<int64_t>(t.row_end, band.row_end - 1);
  D row_start[3], right[3], down[3], bias[3];
  for (int i = 0; i < 3; ++i) {
    const double step = static_cast<double>(t.a[i] * kSubpixels);
    const double start = static_cast<double>(EdgeAt(t, i, t.column_begin, first));
    for (int k = 0; k < kDoubles; ++k) row_start[i][k] = start + k * step;
    right[i] = SetDoubles(kDoubles * step);
    down[i] = SetDoubles(static_cast<double>(t.b[i] * kSubpixels));
    bias[i] = SetDoubles(static_cast<double>(t.bias[i]));
  }
  float* depth = band.depth + (first - band.row_begin) * band.stride;
  int32_t* face = band.face + (first - band.row_begin) * band.stride;
  for (int64_t row = first; row <= last; ++row) {
    D edge[3] = {row_start[0], row_start[1], row_start[2]};
    bool inside = false;
    for (int64_t column = t.column_begin; column <= t.column_end; column += kDoubles) {
      const DoubleMask covered =
          (edge[0] >= bias[0]) & (edge[1] >= bias[1]) & (edge[2] >= bias[2]);
      if (Any(covered)) {
        KeepNearest(InverseDepth(t, edge), covered, id, depth + column, face + column);
        inside = true;
      } else if (inside) {
        break;
      }
      for (int i = 0; i < 3; ++i) edge[i] += right[i];
    }
    for (int i = 0; i < 3; ++i) row_start[i] += down[i];
    depth += band.stride;
    face += band.stride;
  }
}

// The corners of a face; false if it names a point that is not there.
bool FindCorners(const float* points, int64_t num_points, const int32_t* face,
                 const float* corners[3]) {
  for (int i = 0; i < 3; ++i) {
    if (face[i] < 0 || face[i] >= num_points) return false;
    corners[i] = points + 3 * int64_t{face[i]};
  }
  return true;
}

void Rasterize(Parallel& parallel, const float* points, int64_t num_points,
               const int32_t* faces, int64_t num_faces, int64_t width, int64_t height,
               MeshWorkspace& work, int32_t* face) {
  const int64_t num_bands = (height + kBandRows - 1) / kBandRows;
  Triangle* triangles = work.triangles.Reserve(num_faces);
  uint8_t* drawn = work.drawn.Reserve(num_faces);
  const int64_t num_tasks = (num_faces + kFacesPerTask - 1) / kFacesPerTask;
  parallel.For(num_tasks, [&](int64_t task, int64_t) {
    const int64_t end = std::min(num_faces, (task + 1) * kFacesPerTask);
    for (int64_t f = task * kFacesPerTask; f < end; ++f) {
      const float* corners[3];
      drawn[f] = FindCorners(points, num_points, faces + 3 * f, corners) &&
                 SetUpTriangle(corners, width, height, &triangles[f]);
    }
  });
  std::vector<int64_t> begin(num_bands + 1, 0);
  for (int64_t f = 0; f < num_faces; ++f) {
    if (!drawn[f]) continue;
    for (int64_t band = triangles[f].row_begin / kBandRows;
         band <= triangles[f].row_end / kBandRows; ++band) {
      ++begin[band + 1];
    }
  }
  for (int64_t band = 0; band < num_bands; ++band) begin[band + 1] += begin[band];
  int32_t* binned = work.binned.Reserve(begin[num_bands]);
  std::vector<int64_t> cursor(begin.begin(), begin.end() - 1);
  for (int64_t f = 0; f < num_faces; ++f) {
    if (!drawn[f]) continue;
    for (int64_t band = triangles[f].row_begin / kBandRows;
         band <= triangles[f].row_end / kBandRows; ++band) {
      binned[cursor[band]++] = static_cast<int32_t>(f);
    }
  }
  const int64_t stride = width + kDoubles, area = kBandRows * stride;
  float* depths = work.depth.Reserve(parallel.num_workers() * area);
  int32_t* ids = work.face.Reserve(parallel.num_workers() * area);
  parallel.For(num_bands, [&](int64_t index, int64_t worker) {
    const int64_t row_begin = index * kBandRows;
    const Band band = {row_begin, std::min(height, row_begin + kBandRows), stride,
                       depths + worker * area, ids + worker * area};
    std::fill_n(band.depth, area, std::numeric_limits<float>::infinity());
    std::fill_n(band.face, area, -1);
    for (int64_t k = begin[index]; k < begin[index + 1]; ++k) {
      DrawFace(triangles[binned[k]], binned[k], band);
    }
    for (int64_t row = band.row_begin; row < band.row_end; ++row) {
      std::copy_n(band.face + (row - row_begin) * stride, width, face + row * width);
    }
  });
}

// Perspective-correct weights of the corners at pixel centres, and depth.
void Interpolate(const F corners[3][3], F centre_x, F centre_y, F weights[3], F* depth) {
  F x[3], y[3], screen[3];
  for (int i = 0; i < 3; ++i) {
    x[i] = corners[i][0] - centre_x;
    y[i] = corners[i][1] - centre_y;
  }
  F area = Set(0.0f);
  for (int i = 0; i < 3; ++i) {
    const int next = (i + 1) % 3, last = (i + 2) % 3;
    screen[i] = x[next] * y[last] - x[last] * y[next];
    area = area + screen[i];
  }
  const F over_area = Set(1.0f) / area;
  const Mask broad = LessEqual(Set(kSliver), Max(area, Set(0.0f) - area));
  F total = Set(0.0f), screen_total = Set(0.0f);
  for (int i = 0; i < 3; ++i) {
    const F share = Min(Max(screen[i] * over_area, Set(0.0f)), Set(1.0f));
    screen[i] = Select(broad, share, Set(1.0f / 3.0f));
    weights[i] = screen[i] / corners[i][2];
    total = total + weights[i];
    screen_total = screen_total + screen[i];
  }
  const F over_total = Set(1.0f) / total;
  for (int i = 0; i < 3; ++i) weights[i] = weights[i] * over_total;
  *depth = screen_total * over_total;
}

// Pixels of one row, for the faces that Rasterize found in them; zero weights, infinite
// depth where there is none.
void InterpolateRow(const float* points, int64_t num_points, const int32_t* faces,
                    int64_t num_faces, int64_t width, int64_t row, const int32_t* face,
                    float* weights, float* depth) {
  const float nowhere[3] = {0.0f, 0.0f, 1.0f};
  float lane[kLanes];
  for (int k = 0; k < kLanes; ++k) lane[k] = k + 0.5f;
  for (int64_t column = 0; column < width; column += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, width - column);
    int32_t nearest[kLanes];
    std::fill_n(nearest, kLanes, -1);
    std::copy_n(face + column, lanes, nearest);
    if (*std::max_element(nearest, nearest + kLanes) < 0) {
      std::fill_n(weights + 3 * column, 3 * lanes, 0.0f);
      std::fill_n(depth + column, lanes, INFINITY);
      continue;
    }
    float corner[3][3][kLanes], seen[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) {
      const int64_t f = nearest[k];
      const float* corners[3] = {nowhere, nowhere, nowhere};
      const bool found = f >= 0 && f < num_faces &&
                         FindCorners(points, num_points, faces + 3 * f, corners);
      seen[k] = found ? 1.0f : 0.0f;
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) corner[i][j][k] = corners[i][j];
      }
    }
    F gathered[3][3], weight[3], z;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) gathered[i][j] = Load(corner[i][j]);
    }
    Interpolate(gathered, Set(column) + Load(lane), Set(row + 0.5f), weight, &z);
    const Mask something = Less(Set(0.0f), Load(seen));
    float found_weight[3][kLanes], found_depth[kLanes];
    for (int i = 0; i < 3; ++i) {
      Store(found_weight[i], Select(something, weight[i], Set(0.0f)));
    }
    Store(found_depth, Select(something, z, Set(INFINITY)));
    for (int64_t k = 0; k < lanes; ++k) {
      for (int i = 0; i < 3; ++i) weights[3 * (column + k) + i] = found_weight[i][k];
    }
    std::copy_n(found_depth, lanes, depth + column);
  }
}

void InterpolateAll(Parallel& parallel, const float* points, int64_t num_points,
                    const int32_t* faces, int64_t num_faces, int64_t width,
                    int64_t height, const int32_t* face, float* weights, float* depth) {
  parallel.For((height + kBandRows - 1) / kBandRows, [&](int64_t band, int64_t) {
    const int64_t row_end = std::min(height, (band + 1) * kBandRows);
    for (int64_t row = band * kBandRows; row < row_end; ++row) {
      InterpolateRow(points, num_points, faces, num_faces, width, row,
                     face + row * width, weights + 3 * row * width, depth + row * width);
    }
  });
}

using Points = ffi::Buffer<ffi::F32>;
using Indices = ffi::Buffer<ffi::S32>;

// Points (..., p, 3), faces (..., f, 3), images (..., h, w) of equal rank; leading axes
// of operands are those of the results, or 1.
bool Fits(const Points& points, const Indices& faces, size_t rank) {
  return rank >= 2 && points.dimensions().size() == rank &&
         faces.dimensions().size() == rank && points.dimensions()[rank - 1] == 3 &&
         faces.dimensions()[rank - 1] == 3;
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

ffi::Error MeshRasterize(ffi::ThreadPool pool, Points points, Indices faces,
                         ffi::ResultBuffer<ffi::S32> face) {
  const Dimensions image = face->dimensions();
  const size_t rank = image.size();
  if (!Fits(points, faces, rank)) return Misfit();
  const int64_t height = image[rank - 2], width = image[rank - 1];
  const int64_t num_points = points.dimensions()[rank - 2];
  const int64_t num_faces = faces.dimensions()[rank - 2];
  const int64_t batch = BatchSize(image);
  if (batch * height * width == 0) return ffi::Error::Success();
  try {
    Parallel parallel(pool);
    Pool<MeshWorkspace>::Lease lease(MeshWorkspaces());
    for (int64_t i = 0; i < batch; ++i) {
      Rasterize(parallel, ItemAt(points, i, image), num_points, ItemAt(faces, i, image),
                num_faces, width, height, *lease,
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
  if (!Fits(points, faces, rank) || face.dimensions().size() != rank ||
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
      InterpolateAll(parallel, ItemAt(points, i, image), points.dimensions()[rank - 2],
                     ItemAt(faces, i, image), faces.dimensions()[rank - 2], width, height,
                     ItemAt(face, i, image),
                     weights->typed_data() + 3 * i * pixels,
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
