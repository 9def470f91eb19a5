// Small vectors of floats for csrc/heads.
#pragma once

#include <cmath>

#include "../cpu/common.h"

namespace rest_fast::heads {

struct Vec {
  float x = 0, y = 0, z = 0;
};

REST_FAST_INLINE Vec load(const float* p) {
  return {p[0], p[1], p[2]};
}
REST_FAST_INLINE void store(const Vec& v, float* p) {
  p[0] = v.x;
  p[1] = v.y;
  p[2] = v.z;
}
REST_FAST_INLINE Vec operator+(const Vec& a, const Vec& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
REST_FAST_INLINE Vec operator-(const Vec& a, const Vec& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
REST_FAST_INLINE Vec operator*(const Vec& a, const Vec& b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z};
}
REST_FAST_INLINE Vec operator*(const Vec& a, float s) {
  return {a.x * s, a.y * s, a.z * s};
}
REST_FAST_INLINE float dot(const Vec& a, const Vec& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
REST_FAST_INLINE Vec cross(const Vec& a, const Vec& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
REST_FAST_INLINE Vec unit(const Vec& a) {
  return a * (1.0f / std::sqrt(dot(a, a) + 1e-12f));
}
REST_FAST_INLINE Vec mix(const Vec& a, const Vec& b, float t) {
  return a + (b - a) * t;
}
REST_FAST_INLINE Vec rotate(const float* m, const Vec& a) {
  return {dot(load(m), a), dot(load(m + 3), a), dot(load(m + 6), a)};
}
REST_FAST_INLINE float clamp01(float x) {
  return x < 0.0f ? 0.0f : (x > 1.0f ? 1.0f : x);
}
// 0 below low, 1 above high, smooth between.
REST_FAST_INLINE float step(float low, float high, float x) {
  const float t = clamp01((x - low) / (high - low));
  return t * t * (3.0f - 2.0f * t);
}

// A point of a triangle: the sum of a vertex's numbers, weighed with w.
REST_FAST_INLINE Vec blend(const float* values, const int32_t* corner, const float* w) {
  return load(values + 3 * corner[0]) * w[0] + load(values + 3 * corner[1]) * w[1] +
         load(values + 3 * corner[2]) * w[2];
}

}  // namespace rest_fast::heads
