// Mesh rasterizer for CPUs: the nearest face under every pixel centre.
//
// The image is cut into bands of rows. Faces are binned into the bands that
// they touch, in ascending order, and each band is drawn by one thread, so a
// later face replaces an earlier one only if it is strictly nearer.

#include <limits>
#include <vector>

#include "batch.h"
#include "parallel.h"
#include "triangle.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBandRows = 16;

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

void Rasterize(Parallel& parallel, const float* points, int64_t num_points,
               const int32_t* faces, int64_t num_faces, int64_t width,
               int64_t height, int32_t* face) {
  const int64_t num_bands = (height + kBandRows - 1) / kBandRows;
  std::vector<Triangle> triangles(num_faces);
  std::vector<int64_t> begin(num_bands + 1, 0);
  std::vector<bool> drawn(num_faces, false);
  for (int64_t f = 0; f < num_faces; ++f) {
    const float* vertices[3];
    bool inside = true;
    for (int i = 0; i < 3; ++i) {
      const int64_t p = faces[3 * f + i];
      inside = inside && p >= 0 && p < num_points;
      vertices[i] = inside ? points + 3 * p : nullptr;
    }
    if (!inside || !SetUpTriangle(vertices, width, height, &triangles[f])) continue;
    drawn[f] = true;
    for (int64_t band = triangles[f].row_begin / kBandRows;
         band <= triangles[f].row_end / kBandRows; ++band) {
      ++begin[band + 1];
    }
  }
  for (int64_t band = 0; band < num_bands; ++band) begin[band + 1] += begin[band];
  std::vector<int32_t> binned(begin[num_bands]);
  std::vector<int64_t> cursor(begin.begin(), begin.end() - 1);
  for (int64_t f = 0; f < num_faces; ++f) {
    if (!drawn[f]) continue;
    for (int64_t band = triangles[f].row_begin / kBandRows;
         band <= triangles[f].row_end / kBandRows; ++band) {
      binned[cursor[band]++] = static_cast<int32_t>(f);
    }
  }
  std::vector<std::vector<float>> depth(parallel.num_workers());
  parallel.For(num_bands, [&](int64_t band, int64_t worker) {
    const int64_t row_begin = band * kBandRows;
    const int64_t row_end = std::min(height, row_begin + kBandRows);
    int32_t* out = face + row_begin * width;
    depth[worker].assign((row_end - row_begin) * width,
                         std::numeric_limits<float>::infinity());
    std::fill(out, out + (row_end - row_begin) * width, -1);
    DrawBand(triangles.data(), binned.data() + begin[band],
             begin[band + 1] - begin[band], width, row_begin, row_end,
             depth[worker].data(), out);
  });
}

// points (..., p, 3), faces (..., f, 3), face (..., h, w); leading axes of the
// operands are those of the result, or 1.
ffi::Error MeshRasterize(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> points,
                         ffi::Buffer<ffi::S32> faces,
                         ffi::ResultBuffer<ffi::S32> face) {
  const auto image = face->dimensions();
  const size_t rank = image.size();
  if (rank < 2 || points.dimensions().size() != rank ||
      faces.dimensions().size() != rank || points.dimensions()[rank - 1] != 3 ||
      faces.dimensions()[rank - 1] != 3) {
    return ffi::Error::InvalidArgument(
        "mesh_rasterize expects points (..., p, 3), faces (..., f, 3) and a face "
        "image (..., h, w) of equal rank");
  }
  const int64_t height = image[rank - 2], width = image[rank - 1];
  const int64_t num_points = points.dimensions()[rank - 2];
  const int64_t num_faces = faces.dimensions()[rank - 2];
  int64_t batch = 1;
  for (size_t axis = 0; axis + 2 < rank; ++axis) batch *= image[axis];
  if (batch * height * width == 0) return ffi::Error::Success();
  Parallel parallel(pool);
  for (int64_t i = 0; i < batch; ++i) {
    Rasterize(parallel,
              points.typed_data() + BroadcastOffset(i, image, points.dimensions(), 2),
              num_points,
              faces.typed_data() + BroadcastOffset(i, image, faces.dimensions(), 2),
              num_faces, width, height, face->typed_data() + i * height * width);
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
#pragma GCC visibility pop
