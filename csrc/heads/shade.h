#pragma once

#include "../core.h"

namespace rest_fast {

// Kinds of surface; rest_fast/training/synthetic/heads/draw.py has the same order.
enum class HeadsKind : uint8_t {
  kSkin,
  kMouth,
  kEye,
  kUpperTeeth,
  kLowerTeeth,
  kTongue,
  kSolid,
  kStrand
};

// Colour of each picture element, linear light.
//
// `paint` of a spot (pose.h), by kind:
//   all     0..2 colour, 3 gloss, 4 share of the sky that it sees
//   skin    5 lips, 6 decimetres below the neckline of the clothes, 7 freckles
//   eye     0..2 direction from the middle of the eye instead of a colour
//   teeth   5 place along the arch in teeth, 6 height (0 gum, 1 edge), 7 seed of the tints
//   strand  5 place along it, 6 a number of its own
struct HeadsShadeParams {
  const int32_t* id;        // [height, width] as heads_raster gives it
  const float* share;       // [height, width, 3]
  const int32_t* triangle;  // [triangles, 3]
  const uint8_t* kind;      // [triangles] HeadsKind
  const float* rest;    // [spots, 3] noise is drawn at rest places, so that it moves with the skin
  const float* world;   // [points, 3]
  const float* normal;  // [spots, 3]
  const float* along;   // [pairs, 3]
  const float* paint;   // [spots, 8]
  const float* shadow;  // [shadow_size, shadow_size] as heads_shadow gives it
  const float* lights;  // [18] key: direction, colour; fill: direction, colour; sky; ground
  const float* skin;    // [8] four amplitudes of noise, bump, lip colour
  const float* mouth;   // [4] depth of the lips, light inside, tooth tint, tooth gaps
  const float*
      eye;  // [8] iris colour, its radius, pupil radius (radians), white, lid shade, redness
  const float* cloth;  // [12] three colours, style, scale of the weave, contrast
  const float* turn;   // [3, 3] rotation of the head
  const float* map;    // [5] middle of the shadow map, its radius, softness (decimetres)
  float* colour;       // [height, width, 3], 0 where there is no surface
  int64_t mesh;
  int64_t points;
  int64_t triangles;
  int64_t height;
  int64_t width;
  int64_t shadow_size;
  int64_t seed;
};

inline auto arguments(const HeadsShadeParams*) {
  return std::make_tuple(REST_FAST_FIELD(id), REST_FAST_FIELD(share), REST_FAST_FIELD(triangle),
                         REST_FAST_FIELD(kind), REST_FAST_FIELD(rest), REST_FAST_FIELD(world),
                         REST_FAST_FIELD(normal), REST_FAST_FIELD(along), REST_FAST_FIELD(paint),
                         REST_FAST_FIELD(shadow), REST_FAST_FIELD(lights), REST_FAST_FIELD(skin),
                         REST_FAST_FIELD(mouth), REST_FAST_FIELD(eye), REST_FAST_FIELD(cloth),
                         REST_FAST_FIELD(turn), REST_FAST_FIELD(map), REST_FAST_FIELD(colour),
                         REST_FAST_FIELD(mesh), REST_FAST_FIELD(points), REST_FAST_FIELD(triangles),
                         REST_FAST_FIELD(height), REST_FAST_FIELD(width),
                         REST_FAST_FIELD(shadow_size), REST_FAST_FIELD(seed));
}

int heads_shade(const HeadsShadeParams& p);

}  // namespace rest_fast
