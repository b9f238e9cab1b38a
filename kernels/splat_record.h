// A Gaussian as an image sees it: culling, reach, and how its gradient adds up.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_RECORD_H_
#define GEODIFF_JAX_KERNELS_SPLAT_RECORD_H_

#include <cmath>
#include <cstdint>

#include "splat.h"

namespace geodiff {

constexpr int kTile = 16;    // Pixels along a side.
constexpr int kMoments = 6;  // 1, x, y, x^2, x y, y^2.

// A visible Gaussian as tiles see it. `a` and `c` are halved; a pixel is reached
// while a dx^2 + b dx dy + c dy^2 <= reach (a little more than alpha = 1/255).
struct alignas(16) Record {
  float x, y, a, b, c, opacity, reach, z;
};

// From camera_from_world (3, 4) and fx, fy, cx, cy; image size in pixels.
GEODIFF_HD View<F> MakeView(const float* camera, const float* k, int64_t image_width,
                            int64_t image_height) {
  View<F> view;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      view.rotation[3 * i + j] = Set(camera[4 * i + j]);
    }
    view.translation[i] = Set(camera[4 * i + 3]);
  }
  const float width = static_cast<float>(image_width);
  const float height = static_cast<float>(image_height);
  view.fx = Set(k[0]);
  view.fy = Set(k[1]);
  view.cx = Set(k[2]);
  view.cy = Set(k[3]);
  view.limit[0] = Set(-(k[2] + 0.15f * width) / k[0]);
  view.limit[1] = Set((width - k[2] + 0.15f * width) / k[0]);
  view.limit[2] = Set(-(k[3] + 0.15f * height) / k[1]);
  view.limit[3] = Set((height - k[3] + 0.15f * height) / k[1]);
  return view;
}

// False if the Gaussian is culled. Variances are those of the image, blur included.
GEODIFF_HD bool MakeRecord(const Splat<float>& s, float var_x, float var_y,
                           const float* intrinsics, float near, Record* record) {
  // Written so that NaN is culled. The products are infinite or NaN if any factor is; a
  // conic that vanished belongs to an infinitely large splat.
  const bool finite = std::fabs(s.x) < 1e30f && std::fabs(s.y) < 1e30f &&
                      std::fabs(s.b) < INFINITY && s.a > 0.0f && s.c > 0.0f &&
                      var_x < 1e30f && var_y < 1e30f;
  const bool lens = intrinsics[0] != 0.0f && intrinsics[1] != 0.0f;
  if (!(finite && lens && s.z >= near && s.z <= kFarPlane && s.z > 0.0f &&
        s.opacity >= kMinAlpha && s.opacity < 1e30f)) {
    return false;
  }
  const float reach = std::log(255.0f * s.opacity);
  *record = {s.x, s.y, 0.5f * s.a, s.b, 0.5f * s.c, s.opacity,
             reach * 1.002f + 0.001f, s.z};
  return true;
}

// Least value of a dx^2 + b dx dy + c dy^2 over a box of offsets from the centre.
GEODIFF_HD float LeastPower(const Record& r, float x0, float x1, float y0, float y1) {
  const float x = Least(Most(0.0f, x0), x1), y = Least(Most(0.0f, y0), y1);
  // The least lies on the side nearest to the centre, in x or in y.
  const float y_on_x = Least(Most(-0.5f * r.b * x / r.c, y0), y1);
  const float x_on_y = Least(Most(-0.5f * r.b * y / r.a, x0), x1);
  const float on_x = r.a * x * x + r.b * x * y_on_x + r.c * y_on_x * y_on_x;
  const float on_y = r.a * x_on_y * x_on_y + r.b * x_on_y * y + r.c * y * y;
  return Least(on_x, on_y);
}

// First pixel and one past the last whose centres lie within centre +- extent.
GEODIFF_HD void PixelRange(float centre, float extent, int64_t size, int32_t* begin,
                           int32_t* end) {
  const float limit = static_cast<float>(size);
  // Clamped as floats: casting NaN or huge values to int is undefined.
  const float first = std::ceil(centre - extent - 0.5f);
  const float last = std::floor(centre + extent - 0.5f) + 1.0f;
  *begin = static_cast<int32_t>(Least(Most(0.0f, first), limit));
  *end = static_cast<int32_t>(Least(Most(0.0f, last), limit));
}

// Moments of dL/d(exponent) about a centre to gradients of x, y, conic and opacity.
GEODIFF_HD void MomentsToGradients(const Record& r, float centre_x, float centre_y,
                                   const float* m, float* out) {
  const float x = centre_x - r.x, y = centre_y - r.y;
  const float mx = m[1] + x * m[0], my = m[2] + y * m[0];
  out[0] = -(2.0f * r.a * mx + r.b * my);
  out[1] = -(2.0f * r.c * my + r.b * mx);
  out[2] = 0.5f * (m[3] + x * (m[1] + mx));
  out[3] = m[4] + x * m[2] + y * mx;
  out[4] = 0.5f * (m[5] + y * (m[2] + my));
  out[5] = -m[0] / r.opacity;
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_RECORD_H_
