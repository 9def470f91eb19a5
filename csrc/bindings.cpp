// rest_fast._cpu: addresses in, error code out.
#include "bind.h"
#include "heads/label.h"
#include "heads/pose.h"
#include "heads/raster.h"
#include "heads/shade.h"
#include "ops/cfg_euler_step.h"
#include "ops/conv3x3.h"
#include "ops/conv_epilogue.h"
#include "ops/depth_to_space.h"
#include "ops/frame_audio_update.h"
#include "ops/frame_cross_attention.h"
#include "ops/frames_to_uint8.h"
#include "ops/gate_norm_modulate.h"
#include "ops/latent_noise.h"
#include "ops/linear.h"
#include "ops/move_and_paint.h"
#include "ops/pixel_norm_silu.h"
#include "ops/qk_norm_rope_cache.h"
#include "ops/rotate_context.h"
#include "ops/sink_ring_attention.h"
#include "ops/x0_renoise_step.h"
#include "threads.h"

namespace rf = rest_fast;
namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ back end of rest_fast: raw addresses in, error codes out.";
  m.def("error_string", &rf::error_string, "What a non-zero return code means.");
  m.def("set_threads", &rf::set_threads, "(count): OpenMP threads of the calling thread's regions");
  m.def("thread_seconds", &rf::thread_seconds, py::call_guard<py::gil_scoped_release>(),
        "(count) -> CPU seconds of the calling thread and its team of so many; -1: not known");
  rf::bind_cpu(m, "qk_norm_rope_cache", rf::qk_norm_rope_cache_cpu);
  rf::bind_cpu(m, "rotate_context", rf::rotate_context_cpu);
  rf::bind_cpu(m, "gate_norm_modulate", rf::gate_norm_modulate_cpu);
  rf::bind_cpu(m, "frame_cross_attention", rf::frame_cross_attention_cpu);
  rf::bind_cpu(m, "frame_audio_update", rf::frame_audio_update_cpu);
  rf::bind_cpu(m, "sink_ring_attention", rf::sink_ring_attention_cpu);
  rf::bind_cpu(m, "cfg_euler_step", rf::cfg_euler_step_cpu);
  rf::bind_cpu(m, "x0_renoise_step", rf::x0_renoise_step_cpu);
  rf::bind_cpu(m, "latent_noise", rf::latent_noise_cpu);
  rf::bind_cpu(m, "linear", rf::linear_cpu);
  rf::bind_cpu(m, "pixel_norm_silu", rf::pixel_norm_silu_cpu);
  rf::bind_cpu(m, "depth_to_space", rf::depth_to_space_cpu);
  rf::bind_cpu(m, "frames_to_uint8", rf::frames_to_uint8_cpu);
  rf::bind_cpu(m, "move_and_paint", rf::move_and_paint_cpu);
  rf::bind_cpu(m, "conv_epilogue", rf::conv_epilogue_cpu);
  rf::bind_cpu(m, "conv3x3", rf::conv3x3_cpu);
  rf::bind_cpu(m, "heads_pose", rf::heads_pose);
  rf::bind_cpu(m, "heads_raster", rf::heads_raster);
  rf::bind_cpu(m, "heads_shadow", rf::heads_shadow);
  rf::bind_cpu(m, "heads_occlusion", rf::heads_occlusion);
  rf::bind_cpu(m, "heads_shade", rf::heads_shade);
  rf::bind_cpu(m, "heads_flow", rf::heads_flow);
  rf::bind_cpu(m, "heads_develop", rf::heads_develop);
}
