// A CUDA "device" made of host threads, so that the kernels in csrc/*.cu can be run, and run under the address
// sanitizer, where there is no GPU: every CUDA thread of a block is a host thread, barriers are barriers, shared memory
// is a heap buffer of exactly the size that the launch asked for. It knows what our kernels use and no more; timing
// means nothing here.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define ESSL_EMULATED 1
#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace emulated {

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0, ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  const int count_;
  int waiting_ = 0;
  unsigned round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
};

struct Thread {
  dim3 thread, block;
  unsigned char* shared;
  Barrier* block_barrier;
  Barrier* warp_barrier;
  uint64_t* warp_slots;  // (32,) what lanes show each other
};
inline thread_local Thread me;

}  // namespace emulated

#define threadIdx (emulated::me.thread)
#define blockIdx (emulated::me.block)

namespace essl {
inline unsigned char* dynamic_shared() { return emulated::me.shared; }
}  // namespace essl

inline void __syncthreads() { emulated::me.block_barrier->wait(); }
inline void __syncwarp() { emulated::me.warp_barrier->wait(); }

// The value of the lane whose number differs in the bits of `lanes`. The whole warp takes part.
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a slot holds 8 bytes");
  const unsigned lane = emulated::me.thread.x % 32;
  std::memcpy(&emulated::me.warp_slots[lane], &value, sizeof value);
  __syncwarp();
  std::memcpy(&value, &emulated::me.warp_slots[lane ^ static_cast<unsigned>(lanes)], sizeof value);
  __syncwarp();
  return value;
}

inline int __reduce_min_sync(unsigned warp, int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value = std::min(value, __shfl_xor_sync(warp, value, lanes));
  return value;
}
inline int __reduce_max_sync(unsigned warp, int value) { return ~__reduce_min_sync(warp, ~value); }

template <class T>
T __ldg(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) throw "misaligned load";
  return *address;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31u));
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = (static_cast<uint64_t>(y) << 32) | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>((bytes >> (8 * ((selector >> (4 * i)) & 7u))) & 255u) << (8 * i);
  return result;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// Blocks of whole warps. Each block gets fresh shared memory, filled with a pattern.
template <class... Wanted, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...), Given&&... arguments) {
  const unsigned threads = config->blockDim.x;
  emulated::Barrier block_barrier(static_cast<int>(threads));
  std::vector<std::unique_ptr<emulated::Barrier>> warp_barriers;
  for (unsigned w = 0; w < threads / 32; ++w) warp_barriers.push_back(std::make_unique<emulated::Barrier>(32));
  std::vector<uint64_t> slots(threads);
  unsigned char* shared = nullptr;
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      const dim3 grid = config->gridDim;
      for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
        if (t == 0) {
          shared = new (std::align_val_t{16}) unsigned char[config->dynamicSmemBytes];
          std::memset(shared, 0xA5, config->dynamicSmemBytes);
        }
        block_barrier.wait();
        const dim3 block(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
        emulated::me = {dim3(t), block, shared, &block_barrier, warp_barriers[t / 32].get(), &slots[t / 32 * 32]};
        kernel(arguments...);
        block_barrier.wait();
        if (t == 0) ::operator delete[](shared, std::align_val_t{16});
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  return cudaSuccess;
}
