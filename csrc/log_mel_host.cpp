// log_mel on the host: 16 frames at a time, one in each lane of the vectors. The contract is in log_mel.h.
//
// Lanes. Every array is [...][lane], every innermost loop runs over the lanes, and all lanes do the same. So the
// compiler fills its vectors, whatever their width (a clip takes 151 us with SSE2, 80 with AVX2, 68 with AVX-512 on one
// core of an AMD EPYC, Zen 4; the fastest of many runs). Frames start 160 samples apart, so a tile of the clip is
// transposed first, to [sample mod 160][sample / 160]: sample n of frames f, f + 1, ... is then row n mod 160 from
// column f + n / 160 on, and overlapping frames share it.
//
// Transform. 512 = 8 * 64. With n = 64 a + b and k = c + 8 d:
//
//   X[c + 8 d] = sum_b W64^(b d) { W512^(b c) sum_a W8^(a c) x[64 a + b] },   Wn = exp(-2 pi i / n)
//
// The inner sum is an 8-point transform of real numbers; those with a = 7 and most with a = 6 are zeros (the frame has
// 400 samples). x is real, only |X| is wanted, and |X[512 - k]| = |X[k]|. So c = 1, 2, 3 give every bin that 4 does not
// divide. Bins that 4 divides are the transform of the 128 numbers x[b] + x[128 + b] + x[256 + b] + x[384 + b], which
// are packed as 64 complex numbers and separated afterwards. That makes four complex 64-point transforms, each 8 * 8.
// The last step of three of them ends in |X|^2, not in X: three passes over 32 KiB of work space for 16 frames.
#include "log_mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "huge_pages.h"
#include "log_mel_tables.h"
#include "parallel.h"

