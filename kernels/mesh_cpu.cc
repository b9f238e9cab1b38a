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
};

Pool<MeshWorkspace>& MeshWorkspaces() {
  static auto* pool = new Pool<MeshWorkspace>;  // Never destroyed: threads outlive us.
  return *pool;
}

void DrawBand(const Triangle* triangles, const int32_t* faces, int64_t num_faces,
              int64_t width, int64_t row_begin, int64_t row_end, float* depth,
              int32_t* face) {
  for (int64_t k = 0; k < num_faces; ++k) {
    const int32_t id = faces[k];
    const Triangle& t = triangles[id];
    const int64_t first = std::max<int64_t>(t.row_begin, row_begin);
    const int64_t last = std::min<int64_t>(t.row_end, row_end - 1);
    const int64_t x = t.column_begin * kSubpixels + kSubpixels / 2;
    for (int64_t row = first; row <= last; ++row) {
      const int64_t y = row * kSubpixels + kSubpixels / 2;
      int64_t edge[3];
      for (int i = 0; i < 3; ++i) edge[i] = t.a[i] * x + t.b[i] * y + t.c[i];
      for (int64_t column = t.column_begin; column <= t.column_end; ++column) {
        if (Covers(t, edge)) {
          const float z = DepthAt(t, edge);
          const int64_t pixel = (row - row_begin) * width + column;
          if (z < depth[pixel]) {
            depth[pixel] = z;
            face[pixel] = id;
          }
        }
        for (int i = 0; i < 3; ++i) edge[i] += t.a[i] * kSubpixels;
      }
    }
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
  const int64_t band_pixels = kBandRows * width;
  float* depths = work.depth.Reserve(parallel.num_workers() * band_pixels);
  parallel.For(num_bands, [&](int64_t band, int64_t worker) {
    const int64_t row_begin = band * kBandRows;
    const int64_t row_end = std::min(height, row_begin + kBandRows);
    int32_t* out = face + row_begin * width;
    float* depth = depths + worker * band_pixels;
    std::fill(depth, depth + band_pixels, std::numeric_limits<float>::infinity());
    std::fill(out, out + (row_end - row_begin) * width, -1);
    DrawBand(triangles, binned + begin[band], begin[band + 1] - begin[band], width,
             row_begin, row_end, depth, out);
  });
}

// Perspective-correct weights of the corners at a pixel centre, and depth.
void Interpolate(const float* const corners[3], float centre_x, float centre_y,
                 float* weights, float* depth) {
  float x[3], y[3], screen[3];
  for (int i = 0; i < 3; ++i) {
    x[i] = corners[i][0] - centre_x;
    y[i] = corners[i][1] - centre_y;
  }
  float area = 0.0f;
  for (int i = 0; i < 3; ++i) {
    const int next = (i + 1) % 3, last = (i + 2) % 3;
    screen[i] = x[next] * y[last] - x[last] * y[next];
    area += screen[i];
  }
  const bool sliver = std::fabs(area) < kSliver;
  float total = 0.0f, screen_total = 0.0f;
  for (int i = 0; i < 3; ++i) {
    screen[i] = sliver ? 1.0f / 3.0f : Least(Most(screen[i] / area, 0.0f), 1.0f);
    weights[i] = screen[i] / corners[i][2];
    total += weights[i];
    screen_total += screen[i];
  }
  for (int i = 0; i < 3; ++i) weights[i] /= total;
  *depth = screen_total / total;
}

// For the faces that Rasterize found; zero weights, infinite depth where there is none.
void InterpolateAll(Parallel& parallel, const float* points, int64_t num_points,
                    const int32_t* faces, int64_t num_faces, int64_t width,
                    int64_t height, const int32_t* face, float* weights, float* depth) {
  parallel.For((height + kBandRows - 1) / kBandRows, [&](int64_t band, int64_t) {
    const int64_t row_end = std::min(height, (band + 1) * kBandRows);
    for (int64_t row = band * kBandRows; row < row_end; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        const int64_t pixel = row * width + column, f = face[pixel];
        const float* corners[3];
        if (f >= 0 && f < num_faces &&
            FindCorners(points, num_points, faces + 3 * f, corners)) {
          Interpolate(corners, column + 0.5f, row + 0.5f, weights + 3 * pixel,
                      depth + pixel);
        } else {
          std::fill(weights + 3 * pixel, weights + 3 * pixel + 3, 0.0f);
          depth[pixel] = std::numeric_limits<float>::infinity();
        }
      }
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
