// Exact triangle coverage on a fixed-point grid: what every mesh kernel computes.
//
// Vertices are rounded to 1/256 pixel; edge functions are then exact integers,
// so two faces that share an edge cover each pixel centre on it exactly once
// (top-left rule). GPUs compute them here, CPUs in doubles (mesh_faces.h), and the jnp
// reference in two limbs.

#ifndef GEODIFF_JAX_KERNELS_TRIANGLE_H_
#define GEODIFF_JAX_KERNELS_TRIANGLE_H_

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace geodiff {

constexpr int64_t kSubpixels = 256;
// Farthest a vertex may lie from the image's corner, in pixels.
constexpr float kGuardBand = 32768.0f;

struct Triangle {
  // Edge i lies opposite vertex i: value = a[i] * x + b[i] * y + c[i] >= bias[i]
  // inside, with x, y in subpixels.
  int64_t a[3], b[3], c[3], bias[3];
  double inverse_area;       // Of the sum of the three edge values.
  double inverse_depth[3];   // 1 / z of the vertices.
  // Pixels whose centres lie in the bounding box, ends included.
  int32_t column_begin, column_end, row_begin, row_end;
};

GEODIFF_HD int64_t FloorDivide(int64_t value, int64_t divisor) {
  const int64_t quotient = value / divisor;
  return quotient - (value % divisor < 0 ? 1 : 0);
}

// First and last pixel whose centre lies in [low, high] subpixels and [0, size).
GEODIFF_HD void CentreRange(int64_t low, int64_t high, int64_t size,
                            int32_t* begin, int32_t* end) {
  int64_t first = -FloorDivide(kSubpixels / 2 - low, kSubpixels);
  int64_t last = FloorDivide(high - kSubpixels / 2, kSubpixels);
  *begin = static_cast<int32_t>(first < 0 ? 0 : first);
  *end = static_cast<int32_t>(last > size - 1 ? size - 1 : last);
}

// False if the triangle covers nothing: no area, no pixel centre, a vertex
// behind the camera, outside the guard band or not finite.
GEODIFF_HD bool SetUpTriangle(const float* const vertices[3], int64_t width,
                              int64_t height, Triangle* triangle) {
  int64_t x[3], y[3];
  for (int i = 0; i < 3; ++i) {
    const float* v = vertices[i];
    // Written so that NaN fails.
    if (!(std::fabs(v[0]) <= kGuardBand && std::fabs(v[1]) <= kGuardBand &&
          v[2] > 0.0f && v[2] < INFINITY)) {
      return false;
    }
    x[i] = static_cast<int64_t>(std::nearbyint(v[0] * float(kSubpixels)));
    y[i] = static_cast<int64_t>(std::nearbyint(v[1] * float(kSubpixels)));
    triangle->inverse_depth[i] = 1.0 / static_cast<double>(v[2]);
  }
  const int64_t area =
      (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]);
  if (area == 0) return false;
  const int64_t sign = area > 0 ? 1 : -1;
  triangle->inverse_area = 1.0 / static_cast<double>(area * sign);
  for (int i = 0; i < 3; ++i) {
    const int from = (i + 1) % 3, to = (i + 2) % 3;
    const int64_t dx = sign * (x[to] - x[from]);
    const int64_t dy = sign * (y[to] - y[from]);
    triangle->a[i] = -dy;
    triangle->b[i] = dx;
    triangle->c[i] = dy * x[from] - dx * y[from];
    const bool top_left = dy < 0 || (dy == 0 && dx > 0);
    triangle->bias[i] = top_left ? 0 : 1;
  }
  int64_t x_low = x[0], x_high = x[0], y_low = y[0], y_high = y[0];
  for (int i = 1; i < 3; ++i) {
    x_low = x[i] < x_low ? x[i] : x_low;
    x_high = x[i] > x_high ? x[i] : x_high;
    y_low = y[i] < y_low ? y[i] : y_low;
    y_high = y[i] > y_high ? y[i] : y_high;
  }
  CentreRange(x_low, x_high, width, &triangle->column_begin, &triangle->column_end);
  CentreRange(y_low, y_high, height, &triangle->row_begin, &triangle->row_end);
  return triangle->column_begin <= triangle->column_end &&
         triangle->row_begin <= triangle->row_end;
}

// The value of an edge at the centre of a pixel.
GEODIFF_HD int64_t EdgeAt(const Triangle& t, int i, int64_t column, int64_t row) {
  return t.a[i] * (column * kSubpixels + kSubpixels / 2) +
         t.b[i] * (row * kSubpixels + kSubpixels / 2) + t.c[i];
}

// One over the depth, perspective-correct, from edge values: doubles, or vectors of them.
template <typename Real>
GEODIFF_HD Real InverseDepth(const Triangle& t, const Real edge[3]) {
  return (edge[0] * t.inverse_depth[0] + edge[1] * t.inverse_depth[1] +
          edge[2] * t.inverse_depth[2]) *
         t.inverse_area;
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_TRIANGLE_H_
