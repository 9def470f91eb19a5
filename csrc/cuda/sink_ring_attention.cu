// Attention over the valid slots of each lane's cache row, on the tensor cores of sm_80 and newer:
//
//   out = softmax(scale q K[:n]^T) V[:n],   lse = log sum exp(scale q K[:n]^T),   n = n_valid
//
// Layout: ops/sink_ring_attention.h. A block takes queries of one head of one lane (attend.h). No
// block needs another, so a lane's bits depend on nothing but the lane. Limits: bfloat16 and half;
// heads of 64 or 128; addresses and strides of 16 bytes. A lane with an index out of range writes
// nothing.
#include "../ops/sink_ring_attention.h"
#include "attention/attend.h"
#include "launch.h"

namespace rest_fast {
namespace {

template <class A>
__global__ void __launch_bounds__(A::kThreads, 2)
    sink_ring_attention_kernel(const SinkRingAttentionParams p) {
  using T = typename A::T;
  REST_FAST_DYNAMIC_SHARED(memory);
  const int lane = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  const auto slots = valid_slots<T>(p, lane, head);
  if (slots.count == 0) return;  // the whole block
  const int first = static_cast<int>(blockIdx.x) * A::kQueries;
  const int64_t stride = p.heads * p.head_dim;
  const int64_t at = (lane * p.tokens + first) * stride + head * p.head_dim;
  float* lse = p.lse == nullptr ? nullptr : p.lse + (lane * p.heads + head) * p.tokens + first;
  attend<A>(memory, slots,
            {static_cast<const T*>(p.q) + at, static_cast<T*>(p.out) + at, lse, stride,
             static_cast<int>(p.tokens) - first},
            p.scale);
}

template <class A>
int launch_for(const SinkRingAttentionParams& p, void* stream) {
  const int64_t blocks = (p.tokens + A::kQueries - 1) / A::kQueries;
  if (p.tokens > INT32_MAX || p.heads > kMaxGridY || p.batch > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch));
  return launch(sink_ring_attention_kernel<A>, p, grid, A::kThreads, stream, A::Tiles::kBytes);
}

template <class T>
int dispatch(const SinkRingAttentionParams& p, void* stream) {
  return by_queries<T>(p.head_dim, p.tokens,
                       [&](auto a) { return launch_for<decltype(a)>(p, stream); });
}

template <>
int dispatch<float>(const SinkRingAttentionParams&, void*) {
  return kBadDType;
}

}  // namespace

int sink_ring_attention_cuda(const SinkRingAttentionParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.head_dim != 64 && p.head_dim != 128) return kBadHeadSize;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  const bool strides = p.row_stride % 8 == 0 && p.bank_stride % 8 == 0;
  if (!strides || !aligned({p.q, p.k_cache, p.v_cache, p.out}, 16)) return kNotWholeVectors;
  if (const int error = expect_capability(8, device)) return error;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
