// two_views on the host: three table look-ups per pixel, rows shared out over threads. The contract is in two_views.h.
#include "two_views.h"

#include <cmath>
#include <cstring>

#include "huge_pages.h"
#include "parallel.h"

namespace essl {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
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
    half = 0x7c00;  // 65520 and more round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 a half counts in steps of 2^-24: scale to that, exactly, and round to even.
    float x_abs;
    std::memcpy(&x_abs, &magnitude, sizeof x_abs);
    half = static_cast<uint32_t>(std::nearbyint(x_abs * 16777216.0f));
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

uint16_t to_narrow(float x, OutType type) { return type == OutType::kBFloat16 ? to_bfloat16(x) : to_float16(x); }

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

template <class T>
void run(const TwoViews& p, const T* table, int threads) {
  constexpr int kBand = 32;  // rows per task: 32 * 224 pixels are some 20 us
  const int64_t bands = (p.window + kBand - 1) / kBand;
  const int64_t pitch = int64_t{3} * p.window;
  advise_huge_pages(p.out, static_cast<size_t>(p.views * p.batch * p.window * pitch) * sizeof(T));
  parallel_for(p.views * p.batch * bands, threads, [&](int64_t task) {
    const int64_t image = task / bands;  // view * B + sample
    const int first = static_cast<int>(task % bands) * kBand;
    const int last = first + kBand < p.window ? first + kBand : p.window;
    const Window window = given_window(p, image);
    const uint8_t* in = p.frames + window_start(p, image % p.batch, window);
    T* out = static_cast<T*>(p.out) + image * p.window * pitch;
    for (int y = first; y < last; ++y) {
      copy_row(in + int64_t{3} * y * p.side, out + y * pitch, table, p.window, window.flip);
    }
  });
}

}  // namespace

void make_view_table(const float mean[3], const float std[3], OutType type, ViewTable* table) {
  table->affine = type != OutType::kFloat32;
  for (int c = 0; c < 3; ++c) {
    table->scale[c] = static_cast<float>(1.0 / (255.0 * std[c]));
    table->bias[c] = static_cast<float>(-static_cast<double>(mean[c]) / std[c]);
    for (int byte = 0; byte < 256; ++byte) {
      const float unit = static_cast<float>(byte) / 255.0f;
      const float shifted = unit - mean[c];
      const float value = shifted / std[c];
      table->value[c * 256 + byte] = value;
      if (type == OutType::kFloat32) {
        table->narrow[c * 256 + byte] = 0;
        continue;
      }
      const uint16_t narrow = to_narrow(value, type);
      const float fused = std::fma(static_cast<float>(byte), table->scale[c], table->bias[c]);
      table->narrow[c * 256 + byte] = narrow;
      table->affine = table->affine && to_narrow(fused, type) == narrow;
    }
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
    run<float>(p, table.value, threads);
  } else {
    run<uint16_t>(p, table.narrow, threads);
  }
}

}  // namespace essl
