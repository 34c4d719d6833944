// log_mel on the GPU. The contract is in log_mel.h.
//
// A block computes 32 frames of a clip, with 8 threads per frame, so 4 frames per warp. Its 5,360 samples go to shared
// memory once, normalised. Then everything stays in registers and shared memory until the 8 KiB of output are written.
//
// Transform. Samples 2 n and 2 n + 1 make the complex number z[n], n < 256; from z[200] on they are zeros. Z, the
// 256-point transform, is computed as 16 * 16: with n = 16 a + b and k = c + 16 d, and Wn = exp(-2 pi i / n),
//
//   Z[c + 16 d] = sum_b W16^(b d) { W256^(b c) sum_a W16^(a c) z[16 a + b] }
//
// Thread t computes the inner sum of columns b = t and t + 8 in registers. The threads exchange them through shared
// memory, the only exchange. Then it computes the outer sum of rows c = t and 16 - t. The transform of the real samples
// needs Z[k] and Z[256 - k] together,
//
//   2 X[k] = (Z[k] + Z*[256 - k]) - i W512^k (Z[k] - Z*[256 - k]),   X[256 - k] the same with the other sign, mirrored,
//
// and these two are in the same thread: rows t and 16 - t, positions d and 15 - d. Thread 0 would have rows 0 and 16,
// which are the same. It takes 16, which is row 0 shifted by one position, and 8. Their partners are within the same
// row, so it swaps half of one row for half of the other.
//
// Mel and output. A warp then computes 8 bands of all 32 frames, one frame per lane, so that bands and weights are the
// same for the whole warp. With bands w, 15 - w, 16 + w, 31 - w, ... the sums of all warps are about equally long.
//
// Normalising needs the clip's minimum and maximum first: an earlier launch finds them, one block per clip. It stores
// them where each block of the main kernel will write its first output, so that no other memory is needed.
//
// Bytes for B = 128 clips of 48000 in int16: 12.3 MB read (twice if normalised; the second time from L2), 9.4 MB
// written: 5 us at 4.3 TB/s. Instructions, counted in the machine code for sm_90: about 2,060 per warp for its 4
// frames, 36,000 for each of an H200's 4 x 132 schedulers: 20 us at one per clock and 1.8 GHz. So instructions are the
// limit: by estimate 25 to 35 us with the first launch. Not measured on a GPU yet.
#include <cmath>
#include <utility>

#include "common.cuh"
#include "log_mel.h"
#include "log_mel_tables.h"

