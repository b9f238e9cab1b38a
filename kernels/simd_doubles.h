// Registers of doubles, with as many floats or integers beside them: what exact
// coverage needs. As in simd.h, one source serves every instruction set.

#ifndef GEODIFF_JAX_KERNELS_SIMD_DOUBLES_H_
#define GEODIFF_JAX_KERNELS_SIMD_DOUBLES_H_

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace geodiff {

constexpr int kDoubles = kLanes / 2;

// HalfF are kDoubles floats. A mask of doubles narrows to one of floats.
#if defined(__AVX512F__)

using D = __m512d;
using DoubleMask = __mmask8;
using HalfF = __m256;
using HalfMask = __mmask8;

inline D SetDoubles(double value) { return _mm512_set1_pd(value); }
inline DoubleMask Less(D a, D b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
inline DoubleMask LessEqual(D a, D b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
inline DoubleMask And(DoubleMask a, DoubleMask b) { return a & b; }
inline D Select(DoubleMask mask, D a, D b) { return _mm512_mask_blend_pd(mask, b, a); }
inline bool Any(DoubleMask mask) { return mask != 0; }
inline HalfMask Narrow(DoubleMask mask) { return mask; }

inline HalfF ToFloats(D a) { return _mm512_cvtpd_ps(a); }
inline D ToDoubles(HalfF a) { return _mm512_cvtps_pd(a); }
inline HalfF SetHalf(float value) { return _mm256_set1_ps(value); }
inline HalfF LoadHalf(const float* from) { return _mm256_loadu_ps(from); }
inline HalfMask Less(HalfF a, HalfF b) { return _mm256_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline void StoreWhere(HalfMask mask, float* to, HalfF value) {
  _mm256_mask_storeu_ps(to, mask, value);
}
inline void StoreWhere(HalfMask mask, int32_t* to, int32_t value) {
  _mm256_mask_storeu_epi32(to, mask, _mm256_set1_epi32(value));
}

#elif defined(__AVX2__)

using D = __m256d;
using DoubleMask = __m256d;
using HalfF = __m128;
using HalfMask = __m128;

inline D SetDoubles(double value) { return _mm256_set1_pd(value); }
inline DoubleMask Less(D a, D b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
inline DoubleMask LessEqual(D a, D b) { return _mm256_cmp_pd(a, b, _CMP_LE_OQ); }
inline DoubleMask And(DoubleMask a, DoubleMask b) { return _mm256_and_pd(a, b); }
inline D Select(DoubleMask mask, D a, D b) { return _mm256_blendv_pd(b, a, mask); }
inline bool Any(DoubleMask mask) { return _mm256_movemask_pd(mask) != 0; }
inline HalfMask Narrow(DoubleMask mask) {
  const __m256 halves = _mm256_castpd_ps(mask);
  const __m128 high = _mm256_extractf128_ps(halves, 1);
  return _mm_shuffle_ps(_mm256_castps256_ps128(halves), high, 0x88);
}

inline HalfF ToFloats(D a) { return _mm256_cvtpd_ps(a); }
inline D ToDoubles(HalfF a) { return _mm256_cvtps_pd(a); }
inline HalfF SetHalf(float value) { return _mm_set1_ps(value); }
inline HalfF LoadHalf(const float* from) { return _mm_loadu_ps(from); }
inline HalfMask Less(HalfF a, HalfF b) { return _mm_cmplt_ps(a, b); }
inline HalfMask And(HalfMask a, HalfMask b) { return _mm_and_ps(a, b); }
inline void StoreWhere(HalfMask mask, float* to, HalfF value) {
  _mm_storeu_ps(to, _mm_blendv_ps(LoadHalf(to), value, mask));
}
inline void StoreWhere(HalfMask mask, int32_t* to, int32_t value) {
  auto* const at = reinterpret_cast<__m128i*>(to);
  const __m128 all = _mm_blendv_ps(_mm_castsi128_ps(_mm_loadu_si128(at)),
                                   _mm_castsi128_ps(_mm_set1_epi32(value)), mask);
  _mm_storeu_si128(at, _mm_castps_si128(all));
}

#else  // SSE2, NEON: two lanes by vector extensions.

typedef double D __attribute__((vector_size(16)));
typedef int64_t DoubleMask __attribute__((vector_size(16)));
typedef float HalfF __attribute__((vector_size(8)));
typedef int32_t HalfMask __attribute__((vector_size(8)));

inline D SetDoubles(double value) { return D{value, value}; }
inline DoubleMask Less(D a, D b) { return a < b; }
inline DoubleMask LessEqual(D a, D b) { return a <= b; }
inline DoubleMask And(DoubleMask a, DoubleMask b) { return a & b; }
inline D Select(DoubleMask mask, D a, D b) { return mask ? a : b; }
inline bool Any(DoubleMask mask) { return (mask[0] | mask[1]) != 0; }
inline HalfMask Narrow(DoubleMask mask) {
  return __builtin_convertvector(mask, HalfMask);
}

inline HalfF ToFloats(D a) { return __builtin_convertvector(a, HalfF); }
inline D ToDoubles(HalfF a) { return __builtin_convertvector(a, D); }
inline HalfF SetHalf(float value) { return HalfF{value, value}; }
inline HalfF LoadHalf(const float* from) {
  HalfF value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
inline HalfMask Less(HalfF a, HalfF b) { return a < b; }
inline HalfMask And(HalfMask a, HalfMask b) { return a & b; }
inline void StoreWhere(HalfMask mask, float* to, HalfF value) {
  const HalfF all = mask ? value : LoadHalf(to);
  std::memcpy(to, &all, sizeof(all));
}
inline void StoreWhere(HalfMask mask, int32_t* to, int32_t value) {
  HalfMask all;
  std::memcpy(&all, to, sizeof(all));
  all = mask ? HalfMask{value, value} : all;
  std::memcpy(to, &all, sizeof(all));
}

#endif

inline void StoreDoubles(double* to, D value) { std::memcpy(to, &value, sizeof(value)); }
inline void StoreHalf(float* to, HalfF value) { std::memcpy(to, &value, sizeof(value)); }

// The second operand where either is NaN.
inline D Min(D a, D b) { return Select(Less(a, b), a, b); }
inline D Max(D a, D b) { return Select(Less(b, a), a, b); }

// To the nearest integer, ties to even, of what lies below 2^51.
inline D Round(D a) {
  const D shift = SetDoubles(6755399441055744.0);  // 1.5 * 2^52.
  return (a + shift) - shift;
}
inline D Floor(D a) {
  const D nearest = Round(a);
  return nearest - Select(Less(a, nearest), SetDoubles(1.0), SetDoubles(0.0));
}

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_SIMD_DOUBLES_H_
