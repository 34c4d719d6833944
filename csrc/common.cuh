// What every CUDA launcher needs: the device guard, and errors that say which op failed on which shapes.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace essl {

// Throws std::runtime_error if status is an error. `what`: the op and its shapes.
inline void check_cuda(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears an error that is not sticky, so that the next op's check does not find it
  throw std::runtime_error(what + ": CUDA error " + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
}

// Makes `device` the current one for its lifetime, then the previous one again.
class DeviceGuard {
 public:
  DeviceGuard(int device, const std::string& what) : device_(device) {
    check_cuda(cudaGetDevice(&before_), what);
    if (before_ != device_) check_cuda(cudaSetDevice(device_), what);
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

// The block's dynamic shared memory, aligned to 16 bytes. (A function, because tests that run kernels on the CPU
// replace it.)
#ifndef ESSL_EMULATED
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ uint4 essl_dynamic_shared[];
  return reinterpret_cast<unsigned char*>(essl_dynamic_shared);
}
#endif

}  // namespace essl
