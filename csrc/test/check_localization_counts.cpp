// Runs localization_counts over odd shapes, ties and values that are no numbers, built with the address and
// undefined-behaviour sanitizers: the host code, and the CUDA kernel on host threads (emulated/cuda_runtime.h), both
// bit by bit against the formula in localization_counts.h, pixel by pixel. Buffers are heap blocks of exactly the right
// size, so a read or write one element off is caught.
//
//   python .ci/check_csrc.py      builds and runs it
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "localization_counts.cu"  // the emulated headers come first on the include path

namespace {

using essl::MapType;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Values { kRandom, kTies, kConstant, kOneNan, kOneInfinity, kHuge };

struct Case {
  int batch, height, width, size, each, consensus;
  double threshold;
  MapType type;
  Values values;
};

int failures = 0;

// A value of the map as the type holds it: its bits, and what they stand for.
struct Stored {
  uint64_t bits;
  double value;
};

Stored store(double x, MapType type) {
  Stored out = {};
  if (type == MapType::kFloat64) {
    std::memcpy(&out.bits, &x, 8);
    out.value = x;
    return out;
  }
  const float narrow = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  if (type == MapType::kFloat32) return {bits, narrow};
  if (type == MapType::kBFloat16) {
    bits &= 0xffff0000u;
    float value;
    std::memcpy(&value, &bits, 4);
    return {bits >> 16, value};
  }
  if (!std::isfinite(x)) return {std::isnan(x) ? 0x7e00u : 0x7c00u, x};
  // float16: 11 significant bits, steps of 2^-24 at least.
  int exponent;
  std::frexp(x, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 11, -24));
  const double value = std::trunc(x / step) * step;
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
  const double size = std::fabs(value);
  if (size < std::ldexp(1.0, -14)) return {sign | static_cast<uint32_t>(size * 16777216.0), value};
  std::frexp(value, &exponent);
  const auto fraction = static_cast<uint32_t>(std::ldexp(size, 11 - exponent)) - 1024;
  return {sign | static_cast<uint32_t>(exponent + 14) << 10 | fraction, value};
}

// One image by the formula.
void expected(const Case& c, const std::vector<double>& map, const int32_t* boxes, double* intersection,
              double* either) {
  const auto blend = [](double a, double b, double share) {
    const double step = b - a, moved = share * step;
    return a + moved;
  };
  const auto place = [&](int at, int length, int* from, int* to) {
    const double scale = static_cast<double>(length) / c.size;
    const double position = std::max(scale * (at + 0.5) - 0.5, 0.0);
    *from = std::min(static_cast<int>(position), length - 1);
    *to = std::min(*from + 1, length - 1);
    return position - *from;
  };
  std::vector<double> heat(c.size * c.size);
  double low = kInfinity, high = -kInfinity;
  bool finite = true;
  for (int y = 0; y < c.size; ++y)
    for (int x = 0; x < c.size; ++x) {
      int x0, x1, y0, y1;
      const double u = place(x, c.width, &x0, &x1), v = place(y, c.height, &y0, &y1);
      const double above = blend(map[y0 * c.width + x0], map[y0 * c.width + x1], u);
      const double below = blend(map[y1 * c.width + x0], map[y1 * c.width + x1], u);
      const double value = blend(above, below, v);
      heat[y * c.size + x] = value;
      finite = finite && std::isfinite(value);
      low = std::min(low, value), high = std::max(high, value);
    }
  *intersection = *either = 0;
  for (int y = 0; y < c.size; ++y)
    for (int x = 0; x < c.size; ++x) {
      const double scaled = (heat[y * c.size + x] - low) / (high - low);
      const bool infer = finite && std::isfinite(high - low) && scaled >= c.threshold;
      int covering = 0;
      for (int k = 0; k < c.each; ++k) {
        const int32_t* b = boxes + 4 * k;
        covering += x >= b[0] && x < b[2] && y >= b[1] && y < b[3];
      }
      const float weight = std::min(1.0f, static_cast<float>(covering) / static_cast<float>(c.consensus));
      *intersection += infer ? static_cast<double>(weight) : 0.0;
      *either += static_cast<double>(weight) + (infer && covering == 0 ? 1.0 : 0.0);
    }
}

