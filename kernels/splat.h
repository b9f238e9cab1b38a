// Projection of 3D Gaussians to the image (EWA splatting) and its adjoint.
//
// Conventions are gsplat 1.6's: OpenCV camera, pixel centres at +0.5, unnormalised
// wxyz quaternions, linear scales and opacities, 0.3 px^2 added to the projected
// covariance. The arithmetic is written once over a number type: SIMD lanes on
// CPUs, float on GPUs. It needs + - * /, Set, Less, And, Select, Min, Max, Sqrt.

#ifndef GEODIFF_JAX_KERNELS_SPLAT_H_
#define GEODIFF_JAX_KERNELS_SPLAT_H_

#include "simd.h"

namespace geodiff {

constexpr float kBlur = 0.3f;               // px^2 added to both variances.
constexpr float kMaxAlpha = 0.99f;
constexpr float kMinAlpha = 1.0f / 255.0f;
constexpr float kMinTransmittance = 1e-4f;  // A pixel stops before going below it.
constexpr float kMinCompensation = 0.005f;  // Of antialiased opacity.
constexpr float kFarPlane = 1e10f;

template <typename Real>
struct Gaussian {
  Real mean[3], quaternion[4], scale[3], opacity;
};

template <typename Real>
struct View {
  Real rotation[9], translation[3];
  Real fx, fy, cx, cy;
  // The Jacobian is taken at x/z within limit[0], limit[1], y/z within limit[2], [3].
  Real limit[4];
};

// Centre in pixels, depth, conic (inverse covariance: a dx^2 + 2 b dx dy + c dy^2),
// effective opacity.
template <typename Real>
struct Splat {
  Real x, y, z, a, b, c, opacity;
};

// Everything on the way that the adjoint needs again.
template <typename Real>
struct Projection {
  Real p[3], inverse_z, u, v, u_clamped, v_clamped;
  Real inverse_length, unit[4];   // Quaternion.
  Real q[9], axes[9], h[6], rows[6];  // R(q); camera_R(q); J camera_R(q); times scale.
  Real var_x, cov, var_y;         // Without blur.
  Real det0, inverse_det, compensation, ratio;
};

template <typename Real>
GEODIFF_HD Splat<Real> Project(const Gaussian<Real>& g, const View<Real>& view,
                               bool antialiased, Projection<Real>* out) {
  Projection<Real>& t = *out;
  const Real* r = view.rotation;
  for (int i = 0; i < 3; ++i) {
    t.p[i] = r[3 * i] * g.mean[0] + r[3 * i + 1] * g.mean[1] +
             r[3 * i + 2] * g.mean[2] + view.translation[i];
  }
  t.inverse_z = Set(1.0f) / t.p[2];
  t.u = t.p[0] * t.inverse_z;
  t.v = t.p[1] * t.inverse_z;
  t.u_clamped = Min(Max(t.u, view.limit[0]), view.limit[1]);
  t.v_clamped = Min(Max(t.v, view.limit[2]), view.limit[3]);

  Real squared = g.quaternion[0] * g.quaternion[0];
  for (int i = 1; i < 4; ++i) squared = squared + g.quaternion[i] * g.quaternion[i];
  t.inverse_length = Set(1.0f) / Sqrt(squared);
  for (int i = 0; i < 4; ++i) t.unit[i] = g.quaternion[i] * t.inverse_length;
  const Real w = t.unit[0], x = t.unit[1], y = t.unit[2], z = t.unit[3];
  const Real one = Set(1.0f), two = Set(2.0f);
  t.q[0] = one - two * (y * y + z * z);
  t.q[1] = two * (x * y - w * z);
  t.q[2] = two * (x * z + w * y);
  t.q[3] = two * (x * y + w * z);
  t.q[4] = one - two * (x * x + z * z);
  t.q[5] = two * (y * z - w * x);
  t.q[6] = two * (x * z - w * y);
  t.q[7] = two * (y * z + w * x);
  t.q[8] = one - two * (x * x + y * y);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      t.axes[3 * i + j] =
          r[3 * i] * t.q[j] + r[3 * i + 1] * t.q[3 + j] + r[3 * i + 2] * t.q[6 + j];
    }
  }
  const Real kx = view.fx * t.inverse_z, ky = view.fy * t.inverse_z;
  for (int j = 0; j < 3; ++j) {
    t.h[j] = kx * (t.axes[j] - t.u_clamped * t.axes[6 + j]);
    t.h[3 + j] = ky * (t.axes[3 + j] - t.v_clamped * t.axes[6 + j]);
    t.rows[j] = t.h[j] * g.scale[j];
    t.rows[3 + j] = t.h[3 + j] * g.scale[j];
  }
  const Real *m = t.rows, *n = t.rows + 3;
  t.var_x = m[0] * m[0] + m[1] * m[1] + m[2] * m[2];
  t.cov = m[0] * n[0] + m[1] * n[1] + m[2] * n[2];
  t.var_y = n[0] * n[0] + n[1] * n[1] + n[2] * n[2];
  // Lagrange's identity: the determinant of a thin splat without cancellation.
  const Real c0 = m[1] * n[2] - m[2] * n[1], c1 = m[2] * n[0] - m[0] * n[2],
             c2 = m[0] * n[1] - m[1] * n[0];
  t.det0 = c0 * c0 + c1 * c1 + c2 * c2;
  const Real blur = Set(kBlur);
  const Real det = t.det0 + blur * (t.var_x + t.var_y) + blur * blur;
  t.inverse_det = one / det;
  t.ratio = t.det0 * t.inverse_det;
  t.compensation =
      antialiased ? Sqrt(Max(t.ratio, Set(kMinCompensation * kMinCompensation))) : one;

  Splat<Real> splat;
  splat.x = view.fx * t.u + view.cx;
  splat.y = view.fy * t.v + view.cy;
  splat.z = t.p[2];
  splat.a = (t.var_y + blur) * t.inverse_det;
  splat.b = Set(0.0f) - t.cov * t.inverse_det;
  splat.c = (t.var_x + blur) * t.inverse_det;
  splat.opacity = g.opacity * t.compensation;
  return splat;
}

