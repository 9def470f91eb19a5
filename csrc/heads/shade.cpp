// Deferred shading of a head: for each picture element the numbers of its triangle's corners are
// blended, then its kind of surface and the lights give a colour. Layout in shade.h.
//
// Nothing here is random but the noise, which is a function of the place at rest and the seed: a
// person's skin is the same in every frame.
#include "shade.h"

#include <algorithm>
#include <vector>

#include "light_map.h"
#include "noise.h"
#include "surfaces.h"

namespace rest_fast {
namespace {

using namespace heads;

// Numbers of picture elements that are shaded together, [fields, room].
class Batch {
 public:
  Batch(int64_t fields, int64_t room) : room(room), numbers_(fields * room) {
    element.reserve(room);
  }
  float* operator[](int64_t field) { return numbers_.data() + field * room; }
  int64_t count() const { return static_cast<int64_t>(element.size()); }
  void put(int64_t field, const Vec& v) {
    float* at = (*this)[field] + count();
    at[0] = v.x, at[room] = v.y, at[2 * room] = v.z;
  }

  const int64_t room;
  std::vector<int64_t> element;

 private:
  std::vector<float> numbers_;
};

// Fields: a place in the light's map and what arrives there; of a strand then normal, direction and
// paint, of other surfaces the place at rest and its noise.
constexpr int64_t kPlace = 0, kKey = 3, kNormal = 4, kAlong = 7, kColours = 10, kStrandFields = 18;
constexpr int64_t kRest = 4, kNoise = 7, kSurfaceFields = kNoise + kOctaves;

REST_FAST_INLINE Vec at(const float* field, int64_t room, int64_t i) {
  return {field[i], field[room + i], field[2 * room + i]};
}

// Noise of a run of places, eight or sixteen at a time.
REST_FAST_MULTI_ISA void noises(const float* __restrict places, int64_t room, int64_t count,
                                uint32_t seed, float* __restrict out) {
  for (int octave = 0; octave < kOctaves; ++octave) {
    const float cycles = kCycles[octave];
    const float *x = places, *y = places + room, *z = places + 2 * room;
    for (int64_t i = 0; i < count; ++i) {
      out[octave * room + i] = noise(x[i] * cycles + 500.0f, y[i] * cycles + 500.0f,
                                     z[i] * cycles + 500.0f, seed + octave * 7919u);
    }
  }
}

// Share of the key light that arrives: the map of heights is asked at several places around.
REST_FAST_MULTI_ISA void key_shares(const float* __restrict heights, int32_t size, float reach,
                                    const float* __restrict places, int64_t room, int64_t count,
                                    float* __restrict share) {
  static constexpr float kDisc[9][2] = {{0, 0},      {.9f, .2f},   {.3f, .9f},
                                        {-.7f, .6f}, {-.9f, -.3f}, {-.2f, -.9f},
                                        {.7f, -.7f}, {.4f, .1f},   {-.3f, -.2f}};
  const float *px = places, *py = places + room, *height = places + 2 * room;
  const float last = static_cast<float>(size - 1);
  for (int64_t i = 0; i < count; ++i) share[i] = 0;
  for (const float* at : kDisc) {
    for (int64_t i = 0; i < count; ++i) {
      const float x = px[i] + reach * at[0], y = py[i] + reach * at[1];
      const float column = std::min(last, std::max(0.0f, x));
      const float row = std::min(last, std::max(0.0f, y));
      const float above = heights[static_cast<int32_t>(row) * size + static_cast<int32_t>(column)];
      const bool covered = (column == x) & (row == y) & (height[i] <= above);
      share[i] += covered ? 0.0f : 1.0f / 9.0f;
    }
  }
}

// A fibre shines across its direction (Kajiya and Kay), within the shape of the whole head of hair.
REST_FAST_MULTI_ISA void strands(const Lights& given, uint32_t seed, const float* __restrict n,
                                 int64_t room, int64_t count, float* __restrict colour) {
  const Lights l = given;
  for (int64_t i = 0; i < count; ++i) {
    const float* paint = n + kColours * room + i;
    const float key = n[kKey * room + i], gloss = paint[3 * room], open = paint[4 * room];
    const Vec normal = at(n + kNormal * room, room, i), along = at(n + kAlong * room, room, i);
    const auto across = [&](const Vec& light) {
      const float c = dot(along, light);
      return std::sqrt(std::max(0.0f, 1.0f - c * c));
    };
    const float shape = clamp01(0.35f + 0.65f * dot(normal, l.key));
    const float shape_fill = clamp01(0.3f + 0.7f * dot(normal, l.fill));
    const float fibre =
        noise(paint[7 * room] * 5.0f, paint[5 * room] * 3.0f, paint[6 * room], seed);
    const Vec albedo = at(paint, room, 0) * (1.0f + 0.4f * fibre);
    const Vec body =
        albedo * (l.key_colour * (across(l.key) * shape * (0.15f + 0.85f * key)) +
                  l.fill_colour * (across(l.fill) * shape_fill * open) + l.ambient(normal, open));
    const float shine = power(across(l.half_key), 5) * shape * key * gloss;
    const float second = power(across(unit(l.half_key + normal * 0.25f)), 3) * shape * key * gloss;
    const Vec out =
        body + l.key_colour * (Vec{0.05f, 0.05f, 0.05f} * shine + albedo * (0.5f * second)) * open;
    colour[i] = out.x, colour[room + i] = out.y, colour[2 * room + i] = out.z;
  }
}

// Two rows of picture elements at a time. A pixel of skin alone is shaded once for its four.
class Rows {
 public:
  explicit Rows(const HeadsShadeParams& params)
      : p(params),
        shader_(p),
        map_(load(p.lights), load(p.map), p.map[3], p.shadow_size),
        strands_(kStrandFields, 2 * p.width),
        surfaces_(kSurfaceFields, 2 * p.width) {}