namespace essl {
namespace {

using tables::kBins;
using tables::kFirstBin;

constexpr int kThreads = 256;
constexpr int kFrames = 32;                        // per block
constexpr int kTeam = kThreads / kFrames;          // threads per frame
constexpr int kChunks = kExampleFrames / kFrames;  // blocks per example
constexpr int kSamples = (kFrames - 1) * kHop + kFrame;

// Shared memory, in floats. With each pitch, the 32 lanes of an access use 32 banks (or 16 lanes use 16 pairs of
// banks).
constexpr int kHopPitch = kHop + 16;         // samples: one row per hop
constexpr int kRowPitch = 2 * 17;            // exchange: 8 rows of 16 complex numbers per frame
constexpr int kFramePitch = 8 * kRowPitch;
constexpr int kWarpPitch = 4 * kFramePitch;  // a warp's part, for the exchange and later for its magnitudes
constexpr int kMagnitudePitch = 264;         // shifts by 8 banks; the warp's number shifts by one more bank each
constexpr int kOutPitch = kBands + 1;
constexpr int kOutStart = kThreads / 32 * kWarpPitch;
constexpr int kShared = kOutStart + kFrames * kOutPitch;
static_assert((kSamples + kHop - 1) / kHop * kHopPitch <= kOutStart, "samples fit in the exchange's place");
static_assert(3 * kMagnitudePitch + kBins + kThreads / 32 <= kWarpPitch, "magnitudes stay in their warp's part");

struct Pair {
  float x, y;
};
struct alignas(16) Tables {
  Pair window[kFrame / 2];  // halved, because of the 2 in 2 X[k]
  Pair turn[16][16];        // [c - 1][b]: W256^(b c)
  Pair split[249];          // [k]: W512^k
};

constexpr Pair root(int k, int n) {
  return {static_cast<float>(tables::cosine(k, n)), static_cast<float>(-tables::sine(k, n))};
}
constexpr Tables make_tables() {
  Tables t = {};
  for (int n = 0; n < kFrame / 2; ++n) {
    t.window[n].x = static_cast<float>(0.25 - 0.25 * tables::cosine(2 * n, kFrame));
    t.window[n].y = static_cast<float>(0.25 - 0.25 * tables::cosine(2 * n + 1, kFrame));
  }
  for (int c = 1; c <= 16; ++c)
    for (int b = 0; b < 16; ++b) t.turn[c - 1][b] = root(b * c, 256);
  for (int k = 0; k < 249; ++k) t.split[k] = root(k, 512);
  return t;
}
__device__ constexpr Tables kTables = make_tables();

__constant__ constexpr tables::Mel kMel = tables::make_mel();

__device__ __forceinline__ float2 load(const Pair& p) { return __ldg(reinterpret_cast<const float2*>(&p)); }

__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 operator-(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) {
  return make_float2(__fmaf_rn(a.x, b.x, -a.y * b.y), __fmaf_rn(a.x, b.y, a.y * b.x));
}
__device__ __forceinline__ float2 turn_back(float2 a) { return make_float2(a.y, -a.x); }  // -i a

__device__ __forceinline__ void transform4(float2& a, float2& b, float2& c, float2& d) {
  const float2 s = a + c, t = a - c, u = b + d, v = turn_back(b - d);
  a = s + u, b = t + v, c = s - u, d = t - v;
}
// The same if d is 0.
__device__ __forceinline__ void transform3(float2& a, float2& b, float2& c, float2& d) {
  const float2 s = a + c, t = a - c, u = b, v = turn_back(b);
  a = s + u, b = t + v, c = s - u, d = t - v;
}

// 16-point transform in place, as 4 * 4. The inputs from number `count` (12, 13 or 16) on are zeros.
template <int count>
__device__ __forceinline__ void transform16(float2 (&v)[16]) {
  constexpr float kHalfRoot = 0.70710678118654752440f;
  constexpr float kCos = 0.92387953251128675613f, kSin = 0.38268343236508977173f;  // of pi / 8
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    if (12 + b < count) {
      transform4(v[b], v[4 + b], v[8 + b], v[12 + b]);
    } else {
      transform3(v[b], v[4 + b], v[8 + b], v[12 + b]);
    }
  }
  // v[4 c + b] *= W16^(b c)
  const auto eighth = [](float2 a) { return make_float2(kHalfRoot * (a.x + a.y), kHalfRoot * (a.y - a.x)); };
  v[5] = v[5] * make_float2(kCos, -kSin);
  v[6] = eighth(v[6]);
  v[7] = v[7] * make_float2(kSin, -kCos);
  v[9] = eighth(v[9]);
  v[10] = turn_back(v[10]);
  v[11] = turn_back(eighth(v[11]));
  v[13] = v[13] * make_float2(kSin, -kCos);
  v[14] = turn_back(eighth(v[14]));
  v[15] = v[15] * make_float2(-kCos, kSin);
  float2 out[16];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    transform4(v[4 * c], v[4 * c + 1], v[4 * c + 2], v[4 * c + 3]);
#pragma unroll
    for (int d = 0; d < 4; ++d) out[c + 4 * d] = v[4 * c + d];
  }
#pragma unroll
  for (int k = 0; k < 16; ++k) v[k] = out[k];
}

// ((x - low) / span - 0.5) * 2, each operation rounded. The quotient: the product with the rounded inverse = 1 / span
// is wrong by at most 2 units in the last place; one correction brings it within 1 unit, and a second one gives the
// rounding of a true division (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor",
// 1990). That takes 5 instructions; __fdiv_rn takes 14, since it handles the ends of the exponent's range. Samples in
// [-1, 1] are far from those, and a quotient below 2^-26 has no effect beside 0.5.
__device__ __forceinline__ float normalized(float x, float low, float span, float inverse) {
  const float above = __fsub_rn(x, low);
  float quotient = __fmul_rn(above, inverse);
  quotient = __fmaf_rn(__fmaf_rn(-quotient, span, above), inverse, quotient);
  quotient = __fmaf_rn(__fmaf_rn(-quotient, span, above), inverse, quotient);
  return 2.0f * __fsub_rn(quotient, 0.5f);
}

