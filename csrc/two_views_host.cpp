// two_views on the host: three table look-ups per pixel, or eight values at a time if the CPU has AVX2. Rows are split
// over threads. The contract is in two_views.h.
#include "two_views.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "parallel.h"

namespace essl {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Round to nearest, ties to even, as PyTorch does.
uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

uint16_t to_float16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00;  // from 65520 on, values round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the steps of a half are 2^-24: scale by that, exactly, and round to even.
    half = static_cast<uint32_t>(std::nearbyint(float_of(magnitude) * 16777216.0f));
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

uint16_t to_narrow(float x, OutType type) { return type == OutType::kBFloat16 ? to_bfloat16(x) : to_float16(x); }

// Finds the constants of a channel that `affine` needs (two_views.h), or says that there are none. Of the 2^15 values
// of M, about one in a thousand leaves a small enough error in the bias.
bool find_affine(int channel, OutType type, ViewTable* table) {
  const float scale = static_cast<float>(1.0 / (255.0 * table->std[channel]));
  const double offset = -static_cast<double>(table->mean[channel]) / table->std[channel];
  for (uint32_t i = 0; i < 1u << 15; ++i) {
    const uint32_t magic = 0x47000000u | i >> 8 << 16 | (i & 255u);
    const double exact = offset - static_cast<double>(float_of(magic)) * scale;
    const float bias = static_cast<float>(exact);
    if (!(std::abs(bias - exact) <= std::abs(exact) * 0x1p-34)) continue;
    uint32_t byte = 0;
    while (byte < 256 && to_narrow(std::fma(float_of(magic | byte << 8), scale, bias), type) ==
                             table->narrow[channel * 256 + byte]) {
      ++byte;
    }
    if (byte < 256) continue;
    table->scale[channel] = scale, table->bias[channel] = bias, table->magic[channel] = magic;
    return true;
  }
  return false;
}

template <class T>
void copy_row(const uint8_t* __restrict__ in, T* __restrict__ out, const T* __restrict__ table, int width, bool flip) {
  if (!flip) {
    for (int x = 0; x < width; ++x) {
      out[3 * x + 0] = table[in[3 * x + 0]];
      out[3 * x + 1] = table[256 + in[3 * x + 1]];
      out[3 * x + 2] = table[512 + in[3 * x + 2]];
    }
    return;
  }
  const uint8_t* last = in + 3 * (width - 1);
  for (int x = 0; x < width; ++x) {
    out[3 * x + 0] = table[last[-3 * x + 0]];
    out[3 * x + 1] = table[256 + last[-3 * x + 1]];
    out[3 * x + 2] = table[512 + last[-3 * x + 2]];
  }
}

float quotient(float x, float by, float reciprocal) {
  const float near = x * reciprocal;
  return std::fma(std::fma(-near, by, x), reciprocal, near);
}

#if defined(__x86_64__) && defined(__GNUC__)
constexpr int kWidest = 1024;  // pixels of a row that is mirrored on the stack

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// A row of pixels, the last one first. Up to 16 bytes after `out`'s end are overwritten.
__attribute__((target("avx2,fma"))) void mirror_row(const uint8_t* __restrict__ in, uint8_t* __restrict__ out,
                                                    int width) {
  // Five pixels at a time: 15 bytes, and the byte before them, which must belong to the row, too.
  const __m128i order = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
  int left = width;  // pixels that are left, from the row's end
  for (; left >= 6; left -= 5, out += 15) {
    const __m128i five = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 3 * (left - 5) - 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(five, order));
  }
  for (; left > 0; --left, out += 3) std::memcpy(out, in + 3 * (left - 1), 3);
}

