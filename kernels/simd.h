// The few vector operations that the CPU kernels need, for one instruction set.
//
// The same sources are compiled once per instruction set; lanes are as wide as the
// widest register. `+ - * /` work on F by the compilers' vector extensions. On GPUs F is
// a float.

#ifndef GEODIFF_JAX_KERNELS_SIMD_H_
#define GEODIFF_JAX_KERNELS_SIMD_H_

#include <cmath>
#include <cstdint>

#include "host_device.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace geodiff {

#if defined(GEODIFF_SCALAR)  // GPUs: a thread is a lane.

constexpr int kLanes = 1;
using F = float;
using Mask = bool;

GEODIFF_HD F Set(float value) { return value; }
GEODIFF_HD Mask Less(F a, F b) { return a < b; }
GEODIFF_HD Mask LessEqual(F a, F b) { return a <= b; }
GEODIFF_HD Mask And(Mask a, Mask b) { return a && b; }
GEODIFF_HD F Select(Mask mask, F a, F b) { return mask ? a : b; }
GEODIFF_HD F Sqrt(F a) { return std::sqrt(a); }

#elif defined(__AVX512F__)

constexpr int kLanes = 16;
using F = __m512;
using Mask = __mmask16;

inline F Set(float value) { return _mm512_set1_ps(value); }
inline F Load(const float* from) { return _mm512_loadu_ps(from); }
inline void Store(float* to, F value) { _mm512_storeu_ps(to, value); }
inline Mask Less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask LessEqual(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Mask And(Mask a, Mask b) { return a & b; }
inline Mask AndNot(Mask a, Mask b) { return a & ~b; }  // a and not b.
inline F Select(Mask mask, F a, F b) { return _mm512_mask_blend_ps(mask, b, a); }
inline uint32_t Bits(Mask mask) { return mask; }
inline F Sqrt(F a) { return _mm512_sqrt_ps(a); }

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using F = __m256;
using Mask = __m256;

inline F Set(float value) { return _mm256_set1_ps(value); }
inline F Load(const float* from) { return _mm256_loadu_ps(from); }
inline void Store(float* to, F value) { _mm256_storeu_ps(to, value); }
inline Mask Less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask LessEqual(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
inline Mask And(Mask a, Mask b) { return _mm256_and_ps(a, b); }
inline Mask AndNot(Mask a, Mask b) { return _mm256_andnot_ps(b, a); }
inline F Select(Mask mask, F a, F b) { return _mm256_blendv_ps(b, a, mask); }
inline uint32_t Bits(Mask mask) { return _mm256_movemask_ps(mask); }
inline F Sqrt(F a) { return _mm256_sqrt_ps(a); }

#else  // SSE2, NEON: four lanes by vector extensions.

constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));

inline F Set(float value) { return F{value, value, value, value}; }
inline F Load(const float* from) {
  F value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
inline void Store(float* to, F value) { __builtin_memcpy(to, &value, sizeof(value)); }
inline Mask Less(F a, F b) { return a < b; }
inline Mask LessEqual(F a, F b) { return a <= b; }
inline Mask And(Mask a, Mask b) { return a & b; }
inline Mask AndNot(Mask a, Mask b) { return a & ~b; }
inline F Select(Mask mask, F a, F b) { return mask ? a : b; }
inline uint32_t Bits(Mask m) {
  return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u);
}
inline F Sqrt(F a) {
  return F{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])};
}

#endif

// The second operand where either is NaN.
GEODIFF_HD F Min(F a, F b) { return Select(Less(a, b), a, b); }
GEODIFF_HD F Max(F a, F b) { return Select(Less(b, a), a, b); }

#if !defined(GEODIFF_SCALAR)

typedef uint32_t Int __attribute__((vector_size(4 * kLanes)));

// e^x for x <= 0, to about 1 ulp; 0 below -87 would be denormal and is e^-87 here.
inline F ExpOfNegative(F x) {
  x = Max(x, Set(-87.0f));
  // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits.
  const F shifted = x * Set(1.44269504f) + Set(12582912.0f);
  const F n = shifted - Set(12582912.0f);
  const F r = (x - n * Set(0.693359375f)) + n * Set(2.12194440e-4f);
  F p = Set(1.9875691500e-4f);
  p = p * r + Set(1.3981999507e-3f);
  p = p * r + Set(8.3334519073e-3f);
  p = p * r + Set(4.1665795894e-2f);
  p = p * r + Set(1.6666665459e-1f);
  p = p * r + Set(5.0000001201e-1f);
  p = p * (r * r) + r + Set(1.0f);
  return (F)((Int)p + ((Int)shifted << 23));
}

inline float SumLanes(F value) {
  float lanes[kLanes];
  Store(lanes, value);
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

#endif  // GEODIFF_SCALAR

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SIMD_H_