// The hardware's square root and logarithm: within about 1 ulp, and within 1e-6 for the arguments used here.
__device__ __forceinline__ float square_root(float x) {
#ifdef ESSL_EMULATED
  return std::sqrt(x);
#else
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#endif
}
__device__ __forceinline__ float logarithm(float x) {
#ifdef ESSL_EMULATED
  return std::log(x);
#else
  return __logf(x);
#endif
}

__device__ __forceinline__ float magnitude(float2 a) { return square_root(__fmaf_rn(a.x, a.x, a.y * a.y)); }

// ln(band + 0.01). The compiler knows the magnitudes and the weights of a band, so each costs a load and a multiply-add
// with a constant. A loop over bands and bins that are not known takes 3 times as many instructions, which would be a
// fifth of the kernel's.
template <int kBand>
__device__ __forceinline__ float band_of(const float* magnitudes) {
  constexpr int kFirst = tables::kMel.first[kBand], kMiddle = tables::kMel.first[kBand + 1];
  constexpr int kLast = tables::kMel.first[kBand + 2];
  float sum = 0;
#pragma unroll
  for (int k = kFirst; k < kMiddle; ++k) sum = __fmaf_rn(magnitudes[k], kMel.rise[k], sum);
#pragma unroll
  for (int k = kMiddle; k < kLast; ++k) sum = __fmaf_rn(magnitudes[k], kMel.fall[k], sum);
  return logarithm(sum + 0.01f);
}

// The 8 bands of a warp, for the frame of this lane.
template <int kWarp>
__device__ __forceinline__ void bands_of_warp(const float* magnitudes, float* out) {
  out[kWarp] = band_of<kWarp>(magnitudes), out[15 - kWarp] = band_of<15 - kWarp>(magnitudes);
  out[16 + kWarp] = band_of<16 + kWarp>(magnitudes), out[31 - kWarp] = band_of<31 - kWarp>(magnitudes);
  out[32 + kWarp] = band_of<32 + kWarp>(magnitudes), out[47 - kWarp] = band_of<47 - kWarp>(magnitudes);
  out[48 + kWarp] = band_of<48 + kWarp>(magnitudes), out[63 - kWarp] = band_of<63 - kWarp>(magnitudes);
}
template <int... kWarps>
__device__ __forceinline__ void bands_of(int warp, const float* magnitudes, float* out,
                                         std::integer_sequence<int, kWarps...>) {
  static_assert(8 * sizeof...(kWarps) == kBands, "every warp makes 8 bands");
  ((warp == kWarps ? bands_of_warp<kWarps>(magnitudes, out) : void()), ...);
}

// 4 samples from `in` on, as float.
__device__ __forceinline__ float4 load4(const int16_t* in, bool aligned) {
  constexpr float kUnit = 1.0f / 32768.0f;
  if (aligned) {
    const uint2 word = __ldg(reinterpret_cast<const uint2*>(in));
    return make_float4(kUnit * static_cast<int16_t>(word.x & 0xffffu), kUnit * static_cast<int16_t>(word.x >> 16),
                       kUnit * static_cast<int16_t>(word.y & 0xffffu), kUnit * static_cast<int16_t>(word.y >> 16));
  }
  return make_float4(kUnit * in[0], kUnit * in[1], kUnit * in[2], kUnit * in[3]);
}
__device__ __forceinline__ float4 load4(const float* in, bool aligned) {
  if (aligned) return __ldg(reinterpret_cast<const float4*>(in));
  return make_float4(in[0], in[1], in[2], in[3]);
}

