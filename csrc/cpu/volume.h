// Walking over the pixels of [B, C, T, H, W] tensors of any strides.
#pragma once

#include <utility>

#include "common.h"

namespace rest_fast {

// One axis of pixels: how many, and the steps that a source and a target take along it.
struct PixelAxis {
  int64_t size;
  int64_t from;
  int64_t to;
};

// Makes `inner` and `outer` one axis where the steps allow it.
inline void join(PixelAxis& inner, PixelAxis& outer) {
  if (inner.size == 1) std::swap(inner, outer);
  const bool follows = outer.from == inner.size * inner.from && outer.to == inner.size * inner.to;
  if (outer.size == 1 || !follows) return;
  inner.size *= outer.size;
  outer.size = 1;
}

// The pixels of one tensor pair, with as much as possible in the innermost axis.
struct PixelRuns {
  PixelAxis batch;
  PixelAxis frame;
  PixelAxis row;
  PixelAxis run;
  int64_t tiles;  // of a run, each of at most `tile` pixels
  int64_t tile;

  int64_t items() const { return batch.size * frame.size * row.size * tiles; }
};

// A part of a run: where it starts, and how many pixels it has.
struct PixelTile {
  int64_t from;
  int64_t to;
  int64_t pixels;
};

inline PixelRuns pixel_runs(int64_t batch, int64_t frames, int64_t height, int64_t width,
                            const VolumeStrides& from, const VolumeStrides& to, int64_t tile) {
  PixelRuns runs{{batch, from.batch, to.batch},
                 {frames, from.frame, to.frame},
                 {height, from.row, to.row},
                 {width, from.column, to.column},
                 0,
                 tile};
  join(runs.run, runs.row);
  join(runs.row, runs.frame);
  join(runs.run, runs.row);
  runs.tiles = (runs.run.size + tile - 1) / tile;
  return runs;
}

REST_FAST_INLINE PixelTile pixel_tile(const PixelRuns& runs, int64_t item) {
  const int64_t first = item % runs.tiles * runs.tile;
  item /= runs.tiles;
  const int64_t row = item % runs.row.size;
  item /= runs.row.size;
  const int64_t frame = item % runs.frame.size;
  const int64_t batch = item / runs.frame.size;
  const auto offset = [&](int64_t PixelAxis::* step) {
    return batch * (runs.batch.*step) + frame * (runs.frame.*step) + row * (runs.row.*step) +
           first * (runs.run.*step);
  };
  return {offset(&PixelAxis::from), offset(&PixelAxis::to),
          std::min(runs.tile, runs.run.size - first)};
}

}  // namespace rest_fast