// Adjoint of Project. `splat` is its value and `d` the gradient with respect to it;
// the gradient with respect to the view is added to `d_view` (not to its limits,
// which are functions of the intrinsics: see below).
template <typename Real>
GEODIFF_HD Gaussian<Real> ProjectAdjoint(const Gaussian<Real>& g, const View<Real>& view,
                                         bool antialiased, const Projection<Real>& t,
                                         const Splat<Real>& splat,
                                         const Splat<Real>& d, View<Real>* d_view) {
  const Real zero = Set(0.0f), half = Set(0.5f), two = Set(2.0f);
  Gaussian<Real> out;

  // Conic to covariance: -K D K.
  const Real a = splat.a, b = splat.b, c = splat.c, db = half * d.b;
  const Real m00 = a * d.a + b * db, m01 = a * db + b * d.c;
  const Real m10 = b * d.a + c * db, m11 = b * db + c * d.c;
  Real d_var_x = zero - (m00 * a + m01 * b);
  Real d_cov = zero - two * (m00 * b + m01 * c);
  Real d_var_y = zero - (m10 * b + m11 * c);

  out.opacity = d.opacity * t.compensation;
  if (antialiased) {
    // At the floor the factor is constant.
    const Real floor = Set(kMinCompensation * kMinCompensation);
    const Real d_ratio = Select(Less(floor, t.ratio),
                                half * d.opacity * g.opacity / t.compensation, zero) *
                         t.inverse_det;
    const Real rest = Set(1.0f) - t.ratio, blurred = t.ratio * Set(kBlur);
    d_var_x = d_var_x + d_ratio * (rest * t.var_y - blurred);
    d_var_y = d_var_y + d_ratio * (rest * t.var_x - blurred);
    d_cov = d_cov - d_ratio * rest * two * t.cov;
  }

  const Real kx = view.fx * t.inverse_z, ky = view.fy * t.inverse_z;
  Real d_axes[9], d_u = zero, d_v = zero, d_kx = zero, d_ky = zero;
  for (int j = 0; j < 3; ++j) {
    const Real d_row0 = two * d_var_x * t.rows[j] + d_cov * t.rows[3 + j];
    const Real d_row1 = two * d_var_y * t.rows[3 + j] + d_cov * t.rows[j];
    out.scale[j] = d_row0 * t.h[j] + d_row1 * t.h[3 + j];
    const Real d_h0 = d_row0 * g.scale[j], d_h1 = d_row1 * g.scale[j];
    d_kx = d_kx + d_h0 * (t.axes[j] - t.u_clamped * t.axes[6 + j]);
    d_ky = d_ky + d_h1 * (t.axes[3 + j] - t.v_clamped * t.axes[6 + j]);
    d_axes[j] = kx * d_h0;
    d_axes[3 + j] = ky * d_h1;
    d_axes[6 + j] = zero - (t.u_clamped * d_axes[j] + t.v_clamped * d_axes[3 + j]);
    d_u = d_u - d_axes[j] * t.axes[6 + j];
    d_v = d_v - d_axes[3 + j] * t.axes[6 + j];
  }

  // Where x/z is clamped, its gradient goes to the limit, a function of fx and cx
  // with d limit / d fx = -limit / fx and d limit / d cx = -1 / fx.
  const auto u_free =
      And(LessEqual(view.limit[0], t.u), LessEqual(t.u, view.limit[1]));
  const auto v_free =
      And(LessEqual(view.limit[2], t.v), LessEqual(t.v, view.limit[3]));
  const Real u_bound = Select(u_free, zero, d_u / view.fx);
  const Real v_bound = Select(v_free, zero, d_v / view.fy);
  d_u = Select(u_free, d_u, zero) + d.x * view.fx;
  d_v = Select(v_free, d_v, zero) + d.y * view.fy;
  d_view->fx = d_view->fx + d.x * t.u + d_kx * t.inverse_z - u_bound * t.u_clamped;
  d_view->fy = d_view->fy + d.y * t.v + d_ky * t.inverse_z - v_bound * t.v_clamped;
  d_view->cx = d_view->cx + d.x - u_bound;
  d_view->cy = d_view->cy + d.y - v_bound;
  const Real d_inverse_z =
      d_kx * view.fx + d_ky * view.fy + d_u * t.p[0] + d_v * t.p[1];
  const Real d_p[3] = {d_u * t.inverse_z, d_v * t.inverse_z,
                       d.z - d_inverse_z * t.inverse_z * t.inverse_z};

  const Real* r = view.rotation;
  Real dq[9];
  for (int k = 0; k < 3; ++k) {
    out.mean[k] = r[k] * d_p[0] + r[3 + k] * d_p[1] + r[6 + k] * d_p[2];
    d_view->translation[k] = d_view->translation[k] + d_p[k];
    for (int j = 0; j < 3; ++j) {
      dq[3 * k + j] =
          r[k] * d_axes[j] + r[3 + k] * d_axes[3 + j] + r[6 + k] * d_axes[6 + j];
      d_view->rotation[3 * k + j] =
          d_view->rotation[3 * k + j] + d_p[k] * g.mean[j] +
          d_axes[3 * k] * t.q[3 * j] + d_axes[3 * k + 1] * t.q[3 * j + 1] +
          d_axes[3 * k + 2] * t.q[3 * j + 2];
    }
  }
  const Real w = t.unit[0], x = t.unit[1], y = t.unit[2], z = t.unit[3];
  Real du[4];
  du[0] = two * (z * (dq[3] - dq[1]) + y * (dq[2] - dq[6]) + x * (dq[7] - dq[5]));
  du[1] = two * (y * (dq[1] + dq[3]) + z * (dq[2] + dq[6]) + w * (dq[7] - dq[5]) -
                 two * x * (dq[4] + dq[8]));
  du[2] = two * (x * (dq[1] + dq[3]) + z * (dq[5] + dq[7]) + w * (dq[2] - dq[6]) -
                 two * y * (dq[0] + dq[8]));
  du[3] = two * (x * (dq[2] + dq[6]) + y * (dq[5] + dq[7]) + w * (dq[3] - dq[1]) -
                 two * z * (dq[0] + dq[4]));
  const Real along = w * du[0] + x * du[1] + y * du[2] + z * du[3];
  for (int i = 0; i < 4; ++i) {
    out.quaternion[i] = (du[i] - t.unit[i] * along) * t.inverse_length;
  }
  return out;
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SPLAT_H_
