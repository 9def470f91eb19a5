// rest_fast._cuda: the signatures of rest_fast._cpu with a stream and a device after them.
#include <string>

#include "bind.h"
#include "ops/cfg_euler_step.h"
#include "ops/depth_to_space.h"
#include "ops/frame_audio_update.h"
#include "ops/frame_cross_attention.h"
#include "ops/frames_to_uint8.h"
#include "ops/gate_norm_modulate.h"
#include "ops/latent_noise.h"
#include "ops/move_and_paint.h"
#include "ops/pixel_norm_silu.h"
#include "ops/qk_norm_rope_cache.h"
#include "ops/rotate_context.h"
#include "ops/sink_ring_attention.h"
#include "ops/x0_renoise_step.h"

namespace rf = rest_fast;

namespace rest_fast {
const char* cuda_error_string(int error);  // csrc/cuda: keeps cuda_runtime.h out of this file
}

namespace {

std::string error_string(int code) {
  if (code < rf::kCudaErrorBase) return rf::error_string(code);
  return std::string("CUDA: ") + rf::cuda_error_string(code - rf::kCudaErrorBase);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA back end of rest_fast: raw device addresses in, error codes out.";
  m.def("error_string", &error_string, "What a non-zero return code means.");
  rf::bind_cuda(m, "frame_audio_update", rf::frame_audio_update_cuda);
  rf::bind_cuda(m, "qk_norm_rope_cache", rf::qk_norm_rope_cache_cuda);
  rf::bind_cuda(m, "rotate_context", rf::rotate_context_cuda);
  rf::bind_cuda(m, "gate_norm_modulate", rf::gate_norm_modulate_cuda);
  rf::bind_cuda(m, "frame_cross_attention", rf::frame_cross_attention_cuda);
  rf::bind_cuda(m, "cfg_euler_step", rf::cfg_euler_step_cuda);
  rf::bind_cuda(m, "x0_renoise_step", rf::x0_renoise_step_cuda);
  rf::bind_cuda(m, "latent_noise", rf::latent_noise_cuda);
  rf::bind_cuda(m, "pixel_norm_silu", rf::pixel_norm_silu_cuda);
  rf::bind_cuda(m, "depth_to_space", rf::depth_to_space_cuda);
  rf::bind_cuda(m, "frames_to_uint8", rf::frames_to_uint8_cuda);
  rf::bind_cuda(m, "move_and_paint", rf::move_and_paint_cuda);
  rf::bind_cuda(m, "sink_ring_attention", rf::sink_ring_attention_cuda);
}
