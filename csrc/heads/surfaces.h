// What the kinds of surface of a head look like: skin, lips, teeth, eyes, tongue, cloth, in the light.
// Layout in shade.h. For shade.cpp alone.
#pragma once

#include "shade.h"

#include <algorithm>

#include "noise.h"

namespace rest_fast {
namespace {

using namespace heads;

constexpr int kOctaves = 4;
constexpr float kCycles[kOctaves] = {3.0f, 10.0f, 28.0f, 60.0f};  // per decimetre
constexpr int kPaint = 8, kAcross = 7;  // kAcross: of a strand, found while shading

struct Lights {
  Vec key, key_colour, fill, fill_colour, sky, ground;
  Vec half_key, half_fill;  // half way to the camera

  explicit Lights(const float* l)
      : key(load(l)),
        key_colour(load(l + 3)),
        fill(load(l + 6)),
        fill_colour(load(l + 9)),
        sky(load(l + 12)),
        ground(load(l + 15)),
        half_key(unit(key + Vec{0, 0, 1})),
        half_fill(unit(fill + Vec{0, 0, 1})) {}

  REST_FAST_INLINE Vec ambient(const Vec& normal, float open) const {
    return mix(ground, sky, 0.5f + 0.5f * normal.y) * open;
  }
};

struct Point {
  Vec rest, normal;
  float paint[kPaint];
  float key;  // share of the key light that arrives
  float noise[kOctaves];
};

REST_FAST_INLINE float power(float x, int squarings) {
  for (int i = 0; i < squarings; ++i) x *= x;
  return x;
}

// What lies below the neckline.
bool clothed(const float* paint) {
  return paint[6] > -0.02f;
}

class Shader {
 public:
  explicit Shader(const HeadsShadeParams& params)
      : lights(params.lights), seed(static_cast<uint32_t>(params.seed)), p(params) {}

  const Lights lights;
  const uint32_t seed;

  Vec colour(HeadsKind kind, const Point& q) const {
    switch (kind) {
      case HeadsKind::kSkin: return skin(q);
      case HeadsKind::kMouth: return mouth(q, {0.34f, 0.07f, 0.06f}, 1.0f);
      case HeadsKind::kEye: return eye(q);
      case HeadsKind::kUpperTeeth:
      case HeadsKind::kLowerTeeth: return tooth(q);
      case HeadsKind::kTongue: return tongue(q);
      default: return lit(load(q.paint), q.normal, q.paint[4], q.key, 0.05f, q.paint[3]);
    }
  }

 private:
  // Diffuse light that reaches `wrap` round the edge of the shade, and a dull and a sharp
  // highlight.
  Vec lit(const Vec& albedo, const Vec& n, float open, float key, float wrap, float gloss) const {
    const auto round = [&](const Vec& light, float by) {
      return std::max(0.0f, (dot(n, light) + by) / (1.0f + by));
    };
    // Light that went through the skin is red.
    const Vec soft_key{round(lights.key, 2.4f * wrap), round(lights.key, wrap),
                       round(lights.key, 0.7f * wrap)};
    const Vec soft_fill{round(lights.fill, 2.4f * wrap), round(lights.fill, wrap),
                        round(lights.fill, 0.7f * wrap)};
    const Vec direct =
        lights.key_colour * soft_key * key + lights.fill_colour * soft_fill * (0.4f + 0.6f * open);
    const Vec body = albedo * (direct + lights.ambient(n, open));
    const float dull = power(std::max(0.0f, dot(n, lights.half_key)), 4), sharp = power(dull, 2);
    const float fill_dull = power(std::max(0.0f, dot(n, lights.half_fill)), 4);
    const float facing = std::max(0.0f, dot(n, lights.key));
    const float rim = power(1.0f - clamp01(n.z), 2);
    const Vec shine =
        lights.key_colour *
            ((0.08f * dull + 0.16f * gloss * sharp) * key * std::min(1.0f, 2.0f * facing)) +
        lights.fill_colour * (0.06f * fill_dull * open) + lights.sky * (0.10f * rim * open);
    return body + shine * gloss;
  }

