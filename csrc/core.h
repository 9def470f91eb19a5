// What crosses the boundary between Python and C++: dtypes, error codes, and how an op lists what
// it takes. An op itself is a header of its own, csrc/ops/<op>.h.
//
// Tensors never cross it. Python checks shapes, dtypes, devices and contiguity next to the
// reference (rest_fast/ops/<op>.py) and hands over addresses, sizes and strides; an op returns an
// error code that Python turns into an exception. Nothing here knows torch, so a built module
// outlives any torch upgrade. All strides count elements.
#pragma once

#include <cstdint>
#include <tuple>

namespace rest_fast {

// The order is part of the Python interface: rest_fast/ops passes the numbers.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int32_t kIdle = -1;  // as the cache row of a lane: it has nothing to do

enum ErrorCode : int {
  kOk = 0,
  kBadDType = 1,
  kBadShape = 2,
  kRowOutOfRange = 3,
  kBankOutOfRange = 4,
  kSlotOutOfRange = 5,
  kPositionOutOfRange = 6,
  kMisaligned = 7,
  kSkipOutOfRange = 8,
  kRowShared = 9,
  kNullAddress = 10,
  kBadFrames = 11,
  kBadElementSize = 12,
  kBadFactors = 13,
  kLengthOutOfRange = 14,
  kBadVectorWidth = 15,
  kBadLayout = 16,
  kAudioSlotOutOfRange = 17,
  kBadHeadSize = 18,
  kNotWholeVectors = 19,
  kOldGpu = 20,
  kCudaErrorBase = 1000,  // 1000 + cudaError_t, from rest_fast._cuda only
};

inline const char* error_string(int code) {
  switch (code) {
    case kOk: return "ok";
    case kBadDType: return "dtype is not one of float32 (0), bfloat16 (1), float16 (2)";
    case kBadShape: return "bad shape: a size is negative, or the width is odd, or too wide";
    case kRowOutOfRange: return "row_index is outside the cache rows";
    case kBankOutOfRange: return "bank_index is outside the cache banks";
    case kSlotOutOfRange: return "write_slot + tokens is outside the cache slots";
    case kPositionOutOfRange: return "base + latent frames is outside the rows of rope_t";
    case kMisaligned: return "an address or stride is not a multiple of a channel pair";
    case kSkipOutOfRange: return "skip_slot .. skip_slot + chunk is outside the context slots";
    case kRowShared: return "row_index of an enabled lane is also that of another lane";
    case kNullAddress: return "the address of a required tensor is null";
    case kBadFrames: return "bad shape: the latent frames do not divide the tokens";
    case kBadElementSize: return "element size is not one of 1, 2, 4, 8 bytes";
    case kBadFactors: return "a factor is below 1, or drop leaves no frame";
    case kLengthOutOfRange: return "n_valid is outside 1 .. slots";
    case kBadLayout: return "the channels of a pixel do not follow one another";
    case kAudioSlotOutOfRange: return "slot is outside -1 .. slots - 1";
    case kBadVectorWidth: return "no vectors of that width on this machine";
    case kBadHeadSize: return "head size is not one of 64, 128";
    case kNotWholeVectors: return "an address or stride is not a multiple of 16 bytes";
    case kOldGpu: return "the GPU is older than this kernel, which needs compute capability 8.0";
    default: return "unknown error";
  }
}

inline bool known(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

// Steps in memory of a tensor [B, C, T, H, W].
struct VolumeStrides {
  int64_t batch;
  int64_t channel;
  int64_t frame;
  int64_t row;
  int64_t column;
};

// One argument of an op as Python sees it: its name, and the field of the struct that it sets.
template <class Get>
struct Field {
  const char* name;
  Get get;
};

template <class Get>
Field(const char*, Get) -> Field<Get>;

// What an op takes is `inline auto arguments(const Params*)`, a tuple of these in the order of the
// call. FIELD(x) sets p.x; SETS("x", expression of p) sets what the expression names.
#define REST_FAST_SETS(name, ...)                               \
  ::rest_fast::Field {                                          \
    name, [](auto& p) -> decltype(auto) { return __VA_ARGS__; } \
  }
#define REST_FAST_FIELD(member) REST_FAST_SETS(#member, (p.member))

}  // namespace rest_fast