// Samples as integers that have the same order. For floats: -NaN, -inf, ..., -0, 0, ..., inf, NaN.
__device__ __forceinline__ int order_of(int16_t x) { return x; }
__device__ __forceinline__ int order_of(float x) {
  const int bits = __float_as_int(x);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ __forceinline__ float value_of(int order, int16_t) { return static_cast<float>(order) * (1.0f / 32768.0f); }
__device__ __forceinline__ float value_of(int order, float) {
  return __int_as_float(order ^ (order >> 31 & 0x7fffffff));
}

// One block per clip: writes its low and span to the first two outputs of every block of log_mel_kernel.
constexpr int kScanThreads = 512;
template <class S>
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const LogMel p, const int chunks, const bool aligned) {
  int* const found = reinterpret_cast<int*>(dynamic_shared());  // a minimum and a maximum per warp
  const int64_t clip = blockIdx.x;
  const int thread = threadIdx.x;
  const S* const in = static_cast<const S*>(p.pcm) + clip * p.samples;
  int low = order_of(in[0]), high = low;
  const auto take = [&](S x) {
    const int order = order_of(x);
    low = order < low ? order : low, high = order > high ? order : high;
  };
  constexpr int kPiece = 16 / static_cast<int>(sizeof(S));
  const int64_t pieces = aligned ? p.samples / kPiece : 0;
#pragma unroll 4
  for (int64_t i = thread; i < pieces; i += kScanThreads) {
    const uint4 word = __ldg(reinterpret_cast<const uint4*>(in) + i);
    const uint32_t parts[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (sizeof(S) == 4) {
        take(__uint_as_float(parts[j]));
      } else {
        take(static_cast<int16_t>(parts[j] & 0xffffu)), take(static_cast<int16_t>(parts[j] >> 16));
      }
    }
  }
  for (int64_t i = pieces * kPiece + thread; i < p.samples; i += kScanThreads) take(in[i]);
  low = __reduce_min_sync(~0u, low), high = __reduce_max_sync(~0u, high);
  if (thread % 32 == 0) found[2 * (thread / 32)] = low, found[2 * (thread / 32) + 1] = high;
  __syncthreads();
  for (int w = 0; w < kScanThreads / 32; ++w) {
    low = found[2 * w] < low ? found[2 * w] : low;
    high = found[2 * w + 1] > high ? found[2 * w + 1] : high;
  }
  const float lowest = value_of(low, S{});  // a NaN anywhere is the lowest or the highest
  const float span = __fadd_rn(__fsub_rn(value_of(high, S{}), lowest), 1e-3f);
  for (int i = thread; i < chunks; i += kScanThreads) {
    float* const out = p.out + (clip * chunks + i) * (kFrames * kBands);
    out[0] = lowest, out[1] = span;
  }
}

template <class S, bool kNormalize>
__global__ void __launch_bounds__(kThreads, 2) log_mel_kernel(const LogMel p, const int chunks, const bool aligned) {
  float* const shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = threadIdx.x;
  const int chunk = blockIdx.x;  // of `chunks` in each clip
  float* const out = p.out + int64_t{chunk} * (kFrames * kBands);

  // 1. The samples.
  {
    const S* const in =
        static_cast<const S*>(p.pcm) + chunk / chunks * p.samples + int64_t{chunk % chunks} * (kFrames * kHop);
    float low = 0, span = 0, inverse = 0;
    if (kNormalize) low = out[0], span = out[1], inverse = __fdiv_rn(1.0f, span);
    for (int i = 4 * thread; i < kSamples; i += 4 * kThreads) {
      float4 x = load4(in + i, aligned);
      if (kNormalize) {
        x.x = normalized(x.x, low, span, inverse), x.y = normalized(x.y, low, span, inverse);
        x.z = normalized(x.z, low, span, inverse), x.w = normalized(x.w, low, span, inverse);
      }
      *reinterpret_cast<float4*>(shared + i / kHop * kHopPitch + i % kHop) = x;
    }
  }
  __syncthreads();

  // 2. The inner sums of two columns, times their roots of unity.
  const int frame = thread / kTeam;  // of the block
  const int warp = thread / 32;
  const int t = thread % kTeam;
  float2 v[16], u[16];  // columns t and t + 8, later rows t and 16 - t
#pragma unroll
  for (int a = 0; a < 13; ++a) {
    const float* const from = shared + (frame + a / 5) * kHopPitch + 32 * (a % 5) + 2 * t;
    const float2 x = *reinterpret_cast<const float2*>(from), w = load(kTables.window[16 * a + t]);
    v[a] = make_float2(x.x * w.x, x.y * w.y);
    if (a == 12) break;  // from sample 400 on
    const float2 y = *reinterpret_cast<const float2*>(from + 16), q = load(kTables.window[16 * a + t + 8]);
    u[a] = make_float2(y.x * q.x, y.y * q.y);
  }
  transform16<13>(v);
  transform16<12>(u);
#pragma unroll
  for (int c = 0; c < 16; ++c) {
    const int row = c == 0 ? 16 : c;
    v[c] = v[c] * load(kTables.turn[row - 1][t]);
    u[c] = u[c] * load(kTables.turn[row - 1][t + 8]);
  }
  __syncthreads();  // the samples are no longer needed

  // 3. The exchange, half of the rows at a time, within the warp. Position r of the frame's 8 has row r (16 for r = 0),
  // then row 16 - r (8 for r = 0).
  {
    float* const mine = shared + warp * kWarpPitch + frame % 4 * kFramePitch;
    float2 kept[8][2];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      float* const to = mine + r * kRowPitch + 2 * t;
      *reinterpret_cast<float2*>(to) = v[r], *reinterpret_cast<float2*>(to + 16) = u[r];
      const int c = r == 0 ? 8 : 16 - r;
      kept[r][0] = v[c], kept[r][1] = u[c];
    }
    __syncwarp();
#pragma unroll
    for (int b = 0; b < 16; ++b) v[b] = *reinterpret_cast<const float2*>(mine + t * kRowPitch + 2 * b);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      float* const to = mine + r * kRowPitch + 2 * t;
      *reinterpret_cast<float2*>(to) = kept[r][0], *reinterpret_cast<float2*>(to + 16) = kept[r][1];
    }
    __syncwarp();