  Vec skin(const Point& q) const {
    const float* n = q.noise;
    const float* s = p.skin;
    if (clothed(q.paint)) return clothes(q);
    const float grain = s[0] * n[0] + s[1] * n[1] + s[2] * n[2] + s[3] * n[3];
    const float blotch = s[0] * n[1] + s[1] * n[0];  // redder and paler areas
    Vec albedo = load(q.paint);
    albedo = albedo * Vec{1 + 0.7f * grain + 0.25f * blotch, 1 + 1.1f * grain - 0.3f * blotch,
                          1 + 1.25f * grain - 0.3f * blotch};
    const float freckle = q.paint[7] * step(0.25f, 0.6f, 0.6f * n[2] + 0.7f * n[3]);
    albedo = albedo * mix({1, 1, 1}, {0.62f, 0.45f, 0.36f}, freckle);
    const float lips = step(0.3f, 0.75f, q.paint[5]);
    const float crease = noise(q.rest.x * 46, q.rest.y * 7, q.rest.z * 7, seed + 77);
    const Vec lip_colour = load(s + 5) * (1.0f + 0.16f * crease + 0.1f * n[1]);
    albedo = mix(albedo, lip_colour, lips);
    Vec normal = q.normal + Vec{n[2] + 0.6f * n[3], 0.8f * n[3] - 0.6f * n[2], 0} * s[4] +
                 Vec{crease, 0, 0} * (0.12f * lips);
    normal = unit(normal);
    const float gloss = q.paint[3] * (1.0f + 0.35f * n[1] + 0.3f * n[3]) + 0.35f * lips;
    return lit(albedo, normal, q.paint[4], q.key, 0.16f, gloss);
  }

  Vec clothes(const Point& q) const {
    const float* c = p.cloth;
    const int style =
        static_cast<int>(c[9]);  // 0 plain, 1 shirt and jacket, 2 stripes, 3 open collar
    const float below = q.paint[6], x = std::fabs(q.rest.x), y = q.rest.y;
    Vec albedo = load(c);
    float open = q.paint[4];
    if (style == 1) {
      const float lapel = x - (0.22f + 0.55f * std::max(0.0f, 3.3f + y));
      const bool tie = x < 0.13f + 0.02f * (y + 2.5f) && below > 0.05f;
      albedo = lapel > 0 ? load(c) : (tie ? load(c + 6) : load(c + 3));
      open *= 0.55f + 0.45f * step(0.0f, 0.10f, std::fabs(lapel));
    } else if (style == 2) {
      const float band = std::sin(q.rest.y * c[10] * 6.0f);
      albedo = band > 0 ? load(c) : load(c + 3);
    } else if (style == 3) {
      albedo = load(c);
      open *= 0.6f + 0.4f * step(0.0f, 0.05f, std::fabs(x - 0.05f));
    }
    const float rib = step(0.10f, 0.085f, below);  // a collar's seam
    open *= 1.0f - 0.35f * step(0.02f, 0.0f, std::fabs(below - 0.10f));
    const float weave = noise(q.rest.x * 60, q.rest.y * 60, q.rest.z * 60, seed + 5);
    const float fold = noise(q.rest.x * 2.2f, q.rest.y * 0.9f, q.rest.z * 2.2f, seed + 9);
    albedo = albedo *
             (1.0f + c[11] * weave + 0.10f * q.noise[0] + 0.12f * rib * std::sin(q.rest.x * 90));
    const Vec normal = unit(q.normal + Vec{0.45f * fold, 0.12f * q.noise[1], 0});
    return lit(albedo, normal, open, q.key, 0.05f, 0.1f);
  }

  // What is inside the mouth gets dark with the depth behind the lips.
  float inside(const Point& q) const {
    const float depth = std::max(0.0f, p.mouth[0] - q.rest.z);
    return p.mouth[1] * std::max(0.05f, 1.0f - 1.9f * std::max(0.0f, depth - 0.04f));
  }

  Vec mouth(const Point& q, const Vec& albedo, float gloss) const {
    const float open = inside(q);
    const float key = q.key * open;
    return lit(albedo, q.normal, 0.7f * open * open, key, 0.1f, gloss * open);
  }