  void shade(int64_t y) {
    strands_.element.clear();
    surfaces_.element.clear();
    points_.clear();
    for (int64_t x = 0; x < p.width; x += 2) {
      if (plain(x, y)) {
        add(y * p.width + x);
        continue;
      }
      for (int64_t j = y; j < std::min(p.height, y + 2); ++j) {
        for (int64_t i = x; i < std::min(p.width, x + 2); ++i) {
          if (p.id[j * p.width + i] >= 0) add(j * p.width + i);
        }
      }
    }
    finish_strands();
    finish_surfaces();
  }

 private:
  HeadsKind kind(int64_t element) const { return static_cast<HeadsKind>(p.kind[p.id[element]]); }
  bool skin(int64_t element) const {
    return p.id[element] >= 0 && kind(element) == HeadsKind::kSkin;
  }
  bool plain(int64_t x, int64_t y) const {
    const int64_t i = y * p.width + x;
    return x + 1 < p.width && y + 1 < p.height && skin(i) && skin(i + 1) && skin(i + p.width) &&
           skin(i + p.width + 1);
  }

  void add(int64_t element) {
    if (kind(element) == HeadsKind::kStrand) {
      add_strand(element);
    } else {
      add_surface(element);
    }
  }

  // Between two pairs of points; across: 0 on the one edge, 1 on the other.
  void add_strand(int64_t element) {
    const int32_t* corner = p.triangle + 3 * p.id[element];
    const float* w = p.share + 3 * element;
    const int64_t first = (corner[0] - p.mesh) / 2;
    float next = 0, across = 0;
    for (int k = 0; k < 3; ++k) {
      if ((corner[k] - p.mesh) / 2 != first) next += w[k];
      if ((corner[k] - p.mesh) % 2) across += w[k];
    }
    const int64_t a = p.mesh + first, b = a + 1;
    const Vec normal = unit(mix(load(p.normal + 3 * a), load(p.normal + 3 * b), next));
    strands_.put(kPlace,
                 above(blend(p.world, corner, w), normal, lift(HeadsKind::kStrand, nullptr)));
    strands_.put(kNormal, normal);
    strands_.put(kAlong, load(p.along + 3 * first));
    for (int c = 0; c < kAcross; ++c) {
      const float from = p.paint[kPaint * a + c], to = p.paint[kPaint * b + c];
      strands_[kColours + c][strands_.count()] = from + (to - from) * next;
    }
    strands_[kColours + kAcross][strands_.count()] = across;
    strands_.element.push_back(element);
  }

  void add_surface(int64_t element) {
    const int32_t* corner = p.triangle + 3 * p.id[element];
    const float* w = p.share + 3 * element;
    points_.emplace_back();
    Point& q = points_.back();
    q.rest = blend(p.rest, corner, w);
    q.normal = unit(blend(p.normal, corner, w));
    for (int c = 0; c < kPaint; ++c) {
      q.paint[c] = w[0] * p.paint[kPaint * corner[0] + c] + w[1] * p.paint[kPaint * corner[1] + c] +
                   w[2] * p.paint[kPaint * corner[2] + c];
    }
    const float bias = lift(kind(element), q.paint);
    surfaces_.put(kPlace, above(blend(p.world, corner, w), q.normal, bias));
    surfaces_.put(kRest, q.rest);
    surfaces_.element.push_back(element);
  }

