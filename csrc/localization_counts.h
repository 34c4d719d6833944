// localization_counts: how much of a thresholded similarity map is inside the annotated boxes. cIoU is the quotient of
// its two results.
//
//   similarity    T       (B, h, w)  contiguous
//   boxes         int32   (B, K, 4)  x1 y1 x2 y2, half-open, in pixels of the S x S grid, contiguous
//   intersection  double  (B,)
//   union_        double  (B,)
//
//   heat(y, x)    = the map resized to S x S, bilinear, half-pixel centres, edges repeated
//   infer(y, x)   = (heat(y, x) - low) / (high - low) >= threshold     low, high: the extremes of heat
//   g(y, x)       = min(1, boxes that cover the pixel / consensus)     rounded to float32
//   intersection  = sum of g where infer
//   union_        = sum of g + number of pixels where infer and g = 0
//
// Nothing is inferred of a constant map, or of one in which a NaN or an infinity reaches a pixel.
//
// The resize, in double, with each operation rounded separately:
//
//   row[r][x]  = map[r][i] + u (map[r][i + 1] - map[r][i])      i + u = max(0, (x + 1/2) w / S - 1/2)
//   heat(y, x) = row[r][x] + v (row[r + 1][x] - row[r][x])      r + v = max(0, (y + 1/2) h / S - 1/2)
//
// Rounding does not destroy two properties of the form a + v (b - a), and they make this op correct and fast:
//
//   - If a = b, heat is a: a constant map stays constant.
//   - Down a column, between two map rows, heat is monotone: rounding is monotone, so v (b - a) is monotone in v, and
//     so is its sum with a. So the extremes are in the first and last output rows of such an interval, and the inferred
//     rows are all, none, or a run that begins at one end. Of 224 rows, 28 are enough for the extremes; the others are
//     computed only where the ends of an interval differ, along the contour.
//
// (1 - v) a + v b, which PyTorch's resize computes, has neither property, and its last bit depends on the processor:
// PyTorch's code for AVX2 fuses operations, its plain code does not. For an upscaling by a power of two (14 to 224),
// all forms are exact for float32 values within a factor of 2^16 of each other, and so equal. Otherwise they differ by
// about 1e-16 of the largest value, so only a pixel that is as near to the threshold can have another result.
//
// x / (high - low), rounded, is monotone in x, too, so there is one `bound` per map with infer = (heat - low >= bound).
// Every g is a multiple of 2^-33 and there are at most 2^20 pixels. So sums of g are exact in double in any order, and
// the GPU, the host and the reference agree to the last bit.
//
// Bytes: maps and boxes are read once, and two doubles per image are written. 64 maps of 14 x 14 in float32 have 50 KB.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#if defined(__CUDACC__)
#define ESSL_HD __host__ __device__
#else
#define ESSL_HD
#endif

namespace essl {

enum class MapType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

constexpr int kMaxSide = 1024;       // h, w and S
constexpr int kMaxConsensus = 1024;  // up to this, g is a multiple of 2^-33

struct LocalizationCounts {
  const void* similarity;  // (B, h, w)
  const int32_t* boxes;    // (B, K, 4)
  double* intersection;    // (B,)
  double* union_;          // (B,)
  int64_t batch;           // B >= 0
  int32_t each;            // K >= 0
  int32_t height;          // 1 <= h <= kMaxSide
  int32_t width;           // 1 <= w <= kMaxSide
  int32_t size;            // 1 <= S <= kMaxSide
  int32_t consensus;       // 1 <= consensus <= kMaxConsensus
  double threshold;
  MapType type;
};

ESSL_HD inline double bits_to_double(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A product with its own rounding: the GPU's compiler cannot fuse it with an addition (a flag tells the host's not to).
ESSL_HD inline double times(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

ESSL_HD inline double blend(double a, double b, double share) { return a + times(share, b - a); }

// The position of an output row (or column) between two map rows: `share` of the way from row `from` to the next.
struct Place {
  int32_t from;
  double share;
};

// scale: map length / output length.
ESSL_HD inline Place place_of(int32_t at, double scale, int32_t length) {
  const double exact = times(scale, at + 0.5) - 0.5;
  const double position = exact > 0 ? exact : 0;
  const int32_t from = static_cast<int32_t>(position) < length ? static_cast<int32_t>(position) : length - 1;
  return {from, position - from};
}

// The bound for which `x >= bound` equals `x / range >= threshold`, with the division rounded, for 0 <= x <= range.
// Needs a finite range > 0. A threshold in (0, 1e-300) counts as 1e-300.
ESSL_HD inline double bound_of(double threshold, double range) {
  if (threshold <= 0) return 0;
  if (!(threshold <= 1)) return 2 * range;
  // The product is at most two steps away from the smallest x that passes.
  const double wanted = threshold < 1e-300 ? 1e-300 : threshold;
  const double product = times(wanted, range);
  uint64_t bits;  // for non-negative numbers they have the order of the values
  std::memcpy(&bits, &product, sizeof bits);
  while (bits > 0 && bits_to_double(bits - 1) / range >= wanted) --bits;
  while (bits_to_double(bits) / range < wanted) ++bits;
  return bits_to_double(bits);
}

// The weight of a pixel that `level` boxes cover.
ESSL_HD inline double weight_of(int32_t level, int32_t consensus) {
  return level >= consensus ? 1.0 : static_cast<double>(static_cast<float>(level) / static_cast<float>(consensus));
}

// Element i of `similarity`, without rounding; NaN for a float16 infinity.
ESSL_HD inline double map_value(const LocalizationCounts& p, int64_t i) {
  if (p.type == MapType::kFloat64) return static_cast<const double*>(p.similarity)[i];
  if (p.type == MapType::kFloat32) return static_cast<const float*>(p.similarity)[i];
  const uint32_t half = static_cast<const uint16_t*>(p.similarity)[i];
  if (p.type == MapType::kBFloat16) {
    const uint32_t bits = half << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  const uint32_t exponent = (half >> 10) & 31u;
  if (exponent == 31) return bits_to_double(uint64_t{0x7ff8} << 48);
  // (1024 + fraction) 2^(exponent - 25), or fraction 2^-24 for subnormal numbers.
  const int64_t scaled = exponent ? int64_t{1024 + (half & 1023u)} << exponent : int64_t{half & 1023u} << 1;
  const double value = static_cast<double>(scaled) * (1.0 / 33554432.0);
  return half & 0x8000u ? -value : value;
}

// For error messages: the op and its shapes.
std::string describe(const LocalizationCounts& p);

// On host memory. Deterministic; the same for every `threads` >= 1, and with wide vectors (if the processor has them)
// or without.
void localization_counts_host(const LocalizationCounts& p, int threads, bool wide = true);

// On memory of `device`: enqueues one launch on `stream` (a cudaStream_t) and does not wait. Throws std::runtime_error
// with the op, the shapes and CUDA's message.
void localization_counts_cuda(const LocalizationCounts& p, int device, void* stream);

}  // namespace essl
