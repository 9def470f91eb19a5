// Points of a head in this frame; layout in pose.h.
//
//   w = smooth step of the height between neck_low and neck_high: 1 in the head, 0 in the shoulders
//   world = w (R (p - pivot)) + (1 - w) (p - pivot) + pivot
//   screen = (x + (0.3 + 0.7 w) dx + scale world.x / d, ..., d),  d = focal - world.z
#include "pose.h"

#include <cstdint>
#include <vector>

#include "vec.h"

namespace rest_fast {
namespace {

using namespace heads;

constexpr float kShoulders = 0.3f;  // of the head's shift in the picture

struct Camera {
  float low, high, focal, scale, x, y, dx, dy;
};

// How what hangs on a height at rest moves: `part` of the head's turn.
struct Turn {
  const float* turn;
  Vec pivot;
  float part;

  Vec direction(const Vec& v) const { return unit(mix(v, rotate(turn, v), part)); }
  Vec place(const Vec& v) const {
    const Vec from = v - pivot;
    return mix(from, rotate(turn, from), part) + pivot;
  }
};

Vec project(const Camera& c, const Vec& world, float part) {
  const float shift = kShoulders + (1.0f - kShoulders) * part;
  const float distance = c.focal - world.z;
  const float scale = c.scale / distance;
  return {c.x + shift * c.dx + scale * world.x, c.y + shift * c.dy - scale * world.y, distance};
}

}  // namespace

int heads_pose(const HeadsPoseParams& p) {
  if (p.mesh < 1 || p.pairs < 0 || p.triangles < 0) return kBadShape;
  if (p.shape == nullptr || p.rest == nullptr || p.screen == nullptr) return kNullAddress;
  const float* v = p.view;
  const Camera camera{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
  std::vector<Vec> normals(p.mesh);
  for (int64_t t = 0; t < p.triangles; ++t) {
    const int32_t* corner = p.triangle + 3 * t;
    for (int k = 0; k < 3; ++k) {
      if (corner[k] < 0 || corner[k] >= p.mesh) return kBadShape;
    }
    const Vec a = load(p.shape + 3 * corner[0]);
    const Vec n = cross(load(p.shape + 3 * corner[1]) - a, load(p.shape + 3 * corner[2]) - a);
    for (int k = 0; k < 3; ++k) normals[corner[k]] = normals[corner[k]] + n;
  }
  const auto turn_of = [&](int64_t i) {
    return Turn{p.turn, load(p.pivot), step(camera.low, camera.high, p.rest[3 * i + 1])};
  };
  for (int64_t i = 0; i < p.mesh; ++i) {
    const Turn turn = turn_of(i);
    const Vec world = turn.place(load(p.shape + 3 * i));
    store(world, p.world + 3 * i);
    store(turn.direction(unit(normals[i])), p.normal + 3 * i);
    store(project(camera, world, turn.part), p.screen + 3 * i);
  }
  for (int64_t s = 0; s < p.pairs; ++s) {
    const int32_t* root = p.root + 3 * s;
    for (int k = 0; k < 3; ++k) {
      if (root[k] < 0 || root[k] >= p.mesh) return kBadShape;
    }
    const float* part = p.root_part + 3 * s;
    const Vec moved = blend(p.shape, root, part) - blend(p.rest, root, part);
    const Turn turn = turn_of(p.mesh + s);
    const Vec middle = turn.place(load(p.rest + 3 * (p.mesh + s)) + moved);
    const Vec along = turn.direction(load(p.tangent + 3 * s));
    store(turn.direction(load(p.out_dir + 3 * s)), p.normal + 3 * (p.mesh + s));
    store(along, p.along + 3 * s);
    // A ribbon that faces the camera, a little narrower where it runs towards it.
    const Vec side = unit(cross(along, Vec{0, 0, 1})) * p.half[s];
    const Vec edges[2] = {middle - side, middle + side};
    for (int64_t k = 0; k < 2; ++k) {
      const int64_t point = p.mesh + 2 * s + k;
      store(edges[k], p.world + 3 * point);
      store(project(camera, edges[k], turn.part), p.screen + 3 * point);
    }
  }
  return kOk;
}

}  // namespace rest_fast