// Before a loop over lanes whose iterations do not depend on each other, though its arrays may look as if they overlap.
#if defined(__clang__)
#define ESSL_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define ESSL_LANES _Pragma("GCC ivdep")
#endif
#define ESSL_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace essl {
namespace {

using tables::cosine;
using tables::sine;
using tables::kBins;
using tables::kFirstBin;

constexpr int kLanes = 16;
constexpr int kColumns = kLanes + 4;  // of the tile: 15 * 160 + 400 samples take 18
constexpr int kTileSamples = (kLanes - 1) * kHop + kFrame;
static_assert(kExampleFrames % kLanes == 0, "an example is a whole number of groups");

struct Complex {
  float re, im;
};
ESSL_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
ESSL_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
ESSL_INLINE Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

constexpr Complex root(int k, int n) {
  return {static_cast<float>(cosine(k, n)), static_cast<float>(-sine(k, n))};
}

struct Tables {
  float window[kFrame];
  Complex first[64][4];  // [b][c]: W512^(b c)
  Complex inner[8][8];   // [j][q]: W64^(j q)
  Complex split[33];     // [m]: W128^m
  float rise[kBins];     // mel weights; for bins that 4 divides, with the factor 1/2 that take_apart leaves out
  float fall[kBins];
};

constexpr Tables make_tables() {
  Tables t = {};
  for (int n = 0; n < kFrame; ++n) t.window[n] = static_cast<float>(0.5 - 0.5 * cosine(n, kFrame));
  for (int b = 0; b < 64; ++b)
    for (int c = 0; c < 4; ++c) t.first[b][c] = root(b * c, 512);
  for (int j = 0; j < 8; ++j)
    for (int q = 0; q < 8; ++q) t.inner[j][q] = root(j * q, 64);
  for (int m = 0; m <= 32; ++m) t.split[m] = root(m, 128);
  for (int i = 0; i < kBins; ++i) {
    const float scale = (kFirstBin + i) % 4 == 0 ? 0.5f : 1.0f;
    t.rise[i] = scale * tables::kMel.rise[i];
    t.fall[i] = scale * tables::kMel.fall[i];
  }
  return t;
}
constexpr Tables kTables = make_tables();
constexpr float kHalfRoot = 0.70710678118654752440f;

using Lanes = float[kLanes];

struct alignas(64) Work {
  float wave[kColumns * kHop];  // the samples of the group, then zeros
  float tile[kHop][kColumns];
  Lanes z[4][64][2];            // [c][b or d][real, imaginary]
  Lanes power[kBins + 1];       // |X|^2 (4 |X|^2 if 4 divides the bin), then |X|; the last row is for unused bins
  Lanes bands[kBands + 2];      // with one before and one after the wanted ones
};

ESSL_INLINE int row_of(int bin) { return bin >= kFirstBin && bin < kFirstBin + kBins ? bin - kFirstBin : kBins; }

// 8-point transform in place.
ESSL_INLINE void transform8(Complex (&v)[8]) {
  const Complex s0 = v[0] + v[4], s1 = v[1] + v[5], s2 = v[2] + v[6], s3 = v[3] + v[7];
  const Complex d0 = v[0] - v[4], d1 = v[1] - v[5], d2 = v[2] - v[6], d3 = v[3] - v[7];
  const Complex t0 = s0 + s2, t1 = s0 - s2, t2 = s1 + s3, t3 = {s1.im - s3.im, s3.re - s1.re};  // -i (s1 - s3)
  const Complex u0 = {d0.re + d2.im, d0.im - d2.re}, u1 = {d0.re - d2.im, d0.im + d2.re};       // d0 -+ i d2
  const Complex e0 = {d1.re + d3.im, d1.im - d3.re}, e1 = {d1.re - d3.im, d1.im + d3.re};
  const Complex w0 = {kHalfRoot * (e0.re + e0.im), kHalfRoot * (e0.im - e0.re)};   // W8 e0
  const Complex w1 = {kHalfRoot * (e1.im - e1.re), -kHalfRoot * (e1.re + e1.im)};  // W8^3 e1
  v[0] = t0 + t2, v[4] = t0 - t2, v[2] = t1 + t3, v[6] = t1 - t3;
  v[1] = u0 + w0, v[5] = u0 - w0, v[3] = u1 + w1, v[7] = u1 - w1;
}

// Windowed samples 64 a + b of every lane, transformed over a, times W512^(b c). `count`: number of a's with samples.
template <int count>
ESSL_INLINE void first_pass(Work& w, int b) {
  const float* in[count];
  float window[count];
  for (int a = 0; a < count; ++a) {
    const int n = 64 * a + b;
    in[a] = &w.tile[n % kHop][n / kHop];
    window[a] = kTables.window[n];
  }
  const Complex r1 = kTables.first[b][1], r2 = kTables.first[b][2], r3 = kTables.first[b][3];
  float* const even = w.z[0][b / 2][b % 2];
  float* const odd = w.z[0][32 + b / 2][b % 2];
  Lanes* const z1 = w.z[1][b];
  Lanes* const z2 = w.z[2][b];
  Lanes* const z3 = w.z[3][b];
  ESSL_LANES
  for (int l = 0; l < kLanes; ++l) {
    const float x0 = in[0][l] * window[0], x1 = in[1][l] * window[1], x2 = in[2][l] * window[2];
    const float x3 = in[3][l] * window[3], x4 = in[4][l] * window[4], x5 = in[5][l] * window[5];
    float s2 = x2, d2 = x2;
    if constexpr (count == 7) {
      const float x6 = in[6][l] * window[6];
      s2 = x2 + x6, d2 = x2 - x6;
    }
    const float s0 = x0 + x4, d0 = x0 - x4, s1 = x1 + x5, d1 = x1 - x5;
    const float g = kHalfRoot * (d1 - x3), h = kHalfRoot * (d1 + x3);
    even[l] = s0 + s2;
    odd[l] = s1 + x3;
    const Complex y1 = Complex{d0 + g, -d2 - h} * r1;
    const Complex y2 = Complex{s0 - s2, x3 - s1} * r2;
    const Complex y3 = Complex{d0 - g, d2 - h} * r3;
    z1[0][l] = y1.re, z1[1][l] = y1.im;
    z2[0][l] = y2.re, z2[1][l] = y2.im;
    z3[0][l] = y3.re, z3[1][l] = y3.im;
  }
}

// First half of a 64-point transform: over elements j, j + 8, ..., times their roots of unity, in place.
ESSL_INLINE void second_pass(Work& w, int c, int j) {
  Lanes(*const z)[2] = w.z[c] + j;
  const Complex* const turn = kTables.inner[j];
  ESSL_LANES
  for (int l = 0; l < kLanes; ++l) {
    Complex v[8];
    for (int i = 0; i < 8; ++i) v[i] = {z[8 * i][0][l], z[8 * i][1][l]};
    transform8(v);
    z[0][0][l] = v[0].re, z[0][1][l] = v[0].im;
    for (int i = 1; i < 8; ++i) {
      const Complex turned = v[i] * turn[i];
      z[8 * i][0][l] = turned.re, z[8 * i][1][l] = turned.im;
    }
  }
}

// Second half: over elements 8 q ... 8 q + 7, giving d = q, q + 8, ...; in place, or as |X|^2 of bin c + 8 d.
template <bool in_place>
ESSL_INLINE void third_pass(Work& w, int c, int q) {
  Lanes(*const z)[2] = w.z[c] + 8 * q;
  float* out[8] = {};
  if (!in_place) {
    for (int i = 0; i < 8; ++i) {
      const int k = c + 8 * (q + 8 * i);
      out[i] = w.power[row_of(k <= 256 ? k : 512 - k)];
    }
  }
  ESSL_LANES
  for (int l = 0; l < kLanes; ++l) {
    Complex v[8];
    for (int i = 0; i < 8; ++i) v[i] = {z[i][0][l], z[i][1][l]};
    transform8(v);
    for (int i = 0; i < 8; ++i) {
      if constexpr (in_place) {
        z[i][0][l] = v[i].re, z[i][1][l] = v[i].im;
      } else {
        out[i][l] = v[i].re * v[i].re + v[i].im * v[i].im;
      }
    }
  }
}

// Separates the packed transform Z: with Y[m] = X[4 m],
// 2 Y[m] = (Z[m] + Z*[64 - m]) - i W128^m (Z[m] - Z*[64 - m]), and Y[64 - m] is the same with the other sign, mirrored.
ESSL_INLINE void take_apart(Work& w, int m) {
  const int n = 64 - m;
  const Lanes* const a = w.z[0][8 * (m % 8) + m / 8];  // where third_pass has left Z[m]
  const Lanes* const b = w.z[0][8 * (n % 8) + n / 8];
  const Complex turn = kTables.split[m];
  float* const out_m = w.power[row_of(4 * m)];
  float* const out_n = w.power[row_of(4 * n)];
  ESSL_LANES
  for (int l = 0; l < kLanes; ++l) {
    const Complex sum = {a[0][l] + b[0][l], a[1][l] - b[1][l]};
    const Complex rest = Complex{a[1][l] + b[1][l], b[0][l] - a[0][l]} * turn;
    const Complex y = sum + rest, mirrored = sum - rest;
    out_m[l] = y.re * y.re + y.im * y.im;
    out_n[l] = mirrored.re * mirrored.re + mirrored.im * mirrored.im;
  }
}

// Square roots in place. std::sqrt may set errno, so compilers do not use vectors for it; the intrinsics set no errno.
template <Simd>
inline void take_roots(float* x, int count) {
#if defined(__x86_64__)
  for (int i = 0; i < count; i += 4) _mm_store_ps(x + i, _mm_sqrt_ps(_mm_load_ps(x + i)));
#else
  for (int i = 0; i < count; ++i) x[i] = std::sqrt(x[i]);
#endif
}
#if defined(__x86_64__)
template <>
__attribute__((target("avx2"))) inline void take_roots<Simd::kAvx2>(float* x, int count) {
  for (int i = 0; i < count; i += 8) _mm256_store_ps(x + i, _mm256_sqrt_ps(_mm256_load_ps(x + i)));
}
#endif

// Band i rises over interval i and falls over interval i + 1. (The outer loop is over lanes, the inner over bins and
// never empty: then compilers keep a vector of sums in registers.)
ESSL_INLINE void add_up_bands(Work& w) {
  std::memset(w.bands[0], 0, sizeof w.bands[0]);
  for (int i = 0; i < tables::kIntervals; ++i) {
    const int first = tables::kMel.first[i], last = tables::kMel.first[i + 1];
    float* const up = w.bands[i + 1];
    float* const down = w.bands[i];  // the interval before has begun it
    if (first == last) {
      std::memset(up, 0, sizeof w.bands[0]);
      continue;
    }
    ESSL_LANES
    for (int l = 0; l < kLanes; ++l) {
      float rising = 0, falling = 0;
      int k = first;
      do {
        rising += w.power[k][l] * kTables.rise[k];
        falling += w.power[k][l] * kTables.fall[k];
      } while (++k != last);
      up[l] = rising;
      down[l] += falling;
    }
  }
}

// ln x for normal x > 0, within 1.2e-7 max(1, |ln x|). x = 2^e m with m in [1 / sqrt 2, sqrt 2), and
// ln m = 2 atanh s = 2 (s + s^3 / 3 + s^5 / 5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
ESSL_INLINE float logarithm(float x) {
  constexpr int32_t kSmallest = 0x3f3504f3;  // the bits of 1 / sqrt 2
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits -= kSmallest;
  const float e = static_cast<float>(bits >> 23);
  bits = (bits & 0x7fffff) + kSmallest;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  const float series = s2 * (0.333333333f + s2 * (0.2f + s2 * (0.142857143f + s2 * 0.111111111f)));
  const float result = e * 0.693147181f + 2.0f * (s + s * series);
  return result + 0.0f * x;  // keeps a NaN; with a branch, the loop would not be vectorised
}

// 4 x 4 blocks of `in` (rows of in_pitch) become columns of `out`.
ESSL_INLINE void transpose(const float* in, int in_pitch, float* out, int out_pitch, int rows, int columns) {
  for (int r = 0; r < rows; r += 4) {
    for (int c = 0; c < columns; c += 4) {
      const float* const from = in + r * in_pitch + c;
      float* const to = out + c * out_pitch + r;
#if defined(__x86_64__)
      __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + in_pitch);
      __m128 d = _mm_loadu_ps(from + 2 * in_pitch), e = _mm_loadu_ps(from + 3 * in_pitch);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      _mm_storeu_ps(to, a), _mm_storeu_ps(to + out_pitch, b);
      _mm_storeu_ps(to + 2 * out_pitch, d), _mm_storeu_ps(to + 3 * out_pitch, e);
#else
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[j * out_pitch + i] = from[i * in_pitch + j];
#endif
    }
  }
}

