// rest_fast._cuda: the signatures of rest_fast._cpu with a stream and a device after them.
#include <pybind11/pybind11.h>

#include <string>

#include "pack.h"

namespace py = pybind11;
namespace rf = rest_fast;
using rf::Address;

namespace rest_fast {
const char* cuda_error_string(int error);  // csrc/cuda: keeps cuda_runtime.h out of this file
}

namespace {

int qk_norm_rope_cache(Address qkv, Address q_weight, Address k_weight, Address rope_t,
                       Address rope_y, Address rope_x, Address k_cache, Address v_cache,
                       Address q_out, Address row_index, Address ring_index, Address write_slot,
                       Address base, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                       int64_t positions, int64_t grid_h, int64_t grid_w, int64_t rows,
                       int64_t rings, int64_t slots, int64_t row_stride, int64_t ring_stride,
                       double eps, int dtype, Address stream, int device) {
  return rf::qk_norm_rope_cache_cuda(
      rf::pack_qk_norm_rope_cache(qkv, q_weight, k_weight, rope_t, rope_y, rope_x, k_cache, v_cache,
                                  q_out, row_index, ring_index, write_slot, base, batch, tokens,
                                  heads, head_dim, positions, grid_h, grid_w, rows, rings, slots,
                                  row_stride, ring_stride, eps, dtype),
      rf::pointer<void>(stream), device);
}

std::string error_string(int code) {
  if (code < rf::kCudaErrorBase) return rf::error_string(code);
  return std::string("CUDA: ") + rf::cuda_error_string(code - rf::kCudaErrorBase);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA back end of rest_fast: raw device addresses in, error codes out.";
  m.def("error_string", &error_string, "What a non-zero return code means.");
  m.def("qk_norm_rope_cache", &qk_norm_rope_cache, py::call_guard<py::gil_scoped_release>(),
        "The arguments of rest_fast._cpu.qk_norm_rope_cache, then stream, device -> error code");
}
