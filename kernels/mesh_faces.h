// Faces of a mesh for CPUs, one per lane: what triangle.h computes in integers, in
// doubles, which hold them exactly. Edge values stay below 2^50.

#ifndef GEODIFF_JAX_KERNELS_MESH_FACES_H_
#define GEODIFF_JAX_KERNELS_MESH_FACES_H_

#include <cmath>
#include <cstdint>

#include "simd_doubles.h"
#include "triangle.h"

namespace geodiff {

struct Mesh {
  const float* points;  // (p, 3): x, y in pixels, depth.
  int64_t num_points;
  const int32_t* faces;  // (f, 3)
  int64_t num_faces;
};

// The corners of a face; false if it or one of its points is not there.
inline bool FindCorners(const Mesh& mesh, int64_t face, const float* corners[3]) {
  if (face < 0 || face >= mesh.num_faces) return false;
  for (int i = 0; i < 3; ++i) {
    const int64_t point = mesh.faces[3 * face + i];
    if (point < 0 || point >= mesh.num_points) return false;
    corners[i] = mesh.points + 3 * point;
  }
  return true;
}

struct Faces {
  D x[3], y[3];  // Of the corners in subpixels: integers.
  D z[3];
  D area;  // Signed, of twice the triangle.
  // Pixels whose centres lie in the bounding box, ends included.
  D column_begin, column_end, row_begin, row_end;
  // False if nothing is covered: no area, no pixel centre, a corner behind the camera,
  // outside the guard band or not finite.
  DoubleMask drawn;
};

// First and last of `size` pixels whose centres lie between three corners.
inline void CentreRange(const D corner[3], int64_t size, D* begin, D* end) {
  const D half = SetDoubles(0.5), pixel = SetDoubles(1.0 / kSubpixels);
  const D low = Min(Min(corner[0], corner[1]), corner[2]) * pixel;
  const D high = Max(Max(corner[0], corner[1]), corner[2]) * pixel;
  *begin = Max(SetDoubles(0.0) - Floor(half - low), SetDoubles(0.0));
  *end = Min(Floor(high - half), SetDoubles(static_cast<double>(size - 1)));
}

// Faces that are not there are not drawn.
inline Faces SetUpFaces(const Mesh& mesh, const int32_t* faces, int64_t width,
                        int64_t height) {
  static constexpr float kBehind[3] = {0.0f, 0.0f, -1.0f};
  float corner[3][3][kDoubles];
  for (int k = 0; k < kDoubles; ++k) {
    const float* corners[3];
    if (!FindCorners(mesh, faces[k], corners)) {
      corners[0] = corners[1] = corners[2] = kBehind;
    }
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) corner[i][j][k] = corners[i][j];
    }
  }
  const D none = SetDoubles(0.0), guard = SetDoubles(kGuardBand);
  const D subpixels = SetDoubles(kSubpixels);
  Faces f;
  DoubleMask drawn = LessEqual(none, none);
  for (int i = 0; i < 3; ++i) {
    const D x = ToDoubles(LoadHalf(corner[i][0])), y = ToDoubles(LoadHalf(corner[i][1]));
    f.z[i] = ToDoubles(LoadHalf(corner[i][2]));
    // Comparisons with NaN are false.
    drawn = And(drawn, And(LessEqual(none - guard, x), LessEqual(x, guard)));
    drawn = And(drawn, And(LessEqual(none - guard, y), LessEqual(y, guard)));
    drawn = And(drawn, And(Less(none, f.z[i]), Less(f.z[i], SetDoubles(INFINITY))));
    f.x[i] = Round(x * subpixels);
    f.y[i] = Round(y * subpixels);
  }
  f.area = (f.x[1] - f.x[0]) * (f.y[2] - f.y[0]) - (f.y[1] - f.y[0]) * (f.x[2] - f.x[0]);
  drawn = And(drawn, Less(none, Max(f.area, none - f.area)));
  CentreRange(f.x, width, &f.column_begin, &f.column_end);
  CentreRange(f.y, height, &f.row_begin, &f.row_end);
  drawn = And(drawn, LessEqual(f.column_begin, f.column_end));
  f.drawn = And(drawn, LessEqual(f.row_begin, f.row_end));
  return f;
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_MESH_FACES_H_
