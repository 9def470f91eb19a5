#pragma once

#include "../core.h"

namespace rest_fast {

// Where the points of a head are in this frame: in front of the camera and in the picture.
//
// Points 0 .. mesh - 1 are vertices of the mesh, whose shape is given. The others follow in pairs,
// the two edges of a strand of hair: each pair hangs on a triangle of the mesh and moves with it.
// What both have in common is kept once: "spots" are the vertices, then the pairs.
struct HeadsPoseParams {
  const float* shape;  // [mesh, 3] the mesh of this frame in the head's own coordinates, decimetres
  const float* rest;   // [spots, 3] at rest; of a pair the strand's middle
  const float* out_dir;     // [pairs, 3] outward direction at rest
  const float* tangent;     // [pairs, 3] direction of a strand at rest
  const float* half;        // [pairs] half width of a strand, decimetres
  const int32_t* root;      // [pairs, 3] vertices of the triangle that a strand hangs on
  const float* root_part;   // [pairs, 3] their shares
  const int32_t* triangle;  // [triangles, 3] of the mesh alone
  const float* turn;        // [3, 3] rotation of the head
  const float* pivot;       // [3] of the rotation
  const float* view;        // [8] neck_low, neck_high, focal, scale, x, y, dx, dy
  float* world;             // [points, 3] before the camera, x right, y up, z towards it
  float* normal;            // [spots, 3] unit; for strands the outward direction
  float* along;             // [pairs, 3] tangents, turned
  float* screen;  // [points, 3] x, y in picture elements, and the distance from the camera
  int64_t mesh;
  int64_t pairs;
  int64_t triangles;
};

inline auto arguments(const HeadsPoseParams*) {
  return std::make_tuple(REST_FAST_FIELD(shape), REST_FAST_FIELD(rest), REST_FAST_FIELD(out_dir),
                         REST_FAST_FIELD(tangent), REST_FAST_FIELD(half), REST_FAST_FIELD(root),
                         REST_FAST_FIELD(root_part), REST_FAST_FIELD(triangle),
                         REST_FAST_FIELD(turn), REST_FAST_FIELD(pivot), REST_FAST_FIELD(view),
                         REST_FAST_FIELD(world), REST_FAST_FIELD(normal), REST_FAST_FIELD(along),
                         REST_FAST_FIELD(screen), REST_FAST_FIELD(mesh), REST_FAST_FIELD(pairs),
                         REST_FAST_FIELD(triangles));
}

int heads_pose(const HeadsPoseParams& p);

}  // namespace rest_fast
