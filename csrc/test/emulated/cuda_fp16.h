// float16 of the host-thread "device": what the kernels use of CUDA's header, rounding to nearest even. Finite normal
// values only.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude == 0) return {static_cast<uint16_t>(bits >> 16)};
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000u) |
                                ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13))};
}
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
