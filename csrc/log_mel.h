// log_mel: VGGish's input. 16 kHz sound becomes examples of 96 frames x 64 mel bands.
//
//   pcm  S   (B, T)          S is int16, or float32 in [-1, 1]; contiguous; T >= 15600
//   out  f32 (B, E, 96, 64)  contiguous; E = (1 + (T - 400) / 160) / 96 examples, 3 for T = 48000
//
// 1. int16 is divided by 32768. If wanted, each clip is normalised, with every operation rounded to float32 separately,
//    so that the samples equal the reference's to the bit: low = min x, span = (max x - low) + 0.001,
//    x <- ((x - low) / span - 0.5) * 2. (max (x - low) equals max x - low, rounded, since rounding keeps order.)
// 2. Frame i is the 400 samples from 160 i on, times the periodic Hann window h[n] = (1 - cos(2 pi n / 400)) / 2, with
//    zeros up to 512. X[k] is its discrete Fourier transform.
// 3. Band m is the sum of w[m, k] |X[k]|. w is a triangle over the mel scale, 1127 ln(1 + f / 700), between three
//    neighbours of 66 points that divide 125 .. 7500 Hz evenly in mel. Only bins 5 .. 239 have weights, each in at most
//    two bands: bin k is in one of the 65 intervals between points; there the weight rises for one band and falls for
//    the band before.
// 4. out = ln(band + 0.01).
//
// The spectrum is in float32. A silent band beside a loud one has only its rounding noise, about 1e-7 of the loudest
// bin; ln's slope there is 100, and a band sums up to 18 bins. The difference to float64 is up to 9e-4 beside a loud
// tone or a constant, and at most 2e-5 if no band is silent. (PyTorch's float32 transform: 1.1e-3 and 1e-5.)
//
// A NaN spoils its whole clip if normalised, as in the reference, and otherwise its frames.
//
// A clip of 48000 in int16 reads 96,000 bytes and writes 73,728. A frame takes about 9,000 additions and
// multiplications for the spectrum and 11,000 in all, so the 288 frames of a clip take 3.2 million: arithmetic, not
// memory, is the limit.
#pragma once

#include <cstdint>
#include <string>

namespace essl {

constexpr int kExampleFrames = 96;
constexpr int kBands = 64;
constexpr int kFrame = 400;  // samples
constexpr int kHop = 160;    // samples

enum class PcmType : int { kInt16 = 0, kFloat32 = 1 };

struct LogMel {
  const void* pcm;  // (B, T)
  float* out;       // (B, E, 96, 64)
  int64_t batch;    // B >= 0
  int64_t samples;  // T >= 15600
  PcmType type;
  bool normalize;
};

// E, the examples of a clip; 0 if it is too short for one.
constexpr int64_t examples_of(int64_t samples) {
  return samples < kFrame ? 0 : (1 + (samples - kFrame) / kHop) / kExampleFrames;
}

// For error messages: the op and its shapes.
std::string describe(const LogMel& p);

// The vectors that the host code is compiled for. Only their width differs; the results are equal bit for bit.
enum class Simd : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };
Simd widest_simd();  // of this machine

// On host memory. Deterministic, and the same for every `threads` >= 1.
void log_mel_host(const LogMel& p, int threads, Simd simd = widest_simd());

// On memory of `device`: enqueues its launches on `stream` (a cudaStream_t) and does not wait. Throws
// std::runtime_error with the op, the shapes and CUDA's message.
void log_mel_cuda(const LogMel& p, int device, void* stream);

}  // namespace essl
