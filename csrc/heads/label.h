#pragma once

#include "../core.h"

namespace rest_fast {

// Where each part of a frame is in the photo, on a grid, and whether the photo shows it.
struct HeadsFlowParams {
  const int32_t* id;          // [side, side] of the frame, as heads_raster gives it
  const float* share;         // [side, side, 3]
  const int32_t* triangle;    // [triangles, 3]
  const uint8_t* kind;        // [triangles] HeadsKind
  const float* photo_screen;  // [points, 3]
  const int32_t* photo_id;    // [side, side]
  const float* photo_depth;   // [side, side]
  float* flow;       // [grid, grid, 2] place in the photo minus place here, in `unit` per element
  uint8_t* visible;  // [grid, grid] 0 background, 1 hidden in the photo, 2 seen in it
  uint8_t* matte;    // [grid, grid] share of the cell that the head covers, 0 .. 255
  int64_t points;
  int64_t triangles;
  int64_t side;
  int64_t grid;     // divides side
  float unit;       // times picture elements
  float near;       // decimetres of distance that count as the same surface
  float near_hair;  // the same for strands, which lie one over the other
};

inline auto arguments(const HeadsFlowParams*) {
  return std::make_tuple(REST_FAST_FIELD(id), REST_FAST_FIELD(share), REST_FAST_FIELD(triangle),
                         REST_FAST_FIELD(kind), REST_FAST_FIELD(photo_screen),
                         REST_FAST_FIELD(photo_id), REST_FAST_FIELD(photo_depth),
                         REST_FAST_FIELD(flow), REST_FAST_FIELD(visible), REST_FAST_FIELD(matte),
                         REST_FAST_FIELD(points), REST_FAST_FIELD(triangles), REST_FAST_FIELD(side),
                         REST_FAST_FIELD(grid), REST_FAST_FIELD(unit), REST_FAST_FIELD(near),
                         REST_FAST_FIELD(near_hair));
}

int heads_flow(const HeadsFlowParams& p);

// The picture of a frame: 2 x 2 elements to a pixel, before a background, through a tone curve and
// a sensor.
struct HeadsDevelopParams {
  const float* colour;      // [2 size, 2 size, 3] linear light
  const int32_t* id;        // [2 size, 2 size]
  const float* background;  // [size, size, 3] linear light, exposed already
  uint8_t* picture;         // [size, size, 3] sRGB
  int64_t size;
  int64_t seed;    // of the grain
  float gain;      // exposure
  float shoulder;  // 0 straight, 1 soft highlights
  float saturation;
  float gamma;
  float grain;  // its standard deviation, of 1
};

inline auto arguments(const HeadsDevelopParams*) {
  return std::make_tuple(REST_FAST_FIELD(colour), REST_FAST_FIELD(id), REST_FAST_FIELD(background),
                         REST_FAST_FIELD(picture), REST_FAST_FIELD(size), REST_FAST_FIELD(seed),
                         REST_FAST_FIELD(gain), REST_FAST_FIELD(shoulder),
                         REST_FAST_FIELD(saturation), REST_FAST_FIELD(gamma),
                         REST_FAST_FIELD(grain));
}

int heads_develop(const HeadsDevelopParams& p);

}  // namespace rest_fast