  // Where the light's map is asked: its shadows begin `bias` decimetres above a surface.
  Vec above(const Vec& world, const Vec& normal, float bias) const {
    return map_.place(world + normal * bias) + Vec{0, 0, bias};
  }

  // Decimetres above a surface from which the light is looked for.
  static float lift(HeadsKind kind, const float* paint) {
    switch (kind) {
      case HeadsKind::kSkin: return clothed(paint) ? 0.04f : 0.025f;
      case HeadsKind::kMouth:
      case HeadsKind::kTongue: return 0.03f;
      case HeadsKind::kSolid: return 0.04f;
      case HeadsKind::kStrand: return 0.06f;
      default: return 0.05f;
    }
  }

  void light(Batch& batch) const {
    const float reach = p.map[4] * 0.5f * map_.size / map_.radius;
    key_shares(p.shadow, static_cast<int32_t>(map_.size), reach, batch[kPlace], batch.room,
               batch.count(), batch[kKey]);
  }

  void finish_strands() {
    light(strands_);
    float* colour = strands_[kPlace];  // no longer needed
    strands(shader_.lights, shader_.seed + 11, strands_[0], strands_.room, strands_.count(),
            colour);
    for (int64_t i = 0; i < strands_.count(); ++i)
      store(at(colour, strands_.room, i), p.colour + 3 * strands_.element[i]);
  }

  void finish_surfaces() {
    light(surfaces_);
    noises(surfaces_[kRest], surfaces_.room, surfaces_.count(), shader_.seed, surfaces_[kNoise]);
    for (int64_t i = 0; i < surfaces_.count(); ++i) {
      Point& q = points_[i];
      q.key = surfaces_[kKey][i];
      for (int octave = 0; octave < kOctaves; ++octave)
        q.noise[octave] = surfaces_[kNoise + octave][i];
      const int64_t element = surfaces_.element[i], x = element % p.width, y = element / p.width;
      const Vec colour = shader_.colour(kind(element), q);
      store(colour, p.colour + 3 * element);
      if (x % 2 == 0 && y % 2 == 0 && plain(x, y)) {
        for (const int64_t other : {element + 1, element + p.width, element + p.width + 1})
          store(colour, p.colour + 3 * other);
      }
    }
  }

  const HeadsShadeParams& p;
  const Shader shader_;
  const LightMap map_;
  Batch strands_, surfaces_;
  std::vector<Point> points_;
};

int check(const HeadsShadeParams& p) {
  if (p.mesh < 0 || p.points < p.mesh || p.height < 1 || p.width < 1 || p.shadow_size < 1)
    return kBadShape;
  if (!(p.map[3] > 0)) return kBadShape;
  bool good = true;
  for (int64_t i = 0; i < p.height * p.width; ++i) good &= p.id[i] >= -1 && p.id[i] < p.triangles;
  const int64_t pairs = (p.points - p.mesh) / 2;
  for (int64_t t = 0; t < p.triangles; ++t) {
    const int32_t* corner = p.triangle + 3 * t;
    const HeadsKind kind = static_cast<HeadsKind>(p.kind[t]);
    if (kind == HeadsKind::kStrand) {  // from a pair to the next one
      const int64_t first = corner[0] - p.mesh - (corner[0] - p.mesh) % 2;
      good &= first >= 0 && first / 2 + 1 < pairs;
      for (int k = 0; k < 3; ++k)
        good &= corner[k] - p.mesh >= first && corner[k] - p.mesh < first + 4;
    } else {
      good &= kind < HeadsKind::kStrand;
      for (int k = 0; k < 3; ++k) good &= corner[k] >= 0 && corner[k] < p.mesh;
    }
  }
  return good ? kOk : kBadShape;
}

}  // namespace

int heads_shade(const HeadsShadeParams& p) {
  if (p.id == nullptr || p.colour == nullptr || p.lights == nullptr || p.map == nullptr)
    return kNullAddress;
  if (const int error = check(p)) return error;
  std::fill(p.colour, p.colour + 3 * p.height * p.width, 0.0f);
  Rows rows(p);
  for (int64_t y = 0; y < p.height; y += 2) rows.shade(y);
  return kOk;
}

}  // namespace rest_fast