ESSL_INLINE float sample(int16_t x) { return static_cast<float>(x) * (1.0f / 32768.0f); }
ESSL_INLINE float sample(float x) { return x; }

struct Scale {
  float low, span;
  bool wanted;
};

// 16 frames of a clip, from sample `in` on, to out (16, 64).
template <Simd simd, class S>
ESSL_INLINE void group(const S* in, const Scale scale, float* out, Work& w) {
  if (scale.wanted) {
    for (int i = 0; i < kTileSamples; ++i) w.wave[i] = ((sample(in[i]) - scale.low) / scale.span - 0.5f) * 2.0f;
  } else {
    for (int i = 0; i < kTileSamples; ++i) w.wave[i] = sample(in[i]);
  }
  transpose(w.wave, kHop, w.tile[0], kColumns, kColumns, kHop);
  for (int b = 0; b < kFrame - 6 * 64; ++b) first_pass<7>(w, b);
  for (int b = kFrame - 6 * 64; b < 64; ++b) first_pass<6>(w, b);
  for (int c = 0; c < 4; ++c)
    for (int j = 0; j < 8; ++j) second_pass(w, c, j);
  for (int q = 0; q < 8; ++q) third_pass<true>(w, 0, q);
  for (int c = 1; c < 4; ++c)
    for (int q = 0; q < 8; ++q) third_pass<false>(w, c, q);
  for (int m = 2; m <= 32; ++m) take_apart(w, m);
  take_roots<simd>(w.power[0], kBins * kLanes);
  add_up_bands(w);
  float* const bands = w.bands[1];
  ESSL_LANES
  for (int i = 0; i < kBands * kLanes; ++i) bands[i] = logarithm(bands[i] + 0.01f);
  transpose(bands, kLanes, out, kBands, kBands, kLanes);
}

