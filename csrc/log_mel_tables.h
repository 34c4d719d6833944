// The constants of log_mel, computed by the compiler in double and rounded once: window, roots of unity, mel weights.
// They are read-only data of the program (and of the GPU module): nothing is computed or copied at the first call, so
// CUDA graphs can capture it.
#pragma once

#include "log_mel.h"

namespace essl {
namespace tables {

constexpr double kPi = 3.14159265358979323846;
constexpr int kFirstBin = 5;    // 156.25 Hz; bin 4, 125 Hz, is the first band's corner and has the weight 0
constexpr int kBins = 235;      // 5 .. 239; bin 240, 7500 Hz, is the last band's corner
constexpr int kIntervals = 65;  // between neighbouring points on the mel scale

// sin x and cos x for 0 <= x <= pi / 4: Taylor series, to the last bit.
constexpr double sine_series(double x) {
  double term = x, sum = x;
  for (int n = 2; n <= 20; n += 2) term *= -x * x / (n * (n + 1)), sum += term;
  return sum;
}
constexpr double cosine_series(double x) {
  double term = 1, sum = 1;
  for (int n = 1; n <= 19; n += 2) term *= -x * x / (n * (n + 1)), sum += term;
  return sum;
}

// cos(2 pi k / n) for n divisible by 4; sin is cos, a quarter turn earlier.
constexpr double cosine(int k, int n) {
  k = (k % n + n) % n;
  if (2 * k > n) k = n - k;                     // the lower half mirrors the upper
  if (4 * k > n) return -cosine(n / 2 - k, n);  // the left half mirrors the right
  if (8 * k > n) return sine_series(2 * kPi * (n - 4 * k) / (4 * n));
  return cosine_series(2 * kPi * k / n);
}
constexpr double sine(int k, int n) { return cosine(k - n / 4, n); }

// ln x for x >= 1: halved into [0.7, 1.4], then 2 atanh((x - 1) / (x + 1)).
constexpr double logarithm(double x) {
  int halvings = 0;
  for (; x > 1.4; x /= 2) ++halvings;
  const double s = (x - 1) / (x + 1);
  double power = s, sum = 0;
  for (int n = 1; n <= 25; n += 2) sum += power / n, power *= s * s;
  return halvings * 0.693147180559945309417 + 2 * sum;
}

constexpr double mel(double hertz) { return 1127 * logarithm(1 + hertz / 700); }

struct Mel {
  int first[kIntervals + 1];  // interval i holds bins first[i] .. first[i + 1] - 1, counted from kFirstBin
  float rise[kBins];          // weight in the band that begins with the bin's interval
  float fall[kBins];          // weight in the band that ends with it
};

constexpr Mel make_mel() {
  Mel table = {};
  const double low = mel(125), step = (mel(7500) - low) / kIntervals;
  int bin = 0;
  for (int interval = 0; interval < kIntervals; ++interval) {
    table.first[interval] = bin;
    for (; bin < kBins; ++bin) {
      const double along = (mel((kFirstBin + bin) * 31.25) - low) / step - interval;
      if (along >= 1) break;
      table.rise[bin] = static_cast<float>(along);
      table.fall[bin] = static_cast<float>(1 - along);
    }
  }
  table.first[kIntervals] = bin;
  return table;
}
inline constexpr Mel kMel = make_mel();
static_assert(kMel.first[kIntervals] == kBins && kMel.first[0] == 0, "every bin lies in an interval");

}  // namespace tables
}  // namespace essl
