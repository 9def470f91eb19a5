#pragma once

#include "../core.h"

namespace rest_fast {

// Where the points of a head are in this frame: in front of the camera and in the picture.
//
// Points 0 .. mesh - 1 are vertices of the mesh, whose shape is given. The others follow in pairs,
// the two edges of a strand of hair: each hangs on a triangle of the mesh and moves with it. All
// but the half width is read of the first of a pair.
struct HeadsPoseParams {
  const float* shape;  // [mesh, 3] the mesh of this frame in the head's own coordinates, decimetres
  const float* rest;   // [points, 3] at rest; both points of a pair at the strand's middle
  const float* out_dir;     // [points - mesh, 3] outward direction at rest of a strand's points
  const float* tangent;     // [points - mesh, 3] direction at rest of a strand's points
  const float* half;        // [points - mesh] signed half width of a strand, decimetres
  const int32_t* root;      // [points - mesh, 3] vertices of the triangle that a strand hangs on
  const float* root_part;   // [points - mesh, 3] their shares
  const int32_t* triangle;  // [triangles, 3] of the mesh alone
  const float* turn;        // [3, 3] rotation of the head
  const float* pivot;       // [3] of the rotation
  const float* view;        // [8] neck_low, neck_high, focal, scale, x, y, dx, dy
  float* world;             // [points, 3] before the camera, x right, y up, z towards it
  float* normal;            // [points, 3] unit; for strands the outward direction
  float* along;             // [points - mesh, 3] tangents, turned
  float* screen;  // [points, 3] x, y in picture elements, and the distance from the camera
  int64_t mesh;
  int64_t points;
  int64_t triangles;
};

inline auto arguments(const HeadsPoseParams*) {
  return std::make_tuple(REST_FAST_FIELD(shape), REST_FAST_FIELD(rest), REST_FAST_FIELD(out_dir),
                         REST_FAST_FIELD(tangent), REST_FAST_FIELD(half), REST_FAST_FIELD(root),
                         REST_FAST_FIELD(root_part), REST_FAST_FIELD(triangle),
                         REST_FAST_FIELD(turn), REST_FAST_FIELD(pivot), REST_FAST_FIELD(view),
                         REST_FAST_FIELD(world), REST_FAST_FIELD(normal), REST_FAST_FIELD(along),
                         REST_FAST_FIELD(screen), REST_FAST_FIELD(mesh), REST_FAST_FIELD(points),
                         REST_FAST_FIELD(triangles));
}

int heads_pose(const HeadsPoseParams& p);

}  // namespace rest_fast