template <class S>
using Group = void (*)(const S*, Scale, float*, Work&);

template <class S>
void group_baseline(const S* in, Scale scale, float* out, Work& w) {
  group<Simd::kBaseline>(in, scale, out, w);
}
#if defined(__x86_64__)
template <class S>
__attribute__((target("avx2"))) void group_avx2(const S* in, Scale scale, float* out, Work& w) {
  group<Simd::kAvx2>(in, scale, out, w);
}
template <class S>
__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw"))) void group_avx512(const S* in, Scale scale, float* out,
                                                                                Work& w) {
  group<Simd::kAvx2>(in, scale, out, w);
}
#endif

template <class S>
Group<S> choose([[maybe_unused]] Simd simd) {
#if defined(__x86_64__)
  if (simd == Simd::kAvx512) return group_avx512<S>;
  if (simd == Simd::kAvx2) return group_avx2<S>;
#endif
  return group_baseline<S>;
}

Scale scale_of(const int16_t* in, int64_t samples) {
  int16_t low = in[0], high = in[0];
  for (int64_t i = 0; i < samples; ++i) {
    low = in[i] < low ? in[i] : low;
    high = in[i] > high ? in[i] : high;
  }
  return {sample(low), (sample(high) - sample(low)) + 1e-3f, true};
}

