// Keeps the CUDA runtime out of the bindings.
#include "device.h"

namespace rest_fast {

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace rest_fast
