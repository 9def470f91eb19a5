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

void put(const HeadsPoseParams& p, const Camera& c, int64_t i, const Vec& place,
         const Vec& normal) {
  const Vec pivot = load(p.pivot);
  const float w = step(c.low, c.high, p.rest[3 * i + 1]);
  const Vec from = place - pivot;
  const Vec world = mix(from, rotate(p.turn, from), w) + pivot;
  store(world, p.world + 3 * i);
  store(unit(mix(normal, rotate(p.turn, normal), w)), p.normal + 3 * i);
}

void project(const HeadsPoseParams& p, const Camera& c, int64_t i) {
  const Vec world = load(p.world + 3 * i);
  const float w = step(c.low, c.high, p.rest[3 * i + 1]);
  const float shift = kShoulders + (1.0f - kShoulders) * w;
  const float distance = c.focal - world.z;
  p.screen[3 * i] = c.x + shift * c.dx + c.scale * world.x / distance;
  p.screen[3 * i + 1] = c.y + shift * c.dy - c.scale * world.y / distance;
  p.screen[3 * i + 2] = distance;
}

}  // namespace

int heads_pose(const HeadsPoseParams& p) {
  if (p.mesh < 1 || p.points < p.mesh || (p.points - p.mesh) % 2 || p.triangles < 0)
    return kBadShape;
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
  for (int64_t i = 0; i < p.mesh; ++i) {
    put(p, camera, i, load(p.shape + 3 * i), unit(normals[i]));
    project(p, camera, i);
  }
  for (int64_t i = p.mesh; i < p.points; ++i) {
    const int64_t s = i - p.mesh;
    const int32_t* root = p.root + 3 * s;
    for (int k = 0; k < 3; ++k) {
      if (root[k] < 0 || root[k] >= p.mesh) return kBadShape;
    }
    const float* part = p.root_part + 3 * s;
    const Vec moved = blend(p.shape, root, part) - blend(p.rest, root, part);
    put(p, camera, i, load(p.rest + 3 * i) + moved, load(p.out_dir + 3 * s));
    const float w = step(camera.low, camera.high, p.rest[3 * i + 1]);
    const Vec tangent = load(p.tangent + 3 * s);
    const Vec turned = unit(mix(tangent, rotate(p.turn, tangent), w));
    store(turned, p.along + 3 * s);
    // A ribbon that faces the camera, a little narrower where it runs towards it.
    const Vec side = unit(cross(turned, Vec{0, 0, 1}));
    store(load(p.world + 3 * i) + side * p.half[s], p.world + 3 * i);
    project(p, camera, i);
  }
  return kOk;
}

}  // namespace rest_fast
