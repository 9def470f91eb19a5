// Attention to the few audio tokens of a frame, its output projection and the residual, in one
// pass:
//
//   x += base_i + sum over a and h of share[a, h] update_i[a, h],  share = softmax of (0, q'
//   keys_i[a])
//
// Layout: ops/frame_audio_update.h. A block takes kTokens tokens of a frame of a lane and a vector
// of channels a thread. Its warps turn queries into shares, in shared memory: the root of the mean
// square spans all heads and is applied to the scores, so a query is read once. Then each thread
// keeps its channels of all tokens in registers and adds up the rank, so an update is read once for
// kTokens. No share is rounded: the sums are fp32 outside of tensor cores, which at rank 32 cost
// less than the bytes (docs/kernels/frame_audio_update.md). A lane whose slot is out of range
// writes nothing. Limits: heads x others <= kMaxRank.
#include "../ops/frame_audio_update.h"
#include "launch.h"
#include "ptx.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = 8;  // times the channels of a vector: registers of a thread
constexpr float kLog2E = 1.4426950408889634f;

// One warp: the shares of one token, at share[rank * kTokens].
template <class T, int kVec>
__device__ __forceinline__ void find_shares(const FrameAudioUpdateParams& p, const T* q,
                                            const T* keys, float* share) {
  const int heads = static_cast<int>(p.heads), dim = static_cast<int>(p.head_dim);
  const int others = static_cast<int>(p.others), vectors = dim / kVec;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int per_head = 1;  // lanes: a power of two, so that a shuffle stays among them
  while (per_head < vectors && per_head < kWarp) per_head *= 2;
  const int within = lane % per_head;

  float squares = 0.0f;
  for (int first = 0; first < heads; first += kWarp / per_head) {
    const int head = first + lane / per_head;
    const bool real = head < heads;
    for (int other = 0; other < others; ++other) {
      const int place = other * heads + head;
      float dot = 0.0f;
      for (int v = within; real && v < vectors; v += per_head) {
        const auto query = load<T, kVec>(q + head * dim, v);
        const auto key = load<T, kVec>(keys + place * dim, v);
#pragma unroll
        for (int e = 0; e < kVec; ++e) dot += to_float(query.at[e]) * to_float(key.at[e]);
        if (other == 0) squares += sum_of_squares(query);
      }
      for (int offset = per_head / 2; offset > 0; offset /= 2) {
        dot += __shfl_xor_sync(kAllLanes, dot, offset);
      }
      if (real && within == 0) share[place * kTokens] = dot;
    }
  }
  const float root =
      rsqrtf(__fdividef(warp_sum(squares), static_cast<float>(heads * dim)) + p.eps) * kLog2E;
  __syncwarp();
  for (int head = lane; head < heads; head += kWarp) {
    float most = 0.0f, sum = 0.0f;  // the first audio token has a score of zero
    for (int other = 0; other < others; ++other) {
      most = fmaxf(most, share[(other * heads + head) * kTokens] * root);
    }
    for (int other = 0; other < others; ++other) {
      float& weight = share[(other * heads + head) * kTokens];
      weight = exp2_approximate(weight * root - most);
      sum += weight;
    }
    sum += exp2_approximate(-most);
    for (int other = 0; other < others; ++other) {
      float& weight = share[(other * heads + head) * kTokens];
      weight = __fdividef(weight, sum);
    }
  }
}

// What a block works on: `count` tokens, from `token` of the lane on, in one frame.
struct Tile {
  int frame, token, count;
};

// In 32 bits: a division of 64 is a function call, around which registers spill.
__device__ __forceinline__ Tile find_tile(const FrameAudioUpdateParams& p) {
  const int per_frame = static_cast<int>(p.tokens) / static_cast<int>(p.frames);
  const int tiles = (per_frame + kTokens - 1) / kTokens, block = static_cast<int>(blockIdx.x);
  const int frame = block / tiles, first = block % tiles * kTokens;
  return {frame, frame * per_frame + first, min(per_frame - first, kTokens)};
}

