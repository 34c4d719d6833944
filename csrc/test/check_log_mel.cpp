// Runs log_mel, built with the address and undefined-behaviour sanitizers, against a discrete Fourier transform in
// double by its definition: the host code, in every width of vectors that this machine has and on one and several
// threads, and the CUDA kernels on host threads (emulated/cuda_runtime.h). Buffers are heap blocks of exactly the right
// size, so a read or write one byte off is caught; outputs start as NaN, so one that is not written is, too.
//
//   python .ci/check_csrc.py      builds and runs it
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "log_mel.cu"  // the emulated headers come first on the include path

namespace {

using essl::LogMel;
using essl::PcmType;

constexpr double kTau = 6.283185307179586476925;
int failures = 0;
double worst = 0;  // error in units of the bound

struct Expected {
  std::vector<double> value, bound;
};

// Step 1 of the contract; `volatile`: each operation rounds by itself.
std::vector<float> prepared(const float* clip, int64_t samples, bool normalize) {
  std::vector<float> wave(clip, clip + samples);
  if (!normalize) return wave;
  float low = wave[0], high = 0;
  for (float x : wave) low = x < low ? x : low;
  for (float& x : wave) {
    x -= low;
    high = x > high ? x : high;
  }
  volatile float span = high + 1e-3f;
  for (float& x : wave) {
    volatile float unit = x / span;
    volatile float centred = unit - 0.5f;
    x = centred * 2.0f;
  }
  return wave;
}

// Steps 2 to 4, and how far a float32 transform may be off: every bin has a few roundings of the frame's energy as
// noise, which a band adds up by its weights; those that share the last additions with the loudest bin, such as its
// mirror image, have one of that; and the logarithm's slope is 1 / (band + 0.01).
void expect(const std::vector<float>& wave, Expected& all) {
  std::vector<double> cosine(512), window(400), mel(257), edge(66);
  for (int k = 0; k < 512; ++k) cosine[k] = std::cos(kTau * k / 512);
  for (int n = 0; n < 400; ++n) window[n] = 0.5 - 0.5 * std::cos(kTau * n / 400);
  const auto to_mel = [](double hertz) { return 1127 * std::log(1 + hertz / 700); };
  for (int k = 0; k <= 256; ++k) mel[k] = to_mel(k * 8000.0 / 256);
  for (int i = 0; i < 66; ++i) edge[i] = to_mel(125) + i * (to_mel(7500) - to_mel(125)) / 65;
  const int64_t frames = essl::examples_of(static_cast<int64_t>(wave.size())) * 96;
  for (int64_t f = 0; f < frames; ++f) {
    double x[400], energy = 0;
    for (int n = 0; n < 400; ++n) x[n] = window[n] * wave[160 * f + n], energy += x[n] * x[n];
    double magnitude[257] = {}, loudest = 0;
    for (int k = 1; k <= 256; ++k) {
      double re = 0, im = 0;
      for (int n = 0; n < 400; ++n) re += x[n] * cosine[k * n % 512], im += x[n] * cosine[(k * n + 128) % 512];
      magnitude[k] = std::sqrt(re * re + im * im), loudest = std::max(loudest, magnitude[k]);
    }
    for (int m = 0; m < 64; ++m) {
      double band = 0, weights = 0;
      for (int k = 1; k <= 256; ++k) {
        const double up = (mel[k] - edge[m]) / (edge[m + 1] - edge[m]);
        const double down = (edge[m + 2] - mel[k]) / (edge[m + 2] - edge[m + 1]);
        const double weight = std::max(0.0, std::min(up, down));
        band += weight * magnitude[k], weights += weight;
      }
      const double noise = 0x1p-24 * (6 * weights * std::sqrt(energy) + loudest);
      all.value.push_back(std::log(band + 0.01));
      all.bound.push_back(noise / (band + 0.01) + 2e-6);
    }
  }
}

void compare(const std::vector<float>& have, const Expected& want, const LogMel& p, const char* what) {
  for (size_t i = 0; i < want.value.size(); ++i) {
    const double error = std::fabs(have[i] - want.value[i]);
    worst = std::max(worst, error / want.bound[i]);
    if (error <= want.bound[i]) continue;  // false for NaN
    ++failures;
    std::printf("%s, %s: element %zu is %.7g, not %.7g +- %.2g\n", essl::describe(p).c_str(), what, i, have[i],
                want.value[i], want.bound[i]);
    return;
  }
}

template <class S>
void check(const std::vector<float>& unit, int64_t batch, int64_t samples, bool normalize, int misalign) {
  // unit: (batch, samples), multiples of 1 / 32768 for int16.
  std::vector<S> pcm(misalign + unit.size());
  pcm.shrink_to_fit();
  for (size_t i = 0; i < unit.size(); ++i) pcm[misalign + i] = S(sizeof(S) == 2 ? unit[i] * 32768.0f : unit[i]);
  Expected want;
  for (int64_t b = 0; b < batch; ++b) expect(prepared(&unit[b * samples], samples, normalize), want);

  std::vector<float> first;
  const auto run = [&](const char* what, const std::function<void(const LogMel&)>& op) {
    std::vector<float> out(want.value.size(), std::numeric_limits<float>::quiet_NaN());
    const auto type = sizeof(S) == 2 ? PcmType::kInt16 : PcmType::kFloat32;
    const LogMel p = {pcm.data() + misalign, out.data(), batch, samples, type, normalize};
    op(p);
    compare(out, want, p, what);
    return out;
  };
  for (int width = 0; width <= static_cast<int>(essl::widest_simd()); ++width) {
    for (int threads : {1, 3}) {
      const auto out =
          run("host", [&](const LogMel& p) { essl::log_mel_host(p, threads, static_cast<essl::Simd>(width)); });
      if (first.empty()) first = out;
      if (std::memcmp(out.data(), first.data(), out.size() * sizeof(float)) == 0) continue;
      ++failures, std::printf("host: %d threads, width %d differ from 1 thread, width 0\n", threads, width);
    }
  }
  run("CUDA", [](const LogMel& p) { essl::log_mel_cuda(p, 0, nullptr); });
}

// The kernels' division by multiplications has the division's bits, for int16 as for floats.
void check_normalized(std::mt19937& random) {
  std::uniform_int_distribution<int> pcm16(-32768, 32767);
  std::uniform_real_distribution<float> unit(-1, 1);
  for (int i = 0; i < 1000000; ++i) {
    float v[3];
    for (float& x : v) x = i % 2 == 0 ? pcm16(random) / 32768.0f : unit(random);
    std::sort(v, v + 3);
    const float span = (v[2] - v[0]) + 1e-3f;
    volatile float quotient = (v[1] - v[0]) / span;
    volatile float centred = quotient - 0.5f;
    failures += essl::normalized(v[1], v[0], span, 1.0f / span) != 2 * centred;
  }
}

// A NaN spoils its clip where normalised, as in the reference, and nothing beside it.
void check_nan() {
  const int64_t samples = 15600;
  std::vector<float> pcm(2 * samples, 0.25f);
  pcm[samples + 77] = std::numeric_limits<float>::quiet_NaN();
  pcm[5] = -0.5f, pcm[9] = 0.75f;
  for (bool negative : {false, true}) {
    pcm[samples + 77] = std::copysign(pcm[samples + 77], negative ? -1.0f : 1.0f);
    for (int way = 0; way < 2; ++way) {
      std::vector<float> out(2 * 96 * 64, 0.0f);
      const LogMel p = {pcm.data(), out.data(), 2, samples, PcmType::kFloat32, true};
      way == 0 ? essl::log_mel_host(p, 1) : essl::log_mel_cuda(p, 0, nullptr);
      for (size_t i = 0; i < out.size(); ++i) failures += std::isnan(out[i]) != (i >= out.size() / 2);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> pcm16(-32768, 32767);
  const auto make = [](int64_t count, const std::function<double(int64_t)>& f) {
    std::vector<float> x(count);
    for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(std::floor(f(i) * 32767.0) / 32768.0);
    return x;
  };
  const auto noise = [&](int64_t) { return pcm16(random) / 32768.0; };
  const auto chirp = [](int64_t i) { return 0.9 * std::sin(kTau * (0.02 + 1.4e-5 * i) * i); };
  const auto clipped = [](int64_t i) { return std::min(1.0, std::max(-1.0, 3 * std::sin(0.05 * i))); };
  const auto impulses = [](int64_t i) { return i % 1601 == 0 ? 1.0 : 0.0; };

  check<int16_t>(make(2 * 15600, noise), 2, 15600, true, 0);
  check<float>(make(15600, chirp), 1, 15600, false, 0);
  check<int16_t>(make(15600, chirp), 1, 15600, true, 1);
  check<float>(make(2 * 15601, clipped), 2, 15601, true, 0);                 // the second clip starts off 16 bytes
  check<float>(make(15759, impulses), 1, 15759, true, 3);
  check<int16_t>(make(30960, impulses), 1, 30960, false, 0);                 // two examples
  check<int16_t>(make(15600, [](int64_t) { return 0.0; }), 1, 15600, true, 0);   // silence: a constant -1
  check<float>(make(15600, [](int64_t) { return 0.0; }), 1, 15600, false, 0);
  check_normalized(random);
  check_nan();
  if (failures) return std::printf("log_mel: %d checks failed\n", failures), EXIT_FAILURE;
  return std::printf("log_mel: host code and CUDA kernels (on host threads) within the bound, at most %.2f of it\n",
                     worst),
         EXIT_SUCCESS;
}
