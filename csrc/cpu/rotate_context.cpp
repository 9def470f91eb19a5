// At commit: rotate the time pairs of the context keys back by one chunk, in place.
//
// Layout: ops/rotate_context.h. Why it exists: only the third of the key channels that moves is
// touched, where the reference gathers, widens, turns and scatters whole rows of the cache. Limits:
// an enabled lane's row is no other lane's, enabled or not; disabled lanes may share one.
#include "../ops/rotate_context.h"

#include "common.h"

namespace rest_fast {
namespace {

template <class T>
REST_FAST_INLINE void rotate_key(T* __restrict key, const float* __restrict shift,
                                 int64_t frequencies) {
  for (int64_t m = 0; m < frequencies; ++m) {
    const float cosine = shift[2 * m];
    const float sine = shift[2 * m + 1];
    const float a = to_float(key[6 * m]);
    const float b = to_float(key[6 * m + 1]);
    round_to(a * cosine - b * sine, key[6 * m]);
    round_to(a * sine + b * cosine, key[6 * m + 1]);
  }
}

// Banks of slots [begin, end) of B x layers x banks.
template <class T>
REST_FAST_INLINE void run_range(const RotateContextParams& p, int64_t begin, int64_t end) {
  const int64_t frequencies = p.width / 6;
  const int64_t first_time_channel = p.width - 6 * frequencies;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t lane = item / (p.layers * p.banks);
    if (p.enabled[lane] == 0 || p.row_index[lane] == kIdle) continue;
    const int64_t layer = item / p.banks % p.layers;
    const int64_t bank = item % p.banks;
    const int64_t place = (layer * p.rows + p.row_index[lane]) * p.banks + bank;
    T* keys = static_cast<T*>(p.k_cache) + place * p.slots * p.width + first_time_channel;
    const int64_t skip = p.skip_slot[lane];
    for (int64_t slot = p.sink; slot < p.slots; ++slot) {
      if (slot >= skip && slot < skip + p.chunk) continue;
      rotate_key(keys + slot * p.width, p.shift, frequencies);
    }
  }
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const RotateContextParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto zero) REST_FAST_INLINED { run_range<decltype(zero)>(p, begin, end); });
}

int check_indices(const RotateContextParams& p) {
  for (int64_t lane = 0; lane < p.batch; ++lane) {
    const int64_t row = p.row_index[lane];
    const int64_t skip = p.skip_slot[lane];
    if (row == kIdle) continue;
    if (row < 0 || row >= p.rows) return kRowOutOfRange;
    if (skip < p.sink || skip > p.slots - p.chunk) return kSkipOutOfRange;
    for (int64_t other = 0; other < lane; ++other) {
      const bool turned = p.enabled[lane] != 0 || p.enabled[other] != 0;
      if (turned && p.row_index[other] == row) return kRowShared;
    }
  }
  return kOk;
}

}  // namespace

int rotate_context_cpu(const RotateContextParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t items = p.batch * p.layers * p.banks;
  if (items == 0) return kOk;
  if (const int error = check_indices(p)) return error;

  const int threads = thread_count(items * (p.slots - p.sink - p.chunk) * p.width);
  // Dynamic: the lanes that are not enabled cost nothing.
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t item = 0; item < items; ++item) run(p, item, item + 1);
  return kOk;
}

}  // namespace rest_fast
