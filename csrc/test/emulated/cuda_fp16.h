// float16 of the host-thread "device": what the kernels use of CUDA's header, rounding to nearest even.
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
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x477ff000u) {
    half = magnitude > 0x7f800000u ? 0x7fff : 0x7c00;  // NaN, infinity
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  } else {
    // Steps of 2^-24: those of floats from 0.5 on.
    const float sum = (sign ? -value : value) + 0.5f;
    std::memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  }
  return {static_cast<uint16_t>(sign | half)};
}
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
