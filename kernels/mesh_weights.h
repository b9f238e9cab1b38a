// Weights and depth of the pixels of a mesh, for CPUs: mesh_rasterizer.py term by term,
// whose jnp gives the gradients.

#ifndef GEODIFF_JAX_KERNELS_MESH_WEIGHTS_H_
#define GEODIFF_JAX_KERNELS_MESH_WEIGHTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mesh_faces.h"
#include "simd.h"

namespace geodiff {

constexpr float kSliver = 1e-4f;  // Square pixels; as in mesh_rasterizer.py.

// Perspective-correct weights of the corners at pixel centres, and depth.
inline void Interpolate(const F corners[3][3], F centre_x, F centre_y, F weights[3],
                        F* depth) {
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

// Coordinate j of corner i of the face that each pixel sees. Neighbours mostly see the
// same one: its coordinates are written to all pixels from the first that does, and
// what follows overwrites them.
inline void GatherCorners(const Mesh& mesh, const int32_t face[kLanes],
                          float corner[3][3][2 * kLanes], float seen[2 * kLanes]) {
  static constexpr float kNowhere[3] = {0.0f, 0.0f, 1.0f};
  uint32_t starts = 1;
  for (int k = 1; k < kLanes; ++k) starts |= uint32_t{face[k] != face[k - 1]} << k;
  for (; starts != 0; starts &= starts - 1) {
    const int k = __builtin_ctz(starts);
    const float* corners[3];
    const bool found = FindCorners(mesh, face[k], corners);
    if (!found) corners[0] = corners[1] = corners[2] = kNowhere;
    Store(seen + k, Set(found ? 1.0f : 0.0f));
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) Store(corner[i][j] + k, Set(corners[i][j]));
    }
  }
}

// Pixels of one row, for the faces that Rasterize found in them; zero weights, infinite
// depth where there is none.
inline void InterpolateRow(const Mesh& mesh, int64_t width, int64_t row,
                           const int32_t* face, float* weights, float* depth) {
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
    float corner[3][3][2 * kLanes], seen[2 * kLanes];
    GatherCorners(mesh, nearest, corner, seen);
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

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_MESH_WEIGHTS_H_