// As copy_row, but with arithmetic instead of the table; only for tables that are `exact`.
__attribute__((target("avx2,fma"))) void copy_row_avx2(const uint8_t* __restrict__ in, float* __restrict__ out,
                                                       const ViewTable& table, int width, bool flip) {
  uint8_t mirrored[3 * kWidest + 16];
  if (flip) {
    mirror_row(in, mirrored, width);
    in = mirrored;
  }
  const __m256 full = _mm256_set1_ps(255.0f), part = _mm256_set1_ps(1.0f / 255.0f);
  __m256 mean[3], std[3], inverse[3];
  for (int j = 0; j < 3; ++j) {  // value 8 j + i is of channel (8 j + i) % 3
    float m[8], s[8], r[8];
    for (int i = 0; i < 8; ++i) {
      const int c = (8 * j + i) % 3;
      m[i] = table.mean[c], s[i] = table.std[c], r[i] = 1.0f / table.std[c];
    }
    mean[j] = _mm256_loadu_ps(m), std[j] = _mm256_loadu_ps(s), inverse[j] = _mm256_loadu_ps(r);
  }
  const int values = 3 * width;
  int at = 0;
  for (; at + 24 <= values; at += 24) {
    for (int j = 0; j < 3; ++j) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + at + 8 * j));
      const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
      __m256 unit = _mm256_mul_ps(x, part);
      unit = _mm256_fmadd_ps(_mm256_fnmadd_ps(unit, full, x), part, unit);
      const __m256 shifted = _mm256_sub_ps(unit, mean[j]);
      __m256 value = _mm256_mul_ps(shifted, inverse[j]);
      value = _mm256_fmadd_ps(_mm256_fnmadd_ps(value, std[j], shifted), inverse[j], value);
      _mm256_storeu_ps(out + at + 8 * j, value);
    }
  }
  for (; at < values; ++at) out[at] = table.value[at % 3 * 256 + in[at]];
}
#else
constexpr int kWidest = 0;
constexpr bool has_avx2() { return false; }
void copy_row_avx2(const uint8_t*, float*, const ViewTable&, int, bool) {}
#endif

template <class T>
void run(const TwoViews& p, const ViewTable& table, const T* entries, int threads) {
  constexpr int kBand = 32;  // rows per task: 32 * 224 pixels take about 20 us
  const int64_t bands = (p.window + kBand - 1) / kBand;
  const int64_t pitch = int64_t{3} * p.window;
  const bool wide = std::is_same_v<T, float> && table.exact && p.window <= kWidest && has_avx2();
  parallel_for(p.views * p.batch * bands, threads, [&](int64_t task) {
    const int64_t image = task / bands;  // view * B + sample
    const int first = static_cast<int>(task % bands) * kBand;
    const int last = first + kBand < p.window ? first + kBand : p.window;
    const Window window = given_window(p, image);
    const uint8_t* in = p.frames + window_start(p, image % p.batch, window);
    T* out = static_cast<T*>(p.out) + image * p.window * pitch;
    for (int y = first; y < last; ++y) {
      const uint8_t* row = in + int64_t{3} * y * p.side;
      if constexpr (std::is_same_v<T, float>) {
        if (wide) {
          copy_row_avx2(row, out + y * pitch, table, p.window, window.flip);
          continue;
        }
      }
      copy_row(row, out + y * pitch, entries, p.window, window.flip);
    }
  });
}

}  // namespace

float value_of(const ViewTable& table, int channel, float byte) {
  const float unit = quotient(byte, 255.0f, 1.0f / 255.0f);
  return quotient(unit - table.mean[channel], table.std[channel], 1.0f / table.std[channel]);
}

void make_view_table(const float mean[3], const float std[3], OutType type, ViewTable* table) {
  table->affine = type != OutType::kFloat32;
  table->exact = true;
  for (int c = 0; c < 3; ++c) {
    table->mean[c] = mean[c];
    table->std[c] = std[c];
    for (int byte = 0; byte < 256; ++byte) {
      const float unit = static_cast<float>(byte) / 255.0f;
      const float shifted = unit - mean[c];
      const float value = shifted / std[c];
      table->value[c * 256 + byte] = value;
      table->exact = table->exact && bits_of(value_of(*table, c, static_cast<float>(byte))) == bits_of(value);
      table->narrow[c * 256 + byte] = type == OutType::kFloat32 ? 0 : to_narrow(value, type);
    }
    table->affine = table->affine && find_affine(c, type, table);
  }
}

std::string describe(const TwoViews& p) {
  const char* names[] = {"float32", "bfloat16", "float16"};
  const std::string n = std::to_string(p.stored), s = std::to_string(p.side), v = std::to_string(p.views);
  const std::string b = std::to_string(p.batch), w = std::to_string(p.window);
  return std::string(p.index ? "random_views" : "two_views") + ": frames (" + n + ", " + s + ", " + s + ", 3) -> (" +
         v + ", " + b + ", 3, " + w + ", " + w + ") " + names[static_cast<int>(p.type)];
}

void two_views_host(const TwoViews& p, const ViewTable& table, int threads) {
  if (p.batch == 0) return;
  if (p.index) {
    view_params_host({p.index, p.top, p.left, p.flip, p.batch, p.views, p.side - p.window, p.seed, p.epoch});
  }
  if (p.type == OutType::kFloat32) {
    run<float>(p, table, table.value, threads);
  } else {
    run<uint16_t>(p, table, table.narrow, threads);
  }
}

}  // namespace essl