  Vec tongue(const Point& q) const {
    const float groove = 1.0f - 0.35f * power(1.0f - clamp01(std::fabs(q.rest.x) * 8.0f), 1);
    const float bumps = 1.0f + 0.2f * q.noise[3];
    return mouth(q, Vec{0.42f, 0.13f, 0.12f} * (groove * bumps), 0.6f);
  }

  Vec tooth(const Point& q) const {
    const float at = q.paint[5], index = std::floor(at), f = at - index, height = q.paint[6];
    const float edge = std::min(f, 1.0f - f);
    const float tint =
        lattice(static_cast<int32_t>(index), 3, static_cast<int32_t>(q.paint[7]), seed);
    const float warm = p.mouth[2] + 0.25f * tint;
    Vec albedo = Vec{0.74f, 0.68f - 0.05f * warm, 0.57f - 0.15f * warm} * (1.0f + 0.07f * tint);
    // Rounded teeth: sides turn away; a dark line between them, wider at the edge where corners are
    // cut.
    const float gap = p.mouth[3] * (0.7f + 0.9f * power(height, 2));
    albedo =
        albedo * (0.45f + 0.55f * step(0.0f, gap, edge)) * (0.85f + 0.15f * step(0.0f, 0.4f, edge));
    albedo = albedo * mix({1, 1, 1}, {0.92f, 0.95f, 1.0f}, step(0.75f, 1.0f, height));
    const float gum = 0.26f + 0.16f * power(std::fabs(2.0f * f - 1.0f), 1) - height;
    albedo = mix(albedo, {0.45f, 0.16f, 0.15f}, step(-0.03f, 0.05f, gum));
    const Vec normal = unit(q.normal + Vec{(f - 0.5f) * 0.5f, 0, 0});
    const float open = inside(q);
    const float key = open * (0.35f + 0.65f * q.key);
    return lit(albedo, normal, open * (q.paint[7] > 1.5f ? 0.6f : 0.95f), key, 0.25f, 0.9f * open);
  }

  Vec eye(const Point& q) const {
    const float* e = p.eye;
    const Vec d = unit(load(q.paint));
    const float angle = std::acos(std::min(1.0f, std::max(-1.0f, d.z)));
    const float ray = noise(12.0f * d.x / (angle + 0.05f), 12.0f * d.y / (angle + 0.05f),
                            angle * 14.0f, seed + 3);
    const float iris = step(e[3] + 0.025f, e[3] - 0.025f, angle);
    const float limb = step(0.55f, 1.0f, angle / e[3]);
    const float pupil = step(e[4] + 0.02f, e[4] - 0.02f, angle);
    const float veins = 0.5f + 0.5f * noise(d.x * 9, d.y * 22, d.z * 5, seed + 4);
    const float corner = step(0.45f, 0.95f, std::fabs(d.x));
    Vec white = Vec{0.66f, 0.62f, 0.59f} * e[5];
    white = mix(white, {0.55f, 0.33f, 0.28f}, clamp01(corner * (0.35f + e[7] * veins)));
    const Vec ring = load(e) * (1.15f + 0.5f * ray) * (1.0f - 0.75f * limb);
    Vec albedo = mix(white, ring, iris);
    albedo = mix(albedo, {0.004f, 0.004f, 0.004f}, pupil);
    const Vec n = unit(q.normal);
    // The lid and its lashes shade the upper part.
    const float lid = 1.0f - e[6] * step(0.02f, 0.42f, d.y) - 0.25f * step(0.1f, 0.5f, -d.y);
    const float key = 0.35f + 0.65f * q.key;
    const Vec body = lit(albedo, n, 0.9f * lid, key * lid, 0.2f, 0.0f);
    // The cornea bulges: a point of light near the iris, and a faint wide one.
    const float bulge = 1.0f + 0.25f * iris;
    const Vec cornea = unit(Vec{n.x * bulge, n.y * bulge, n.z});
    const float spark = power(std::max(0.0f, dot(cornea, lights.half_key)), 9);
    const float glow = power(std::max(0.0f, dot(cornea, lights.half_fill)), 6);
    return body + lights.key_colour * (1.5f * spark) + lights.fill_colour * (0.25f * glow) +
           lights.sky * (0.03f * iris);
  }

  const HeadsShadeParams& p;
};

}  // namespace
}  // namespace rest_fast
