// Integers from Python -> the structs of params.h. One function per op, shared by _cpu and _cuda,
// so that both modules have the same positional signature by construction.
#pragma once

#include <cstdint>

#include "params.h"

namespace rest_fast {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline QkNormRopeCacheParams pack_qk_norm_rope_cache(
    Address qkv, Address q_weight, Address k_weight, Address rope_t, Address rope_y, Address rope_x,
    Address k_cache, Address v_cache, Address q_out, Address row_index, Address ring_index,
    Address write_slot, Address base, int64_t batch, int64_t tokens, int64_t heads,
    int64_t head_dim, int64_t positions, int64_t grid_h, int64_t grid_w, int64_t rows,
    int64_t rings, int64_t slots, int64_t row_stride, int64_t ring_stride, double eps, int dtype) {
  QkNormRopeCacheParams p{};
  p.qkv = pointer<const void>(qkv);
  p.q_weight = pointer<const void>(q_weight);
  p.k_weight = pointer<const void>(k_weight);
  p.rope_t = pointer<const float>(rope_t);
  p.rope_y = pointer<const float>(rope_y);
  p.rope_x = pointer<const float>(rope_x);
  p.k_cache = pointer<void>(k_cache);
  p.v_cache = pointer<void>(v_cache);
  p.q_out = pointer<void>(q_out);
  p.row_index = pointer<const int32_t>(row_index);
  p.ring_index = pointer<const int32_t>(ring_index);
  p.write_slot = pointer<const int32_t>(write_slot);
  p.base = pointer<const int32_t>(base);
  p.batch = batch;
  p.tokens = tokens;
  p.width = heads * head_dim;
  p.positions = positions;
  p.grid_h = grid_h;
  p.grid_w = grid_w;
  p.rows = rows;
  p.rings = rings;
  p.slots = slots;
  p.row_stride = row_stride;
  p.ring_stride = ring_stride;
  p.dtype = static_cast<DType>(dtype);
  p.eps = static_cast<float>(eps);
  return p;
}

}  // namespace rest_fast
