// The tiles that a Gaussian reaches, row by row: exact spans of its ellipse.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_SPANS_H_
#define GEODIFF_JAX_KERNELS_SPLAT_SPANS_H_

#include "splat_record.h"

namespace geodiff {

#if defined(__CUDACC__)
// One copy of the code, so that every kernel counts the same tiles to the last bit.
#define GEODIFF_ONCE __host__ __device__ static __noinline__
#else
#define GEODIFF_ONCE static
#endif

// [begin, end); empty where begin == end.
struct TileSpan {
  int32_t begin, end;
};

inline constexpr float kSpanSlack = 0.001f;  // Pixels, for round-off (ours).

// Tiles whose pixel centres lie within centre + [low, high].
GEODIFF_HD TileSpan TilesBetween(float centre, float low, float high, int64_t size) {
  const float middle = 0.5f * (low + high);
  // Of long thin ellipses, the sides are large numbers close to each other.
  const float half = 0.5f * (high - low) * 1.0001f + kSpanSlack +
                     1e-6f * std::fabs(middle);
  TileSpan span;
  PixelRange(centre + middle, half, size, &span.begin, &span.end);
  if (span.begin >= span.end) return {0, 0};
  return {span.begin / kTile, (span.end - 1) / kTile + 1};
}

// Rows of tiles. `determinant` is the conic's: 4 a c - b^2 without cancellation.
GEODIFF_ONCE TileSpan TileRows(const Record& r, float determinant, int64_t height) {
  const float extent = 2.0f * std::sqrt(r.a * r.reach / determinant);
  return TilesBetween(r.y, -extent, extent, height);
}

// Tiles of one row that the ellipse a dx^2 + b dx dy + c dy^2 <= reach meets at their
// pixel centres. Between two heights its rightmost point is that of the whole ellipse
// or, where that lies outside, the one at the nearer height; likewise leftmost.
GEODIFF_ONCE TileSpan TileColumns(const Record& r, float determinant, int32_t row,
                                  int64_t width, int64_t height) {
  const float extent_x = 2.0f * std::sqrt(r.c * r.reach / determinant);
  const float extent_y = 2.0f * std::sqrt(r.a * r.reach / determinant);
  const float top = static_cast<float>(row * kTile) + 0.5f - r.y;
  const float rows_left = static_cast<float>(height - 1 - int64_t{row} * kTile);
  const float bottom = top + Least(static_cast<float>(kTile - 1), rows_left);
  const float low = Least(Most(top, -extent_y), extent_y);
  const float high = Most(Least(bottom, extent_y), -extent_y);
  const float y_of_right = -0.5f * r.b / r.c * extent_x;
  const float right_y = Least(Most(y_of_right, low), high);
  const float left_y = Least(Most(-y_of_right, low), high);
  const float slope = -0.5f * r.b / r.a, scale = 0.5f / r.a;
  const float right_chord =
      determinant * ((extent_y - right_y) * (extent_y + right_y));
  const float left_chord = determinant * ((extent_y - left_y) * (extent_y + left_y));
  const float right = slope * right_y + scale * std::sqrt(Most(right_chord, 0.0f));
  const float left = slope * left_y - scale * std::sqrt(Most(left_chord, 0.0f));
  return TilesBetween(r.x, left, right, width);
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_SPANS_H_