// Floats as integers that have the same order: -NaN, -inf, ..., -0, 0, ..., inf, NaN. Compilers find the minimum of
// integers with vectors; for floats, NaN forbids it.
int32_t order_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
float float_of(int32_t order) {
  const int32_t bits = order ^ (order >> 31 & 0x7fffffff);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A NaN anywhere becomes low or high, and makes the whole clip NaN, as in the reference.
Scale scale_of(const float* in, int64_t samples) {
  int32_t low = order_of(in[0]), high = low;
  for (int64_t i = 0; i < samples; ++i) {
    const int32_t order = order_of(in[i]);
    low = order < low ? order : low;
    high = order > high ? order : high;
  }
  return {float_of(low), (float_of(high) - float_of(low)) + 1e-3f, true};
}

template <class S>
void run(const LogMel& p, int threads, Simd simd) {
  const S* const pcm = static_cast<const S*>(p.pcm);
  const int64_t examples = examples_of(p.samples);
  std::vector<Scale> scales(static_cast<size_t>(p.batch), Scale{0, 0, false});
  if (p.normalize) {
    // About 0.1 ms of work per thread; with less, starting the thread would not pay.
    const int64_t worth = 1 + p.batch * p.samples / (int64_t{1} << 20);
    parallel_for(p.batch, static_cast<int>(std::min<int64_t>(threads, worth)), [&](int64_t clip) {
      scales[static_cast<size_t>(clip)] = scale_of(pcm + clip * p.samples, p.samples);
    });
  }
  const Group<S> group_of = choose<S>(simd);
  advise_huge_pages(p.out, static_cast<size_t>(p.batch * examples * kExampleFrames * kBands) * sizeof(float));
  parallel_for(p.batch * examples, threads, [&](int64_t task) {
    const int64_t clip = task / examples;
    const S* in = pcm + clip * p.samples + task % examples * kExampleFrames * kHop;
    float* out = p.out + task * kExampleFrames * kBands;
    Work work;
    std::memset(work.wave + kTileSamples, 0, sizeof work.wave - kTileSamples * sizeof(float));
    for (int frame = 0; frame < kExampleFrames; frame += kLanes) {
      group_of(in + frame * kHop, scales[static_cast<size_t>(clip)], out + frame * kBands, work);
    }
  });
}

}  // namespace

std::string describe(const LogMel& p) {
  const std::string b = std::to_string(p.batch), t = std::to_string(p.samples);
  const char* type = p.type == PcmType::kInt16 ? "int16" : "float32";
  return "log_mel: pcm " + std::string(type) + " (" + b + ", " + t + ") -> (" + b + ", " +
         std::to_string(examples_of(p.samples)) + ", 96, 64) float32";
}

Simd widest_simd() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw")) {
    return Simd::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return Simd::kAvx2;
#endif
  return Simd::kBaseline;
}

void log_mel_host(const LogMel& p, int threads, Simd simd) {
  if (p.batch == 0) return;
  simd = std::min(simd, widest_simd());
  if (p.type == PcmType::kInt16) {
    run<int16_t>(p, threads, simd);
  } else {
    run<float>(p, threads, simd);
  }
}

}  // namespace essl