void check(const Case& c, std::mt19937& random) {
  const int elements = c.height * c.width;
  const size_t item = c.type == MapType::kFloat64 ? 8 : (c.type == MapType::kFloat32 ? 4 : 2);
  std::vector<uint8_t> similarity(c.batch * elements * item);
  std::vector<int32_t> boxes(c.batch * c.each * 4);
  std::vector<double> want(2 * c.batch);
  std::normal_distribution<double> normal;
  for (int b = 0; b < c.batch; ++b) {
    std::vector<double> map(elements);
    for (int i = 0; i < elements; ++i) {
      double x = normal(random);
      if (c.values == Values::kTies) x = static_cast<double>(random() % 5) / 4 - 0.5;
      if (c.values == Values::kConstant) x = 0.3 * (b + 1);
      if (c.values == Values::kHuge) x = (random() % 2 ? 1.5e308 : -1.5e308);
      if (c.values == Values::kRandom && i % 7 == 0) x *= 1e-6;  // subnormal in float16
      if (i == elements / 2 && c.values == Values::kOneNan) x = kNan;
      if (i == elements / 2 && c.values == Values::kOneInfinity) x = b % 2 ? kInfinity : -kInfinity;
      const Stored stored = store(x, c.type);
      map[i] = stored.value;
      std::memcpy(&similarity[(size_t(b) * elements + i) * item], &stored.bits, item);
    }
    for (int k = 0; k < c.each; ++k) {
      int32_t* box = &boxes[(b * c.each + k) * 4];
      for (int i = 0; i < 4; ++i) box[i] = static_cast<int32_t>(random() % (c.size + 9)) - 4;
      if (box[0] > box[2] && k % 4) std::swap(box[0], box[2]);  // some stay inverted: they cover nothing
      if (box[1] > box[3] && k % 4) std::swap(box[1], box[3]);
      if (k % 8 == 5) box[0] = INT32_MIN, box[2] = INT32_MAX;
      if (k % 8 == 6) box[1] = INT32_MIN, box[3] = INT32_MAX;
    }
    expected(c, map, boxes.data() + b * c.each * 4, &want[b], &want[c.batch + b]);
  }
  for (int way = 0; way < 3; ++way) {  // the host on 1 thread, on 3 without wide vectors, CUDA
    std::vector<double> out(2 * c.batch, kNan);
    const essl::LocalizationCounts p = {
        similarity.data(), boxes.data(), out.data(), out.data() + c.batch, c.batch,     c.each,
        c.height,          c.width,      c.size,     c.consensus,          c.threshold, c.type};
    if (way < 2) {
      essl::localization_counts_host(p, way == 0 ? 1 : 3, way == 0);
    } else {
      essl::localization_counts_cuda(p, 0, nullptr);
    }
    for (int i = 0; i < 2 * c.batch; ++i) {
      if (out[i] == want[i]) continue;
      ++failures;
      std::printf("%s, threshold %g: %s gives %s %d = %.17g, not %.17g\n", essl::describe(p).c_str(), c.threshold,
                  way < 2 ? "host" : "CUDA", i < c.batch ? "intersection" : "union", i % c.batch, out[i], want[i]);
    }
  }
}

// The bound tells what the division tells, next to it above all.
void check_bounds(std::mt19937& random) {
  std::uniform_real_distribution<double> uniform;
  for (int i = 0; i < 20000; ++i) {
    const double range = std::ldexp(1 + uniform(random), static_cast<int>(random() % 2000) - 1000);
    const double threshold = i % 3 ? uniform(random) : static_cast<double>(random() % 21) / 20;
    const double bound = essl::bound_of(threshold, range);
    const double below = std::nextafter(bound, 0.0);
    failures += bound <= range && !(bound / range >= threshold);
    failures += bound > 0 && below / range >= threshold;
  }
  failures += essl::bound_of(0.0, 1.0) != 0 || essl::bound_of(-1.0, 1.0) != 0;
  failures += !(essl::bound_of(1.5, 1.0) > 1.0) || !(essl::bound_of(kNan, 1.0) > 1.0);
  failures += essl::bound_of(1.0, 3.0) != 3.0;
  essl::bound_of(5e-324, 1e300), essl::bound_of(0.5, 5e-324);  // end
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const MapType types[] = {MapType::kFloat32, MapType::kBFloat16, MapType::kFloat16, MapType::kFloat64};
  for (MapType type : types) check({2, 14, 14, 56, 3, 2, 0.5, type, Values::kRandom}, random);
  const MapType f32 = MapType::kFloat32, f64 = MapType::kFloat64;
  const Case cases[] = {
      {1, 14, 14, 224, 1, 1, 0.5, f32, Values::kRandom},   {2, 14, 14, 112, 9, 3, 0.5, f32, Values::kTies},
      {2, 13, 7, 37, 4, 1, 0.5, f32, Values::kTies},       {2, 7, 9, 50, 2, 5, 0.3, f64, Values::kTies},
      {1, 1, 1, 1, 1, 1, 0.5, f32, Values::kRandom},       {2, 1, 9, 33, 2, 2, 0.7, f32, Values::kRandom},
      {2, 9, 1, 33, 0, 1, 0.5, f64, Values::kRandom},      {2, 33, 20, 20, 5, 4, 0.5, f32, Values::kRandom},
      {1, 64, 64, 41, 3, 1, 0.5, f32, Values::kRandom},    {1, 3, 2, 300, 2, 1, 0.5, f32, Values::kRandom},
      {2, 13, 13, 40, 2, 1, 0.5, f64, Values::kConstant},  {2, 14, 14, 40, 2, 1, 0.5, f32, Values::kOneNan},
      {2, 8, 8, 40, 2, 1, 0.5, f32, Values::kOneInfinity}, {2, 8, 8, 40, 2, 1, 0.5, f64, Values::kHuge},
      {1, 14, 14, 40, 2, 1, 0.0, f32, Values::kRandom},    {1, 14, 14, 40, 2, 1, 1.0, f32, Values::kTies},
      {1, 14, 14, 40, 2, 1, 1.1, f32, Values::kRandom},    {1, 14, 14, 40, 2, 1, kNan, f32, Values::kRandom},
      {1, 14, 14, 40, 2, 1024, 0.5, f32, Values::kTies},   {2, 6, 6, 24, 30, 7, 0.5, f32, Values::kTies},
  };
  for (const Case& c : cases) check(c, random);
  check_bounds(random);
  if (failures) return std::printf("localization_counts: %d checks failed\n", failures), EXIT_FAILURE;
  return std::printf("localization_counts: host code and CUDA kernel (on host threads) equal the formula\n"),
         EXIT_SUCCESS;
}
