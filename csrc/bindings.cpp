// rest_fast._cpu: addresses in, error code out. See params.h for the shapes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pack.h"
#include "threads.h"

namespace py = pybind11;
namespace rf = rest_fast;
using rf::Address;

namespace {

int qk_norm_rope_cache(Address qkv, Address q_weight, Address k_weight, Address rope_t,
                       Address rope_y, Address rope_x, Address k_cache, Address v_cache,
                       Address q_out, Address row_index, Address ring_index, Address write_slot,
                       Address base, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                       int64_t positions, int64_t grid_h, int64_t grid_w, int64_t rows,
                       int64_t rings, int64_t slots, int64_t row_stride, int64_t ring_stride,
                       double eps, int dtype) {
  return rf::qk_norm_rope_cache_cpu(rf::pack_qk_norm_rope_cache(
      qkv, q_weight, k_weight, rope_t, rope_y, rope_x, k_cache, v_cache, q_out, row_index,
      ring_index, write_slot, base, batch, tokens, heads, head_dim, positions, grid_h, grid_w, rows,
      rings, slots, row_stride, ring_stride, eps, dtype));
}

int rotate_context(Address k_cache, Address shift, Address row_index, Address skip_slot,
                   Address enabled, int64_t batch, int64_t layers, int64_t rows, int64_t rings,
                   int64_t slots, int64_t width, int64_t sink, int64_t chunk, int dtype) {
  return rf::rotate_context_cpu(rf::pack_rotate_context(k_cache, shift, row_index, skip_slot,
                                                        enabled, batch, layers, rows, rings, slots,
                                                        width, sink, chunk, dtype));
}

int gate_norm_modulate(Address x, Address branch, Address gate, Address scale, Address shift,
                       Address out, int64_t batch, int64_t tokens, int64_t width,
                       int64_t gate_frames, int64_t norm_frames, int64_t gate_lane_stride,
                       int64_t gate_frame_stride, int64_t scale_lane_stride,
                       int64_t scale_frame_stride, int64_t shift_lane_stride,
                       int64_t shift_frame_stride, double eps, int rounding, int dtype) {
  return rf::gate_norm_modulate_cpu(rf::pack_gate_norm_modulate(
      x, branch, gate, scale, shift, out, batch, tokens, width, gate_frames, norm_frames,
      gate_lane_stride, gate_frame_stride, scale_lane_stride, scale_frame_stride, shift_lane_stride,
      shift_frame_stride, eps, rounding, dtype));
}

int sink_ring_attention(Address q, Address k_cache, Address v_cache, Address out, Address lse,
                        Address row_index, Address ring_index, Address n_valid, int64_t batch,
                        int64_t tokens, int64_t heads, int64_t head_dim, int64_t rows,
                        int64_t rings, int64_t slots, int64_t row_stride, int64_t ring_stride,
                        int64_t vector_lanes, double scale, int dtype) {
  return rf::sink_ring_attention_cpu(rf::pack_sink_ring_attention(
      q, k_cache, v_cache, out, lse, row_index, ring_index, n_valid, batch, tokens, heads, head_dim,
      rows, rings, slots, row_stride, ring_stride, vector_lanes, scale, dtype));
}

int frame_cross_attention(Address q, Address q_weight, Address k, Address v, Address out,
                          int64_t batch, int64_t kv_batch, int64_t tokens, int64_t frames,
                          int64_t audio, int64_t heads, int64_t head_dim, int64_t vector_lanes,
                          double eps, int dtype) {
  return rf::frame_cross_attention_cpu(
      rf::pack_frame_cross_attention(q, q_weight, k, v, out, batch, kv_batch, tokens, frames, audio,
                                     heads, head_dim, vector_lanes, eps, dtype));
}

int cfg_euler_step(Address z, Address v_cond, Address v_uncond, Address guidance, Address dt,
                   int64_t sessions, int64_t numel, int dtype, int velocity_dtype) {
  return rf::cfg_euler_step_cpu(rf::pack_cfg_euler_step(z, v_cond, v_uncond, guidance, dt, sessions,
                                                        numel, dtype, velocity_dtype));
}

int pixel_norm_silu(Address x, Address scale, Address shift, Address out, const rf::Five& shape,
                    const rf::Five& x_strides, const rf::Five& out_strides, double eps, int dtype) {
  return rf::pixel_norm_silu_cpu(
      rf::pack_pixel_norm_silu(x, scale, shift, out, shape, x_strides, out_strides, eps, dtype));
}

int depth_to_space(Address x, Address out, const rf::Five& shape, int64_t out_channels,
                   const std::array<int64_t, 3>& factors, int64_t drop, const rf::Five& x_strides,
                   const rf::Five& out_strides, int64_t element_size) {
  return rf::depth_to_space_cpu(rf::pack_depth_to_space(x, out, shape, out_channels, factors, drop,
                                                        x_strides, out_strides, element_size));
}

int frames_to_uint8(Address x, Address out, const rf::Five& shape, const rf::Five& x_strides,
                    int dtype) {
  return rf::frames_to_uint8_cpu(rf::pack_frames_to_uint8(x, out, shape, x_strides, dtype));
}

int conv_epilogue(Address conv, Address noise, Address noise_scale, Address residual, Address scale,
                  Address shift, Address out, Address normed, Address pictures,
                  const rf::Five& shape, int64_t residual_channels,
                  const std::array<int64_t, 3>& factors, int64_t drop, const rf::Five& conv_strides,
                  const rf::Five& residual_strides, const rf::Five& out_strides,
                  const rf::Five& normed_strides, double eps, int dtype) {
  return rf::conv_epilogue_cpu(rf::pack_conv_epilogue(
      conv, noise, noise_scale, residual, scale, shift, out, normed, pictures, shape,
      residual_channels, factors, drop, conv_strides, residual_strides, out_strides, normed_strides,
      eps, dtype));
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ back end of rest_fast: raw addresses in, error codes out.";
  m.def("error_string", &rf::error_string, "What a non-zero return code means.");
  m.def("set_threads", &rf::set_threads, "(count): OpenMP threads of the calling thread's regions");
  m.def("thread_seconds", &rf::thread_seconds, py::call_guard<py::gil_scoped_release>(),
        "(count) -> CPU seconds of the calling thread and its team of so many; -1: not known");
  m.def("qk_norm_rope_cache", &qk_norm_rope_cache, py::call_guard<py::gil_scoped_release>(),
        "(qkv, q_weight, k_weight, rope_t, rope_y, rope_x, k_cache, v_cache, q_out, row_index, "
        "ring_index, write_slot, base, batch, tokens, heads, head_dim, positions, grid_h, grid_w, "
        "rows, rings, slots, row_stride, ring_stride, eps, dtype) -> error code");
  m.def("rotate_context", &rotate_context, py::call_guard<py::gil_scoped_release>(),
        "(k_cache, shift, row_index, skip_slot, enabled, batch, layers, rows, rings, slots, width, "
        "sink, chunk, dtype) -> error code");
  m.def("gate_norm_modulate", &gate_norm_modulate, py::call_guard<py::gil_scoped_release>(),
        "(x, branch, gate, scale, shift, out, batch, tokens, width, gate_frames, norm_frames, "
        "gate_lane_stride, gate_frame_stride, scale_lane_stride, scale_frame_stride, "
        "shift_lane_stride, shift_frame_stride, eps, rounding, dtype) -> error code; "
        "address 0: left out");
  m.def("sink_ring_attention", &sink_ring_attention, py::call_guard<py::gil_scoped_release>(),
        "(q, k_cache, v_cache, out, lse or 0, row_index, ring_index, n_valid, batch, tokens, heads, "
        "head_dim, rows, rings, slots, row_stride, ring_stride, vector_lanes, scale, dtype) -> "
        "error code; vector_lanes 0: as the machine has");
  m.def("frame_cross_attention", &frame_cross_attention, py::call_guard<py::gil_scoped_release>(),
        "(q, q_weight, k, v, out, batch, kv_batch, tokens, frames, audio, heads, head_dim, "
        "vector_lanes, eps, dtype) -> error code; vector_lanes 0: as the machine has");
  m.def("cfg_euler_step", &cfg_euler_step, py::call_guard<py::gil_scoped_release>(),
        "(z, v_cond, v_uncond, guidance, dt, sessions, numel, dtype, velocity_dtype) -> error code");
  m.def("pixel_norm_silu", &pixel_norm_silu, py::call_guard<py::gil_scoped_release>(),
        "(x, scale or 0, shift or 0, out, shape of x, x_strides, out_strides, eps, dtype) -> error "
        "code; shape and strides are sequences of five");
  m.def("depth_to_space", &depth_to_space, py::call_guard<py::gil_scoped_release>(),
        "(x, out, shape of x, channels of out, factors, drop, x_strides, out_strides, "
        "element_size) -> error code");
  m.def("frames_to_uint8", &frames_to_uint8, py::call_guard<py::gil_scoped_release>(),
        "(x, out, shape of x, x_strides, dtype) -> error code");
  m.def("conv_epilogue", &conv_epilogue, py::call_guard<py::gil_scoped_release>(),
        "(conv, noise or 0, noise_scale or 0, residual or 0, scale or 0, shift or 0, out or 0, "
        "normed or 0, pictures or 0, [batch, channels of out, frames, height, width], "
        "residual_channels, factors, drop, conv_strides, residual_strides, out_strides, "
        "normed_strides, eps, dtype) -> error code; shape and strides are sequences of five");
}