// x += constant + sum over the rank of share update, for this thread's vector of channels.
template <class T, int kVec>
__device__ __forceinline__ void add(T* x, int count, int64_t width, int64_t vector,
                                    const T* constant, const T* update, int rank,
                                    const float* share) {
  const auto added = load<T, kVec>(constant, vector);
  float sum[kTokens][kVec];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    Vector<T, kVec> old{};
    if (t < count) old = load<T, kVec>(x + t * width, vector);
#pragma unroll
    for (int e = 0; e < kVec; ++e) sum[t][e] = to_float(old.at[e]) + to_float(added.at[e]);
  }
#pragma unroll 4
  for (int r = 0; r < rank; ++r) {
    const auto part = load<T, kVec>(update + r * width, vector);
    const auto low = load<float, 4>(share + r * kTokens, 0);
    const auto high = load<float, 4>(share + r * kTokens, 1);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const float wide = to_float(part.at[e]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        sum[t][e] += (t < 4 ? low.at[t % 4] : high.at[t % 4]) * wide;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    Vector<T, kVec> out;
#pragma unroll
    for (int e = 0; e < kVec; ++e) out.at[e] = round_to<T>(sum[t][e]);
    if (t < count) store<T, kVec>(x + t * width, vector, out);
  }
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, 3)
    frame_audio_update_kernel(const FrameAudioUpdateParams p) {
  static_assert(kTokens == 8, "shares of a rank are two vectors of four floats");
  REST_FAST_DYNAMIC_SHARED(memory);
  float* share = reinterpret_cast<float*>(memory);  // [rank, kTokens]
  const Tile tile = find_tile(p);
  const int64_t lane = blockIdx.z, vector = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t slot = lane < p.hearing ? p.slot[lane] : kIdle;
  if (slot != kIdle && (slot < 0 || slot >= p.slots)) return;  // the whole block
  T* x = static_cast<T*>(p.x) + (lane * p.tokens + tile.token) * p.width;
  const bool mine = vector * kVec < p.width;

  if (slot == kIdle) {
    const T* null = static_cast<const T*>(p.null);
    if (mine) add<T, kVec>(x, tile.count, p.width, vector, null, nullptr, 0, share);
    return;
  }
  const int rank = static_cast<int>(p.others * p.heads);
  const int64_t heard = slot * p.frames + tile.frame, channels = p.heads * p.head_dim;
  const T* q = static_cast<const T*>(p.q) + (lane * p.tokens + tile.token) * channels;
  const T* keys = static_cast<const T*>(p.keys) + heard * rank * p.head_dim;
  for (int t = static_cast<int>(threadIdx.x) / kWarp; t < kTokens; t += kThreads / kWarp) {
    const int real = t < tile.count ? t : 0;  // the others' shares are used, and their sums dropped
    find_shares<T, kVec>(p, q + real * channels, keys, share + t);
  }
  __syncthreads();
  if (!mine) return;
  const T* base = static_cast<const T*>(p.base) + heard * p.width;
  const T* update = static_cast<const T*>(p.update) + heard * rank * p.width;
  add<T, kVec>(x, tile.count, p.width, vector, base, update, rank, share);
}

template <class T, int kVec>
int launch_for(const FrameAudioUpdateParams& p, void* stream) {
  const int64_t tiles = (p.tokens / p.frames + kTokens - 1) / kTokens * p.frames;
  const int64_t parts = (p.width / kVec + kThreads - 1) / kThreads;
  if (p.tokens > INT32_MAX || parts > kMaxGridY || p.batch > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(parts),
                  static_cast<unsigned>(p.batch));
  const size_t shared = static_cast<size_t>(p.others * p.heads) * kTokens * sizeof(float);
  return launch(frame_audio_update_kernel<T, kVec>, p, grid, kThreads, stream, shared);
}

template <class T>
int dispatch(const FrameAudioUpdateParams& p, void* stream) {
  constexpr int kWide = 16 / sizeof(T);
  const bool whole = p.width % kWide == 0 && p.head_dim % kWide == 0;
  const bool wide = whole && aligned({p.x, p.q, p.keys, p.base, p.update, p.null}, 16);
  return wide ? launch_for<T, kWide>(p, stream) : launch_for<T, 1>(p, stream);
}

}  // namespace

int frame_audio_update_cuda(const FrameAudioUpdateParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
