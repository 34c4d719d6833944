// view_params and view_boxes on the GPU: one thread per view, and one per box. The contract is in view_params.h.
#include "common.cuh"
#include "view_params.h"

namespace essl {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) view_params_kernel(const ViewParams p) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < p.views * p.batch) write_params(p, at);
}

__global__ void __launch_bounds__(kThreads) view_boxes_kernel(const ViewBoxes p) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < p.views * p.batch * p.each) write_box(p, at);
}

template <class Params>
void launch(void (*kernel)(Params), const Params& p, int64_t count, int device, void* stream) {
  if (count == 0) return;
  const std::string what = describe(p);
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) throw std::runtime_error(what + ": too many for one launch");
  const DeviceGuard guard(device, what);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, p), what);
}

}  // namespace

void view_params_cuda(const ViewParams& p, int device, void* stream) {
  launch(view_params_kernel, p, p.views * p.batch, device, stream);
}

void view_boxes_cuda(const ViewBoxes& p, int device, void* stream) {
  launch(view_boxes_kernel, p, p.views * p.batch * p.each, device, stream);
}

}  // namespace essl
