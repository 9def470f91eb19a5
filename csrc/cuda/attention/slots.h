// Which keys a lane sees: the slots [0, n_valid) of its row and bank, as they lie.
#pragma once

#include "../../ops/sink_ring_attention.h"
#include "../device.h"

namespace rest_fast {

// One head's keys and values of a lane: `count` slots, each `stride` numbers after the one before.
template <class T>
struct ValidSlots {
  const T* k;
  const T* v;
  int64_t stride;
  int count;  // 0: the lane is idle, or an index is out of range; nothing may be read or written
};

template <class T>
__device__ __forceinline__ ValidSlots<T> valid_slots(const SinkRingAttentionParams& p, int lane,
                                                     int head) {
  const int row = p.row_index[lane], bank = p.bank_index[lane], count = p.n_valid[lane];
  // No short circuits: the three loads are in flight together.
  const bool inside = (row >= 0) & (row < p.rows) & (bank >= 0) & (bank < p.banks) & (count > 0) &
                      (count <= p.slots);
  const int64_t first = row * p.row_stride + bank * p.bank_stride + head * p.head_dim;
  return {static_cast<const T*>(p.k_cache) + (inside ? first : 0),
          static_cast<const T*>(p.v_cache) + (inside ? first : 0), p.heads * p.head_dim,
          inside ? count : 0};
}

}  // namespace rest_fast