#pragma unroll
    for (int b = 0; b < 16; ++b) u[b] = *reinterpret_cast<const float2*>(mine + t * kRowPitch + 2 * b);
    __syncwarp();
  }

  // 4. The outer sums; thread 0's swap; the partners together, and their magnitudes.
  transform16<16>(v);
  transform16<16>(u);
  if (t == 0) {
#pragma unroll
    for (int d = 15; d >= 8; --d) {
      const float2 partner = v[d - 1];
      v[d] = u[d], u[d] = partner;
    }
  }
  const int before = t == 0 ? 16 : t, after = t == 0 ? 8 : t;
  float* const magnitudes = shared + warp * kWarpPitch + warp + frame % 4 * kMagnitudePitch;
#pragma unroll
  for (int d = 0; d < 16; ++d) {
    const int k = 16 * d + (d < 8 ? before : after);
    const float2 a = v[d], b = u[15 - d];
    const float2 sum = make_float2(a.x + b.x, a.y - b.y);
    const float2 rest = make_float2(a.y + b.y, b.x - a.x) * load(kTables.split[k]);
    if (d > 0 ? d < 15 : k >= kFirstBin) magnitudes[k - kFirstBin] = magnitude(sum + rest);
    if (d > 0) magnitudes[256 - k - kFirstBin] = magnitude(sum - rest);
  }
  __syncthreads();

  // 5. Bands and logarithms, one frame per lane.
  float* const rows_out = shared + kOutStart;
  {
    const int lane = thread % 32;
    const float* const row = shared + lane / 4 * kWarpPitch + lane / 4 + lane % 4 * kMagnitudePitch;
    bands_of(warp, row, rows_out + lane * kOutPitch, std::make_integer_sequence<int, kThreads / 32>());
  }
  __syncthreads();
  for (int i = thread; i < kFrames * kBands; i += kThreads) {
    out[i] = rows_out[i / kBands * kOutPitch + i % kBands];
  }
}

template <class S>
void launch(const LogMel& p, cudaStream_t stream, const std::string& what) {
  const int64_t chunks = examples_of(p.samples) * kChunks, blocks = p.batch * chunks;
  if (blocks > INT32_MAX) throw std::runtime_error(what + ": too many frames for one launch");
  const auto address = reinterpret_cast<uintptr_t>(p.pcm);
  const auto aligned_to = [&](uintptr_t bytes) {
    return address % bytes == 0 && p.samples * sizeof(S) % bytes == 0;
  };
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  if (p.normalize) {
    config.gridDim = dim3(static_cast<unsigned>(p.batch));
    config.blockDim = dim3(kScanThreads);
    config.dynamicSmemBytes = 2 * sizeof(int) * (kScanThreads / 32);
    check_cuda(cudaLaunchKernelEx(&config, scan_kernel<S>, p, static_cast<int>(chunks), aligned_to(16)), what);
  }
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared * sizeof(float);
  const auto kernel = p.normalize ? log_mel_kernel<S, true> : log_mel_kernel<S, false>;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p, static_cast<int>(chunks), aligned_to(4 * sizeof(S))), what);
}

}  // namespace

void log_mel_cuda(const LogMel& p, int device, void* stream_pointer) {
  if (p.batch == 0) return;
  const std::string what = describe(p);
  const DeviceGuard guard(device, what);
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.type == PcmType::kInt16) return launch<int16_t>(p, stream, what);
  launch<float>(p, stream, what);
}

}  // namespace essl
