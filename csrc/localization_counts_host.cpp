// localization_counts on the host: images are split over threads, and neighbouring columns share a vector register.
// The contract and the mathematics are in localization_counts.h.
#include "localization_counts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"

#define ESSL_INLINE inline __attribute__((always_inline))

namespace essl {
namespace {

// Vectors of doubles at any address, and the result of comparing them: 0 or -1 in each lane.
template <int kWide>
struct Vector;
template <>
struct Vector<2> {
  typedef double Doubles __attribute__((vector_size(16), aligned(8), may_alias));
  typedef int64_t Masks __attribute__((vector_size(16), aligned(8), may_alias));
};
template <>
struct Vector<4> {
  typedef double Doubles __attribute__((vector_size(32), aligned(8), may_alias));
  typedef int64_t Masks __attribute__((vector_size(32), aligned(8), may_alias));
};

constexpr int kChunk = 8;  // rows are padded to a multiple of this many columns by repeating the image's last column

int padded(int columns) { return (columns + kChunk - 1) / kChunk * kChunk; }

// One axis of the resize: output positions first[i] .. first[i + 1] - 1 are between map positions i and i + 1.
struct Axis {
  std::vector<int32_t> first;  // (length + 1,)
  std::vector<double> share;   // (S,)

  Axis(int32_t length, int32_t size) : first(length + 1, size), share(size) {
    const double scale = static_cast<double>(length) / size;
    for (int32_t at = size - 1; at >= 0; --at) {
      const Place place = place_of(at, scale, length);
      share[at] = place.share;
      for (int32_t i = place.from; i >= 0 && first[i] > at; --i) first[i] = at;
    }
  }
};

// A box's upper or lower edge: from row y on, `change` (1 or -1) more boxes cover columns x1 .. x2 - 1.
struct Edge {
  int32_t y, x1, x2, change;
};

// Buffers for one image at a time. P = padded(S).
struct Scratch {
  std::vector<double> map;     // (h, w)
  std::vector<double> rows;    // (h, P) the map resized along x
  std::vector<double> low;     // (P,) smallest heat of each column
  std::vector<double> high;    // (P,)
  std::vector<double> zero;    // (P,) 0, or NaN if the column has a value that is not finite
  std::vector<double> count;   // (P,) inferred pixels of each column in the current band
  std::vector<double> hit;     // (P,) sum of g where inferred
  std::vector<double> either;  // (P,) sum of g, plus the inferred pixels where g = 0
  std::vector<int32_t> level;  // (P,) boxes that cover the column in the current band
  std::vector<Edge> edges;     // at most 2 K

  explicit Scratch(const LocalizationCounts& p) : map(int64_t{p.height} * p.width) {
    const int columns = padded(p.size);
    rows.resize(int64_t{p.height} * columns);
    for (auto* each : {&low, &high, &zero, &count, &hit, &either}) each->resize(columns);
    level.resize(columns);
    edges.reserve(size_t{2} * p.each);
  }
};

ESSL_INLINE void resize_row(const double* map, const Axis& axis, int width, int size, double* row) {
  for (int i = 0; i < width; ++i) {
    const double a = map[i], b = map[i + 1 < width ? i + 1 : i];
    for (int x = axis.first[i]; x < axis.first[i + 1]; ++x) row[x] = blend(a, b, axis.share[x]);
  }
  for (int x = size; x < padded(size); ++x) row[x] = row[size - 1];
}

// Widens each column's [low, high] by the output rows between resized rows a and b; the first and the last are enough.
ESSL_INLINE void find_extremes(const double* a, const double* b, double first, double last, int columns, double* low,
                               double* high, double* zero) {
  for (int x = 0; x < columns; ++x) {
    const double step = b[x] - a[x];
    const double u = a[x] + first * step, v = a[x] + last * step;
    const double lesser = u < v ? u : v, greater = u < v ? v : u;
    low[x] = lesser < low[x] ? lesser : low[x];
    high[x] = greater > high[x] ? greater : high[x];
    zero[x] += 0.0 * step;
  }
}

// Adds to `count` each column's inferred pixels in `rows` output rows between a and b, at the given shares.
template <int kWide>
ESSL_INLINE void count_inferred(const double* a, const double* b, const double* share, int rows, double low,
                                double bound, int columns, double* count) {
  using Doubles = typename Vector<kWide>::Doubles;
  using Masks = typename Vector<kWide>::Masks;
  constexpr int64_t kTwo52 = 0x4330000000000000;  // the bits of 2^52: adding n to them adds n to the number
  for (int x = 0; x < columns; x += 2 * kWide) {
    Doubles from[2], step[2];
    Masks inside[2];  // minus the number of inferred rows
    for (int i = 0; i < 2; ++i) {
      from[i] = reinterpret_cast<const Doubles*>(a + x)[i];
      step[i] = reinterpret_cast<const Doubles*>(b + x)[i] - from[i];
      inside[i] = from[i] + share[0] * step[i] - low >= bound;
      inside[i] += from[i] + share[rows - 1] * step[i] - low >= bound;
    }
    const Masks both = inside[0] + inside[1];
    int64_t ends = 0;
    for (int i = 0; i < kWide; ++i) ends += both[i];
    if (ends == 0) continue;  // no end of any column is inferred, so nothing between the ends is
    if (ends == -4 * kWide) {
      inside[0] = inside[1] = Masks{} - rows;
    } else {
      inside[0] = inside[1] = Masks{};
      for (int y = 0; y < rows; ++y) {
        inside[0] += from[0] + share[y] * step[0] - low >= bound;
        inside[1] += from[1] + share[y] * step[1] - low >= bound;
      }
    }
    for (int i = 0; i < 2; ++i) {
      const Masks bits = kTwo52 - inside[i];
      reinterpret_cast<Doubles*>(count + x)[i] += reinterpret_cast<const Doubles&>(bits) - 0x1p52;
    }
  }
}

// Adds a band of rows to each column's sums: `level` boxes cover the column there, `count` of its pixels are inferred.
ESSL_INLINE void weigh_band(const int32_t* level, const double* count, double rows, int32_t consensus, int columns,
                            double* hit, double* either) {
  for (int x = 0; x < columns; ++x) {
    const double weight = weight_of(level[x], consensus);
    hit[x] += weight * count[x];
    either[x] += level[x] == 0 ? count[x] : weight * rows;
  }
}

void sort_edges(const LocalizationCounts& p, int64_t image, std::vector<Edge>* edges) {
  edges->clear();
  const auto inside = [&](int32_t at) { return std::clamp(at, 0, p.size); };
  for (int32_t k = 0; k < p.each; ++k) {
    const int32_t* const box = p.boxes + (image * p.each + k) * 4;
    const int32_t x1 = inside(box[0]), y1 = inside(box[1]), x2 = inside(box[2]), y2 = inside(box[3]);
    if (x1 >= x2 || y1 >= y2) continue;
    edges->push_back({y1, x1, x2, 1});
    edges->push_back({y2, x1, x2, -1});
  }
  std::sort(edges->begin(), edges->end(), [](const Edge& a, const Edge& b) { return a.y < b.y; });
}

template <int kWide>
ESSL_INLINE void count_image(const LocalizationCounts& p, const Axis& x_axis, const Axis& y_axis, int64_t image,
                             Scratch* s) {
  const int columns = padded(p.size);
  const int64_t elements = int64_t{p.height} * p.width;
  for (int64_t i = 0; i < elements; ++i) s->map[i] = map_value(p, image * elements + i);
  const auto row = [&](int r) { return s->rows.data() + int64_t{r < p.height ? r : p.height - 1} * columns; };
  for (int r = 0; r < p.height; ++r) {
    resize_row(s->map.data() + int64_t{r} * p.width, x_axis, p.width, p.size, row(r));
  }

  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::fill(s->low.begin(), s->low.end(), kInfinity);
  std::fill(s->high.begin(), s->high.end(), -kInfinity);
  for (auto* each : {&s->zero, &s->hit, &s->either}) std::fill(each->begin(), each->end(), 0.0);
  for (int r = 0; r < p.height; ++r) {
    const int begin = y_axis.first[r], end = y_axis.first[r + 1];
    if (begin == end) continue;
    find_extremes(row(r), row(r + 1), y_axis.share[begin], y_axis.share[end - 1], columns, s->low.data(),
                  s->high.data(), s->zero.data());
  }
  double low = kInfinity, high = -kInfinity, zero = 0;
  for (int x = 0; x < p.size; ++x) {
    low = std::min(low, s->low[x]), high = std::max(high, s->high[x]), zero += s->zero[x];
  }
  const double range = high - low;
  const bool infers = zero == 0 && range > 0 && range < kInfinity;
  const double bound = infers ? bound_of(p.threshold, range) : 0;

  // Band by band; the same boxes cover all rows of a band.
  sort_edges(p, image, &s->edges);
  std::fill(s->level.begin(), s->level.end(), 0);
  auto edge = s->edges.cbegin();
  for (int begin = 0, r = 0; begin < p.size;) {
    for (; edge != s->edges.cend() && edge->y == begin; ++edge) {
      for (int x = edge->x1; x < edge->x2; ++x) s->level[x] += edge->change;
    }
    const int end = edge != s->edges.cend() ? edge->y : p.size;
    std::fill(s->count.begin(), s->count.end(), 0.0);
    for (int y = begin; infers && y < end;) {
      while (y_axis.first[r + 1] <= y) ++r;
      const int until = std::min(y_axis.first[r + 1], end);
      count_inferred<kWide>(row(r), row(r + 1), y_axis.share.data() + y, until - y, low, bound, columns,
                            s->count.data());
      y = until;
    }
    weigh_band(s->level.data(), s->count.data(), end - begin, p.consensus, columns, s->hit.data(), s->either.data());
    begin = end;
  }
  double hit = 0, either = 0;
  for (int x = 0; x < p.size; ++x) hit += s->hit[x], either += s->either[x];
  p.intersection[image] = hit;
  p.union_[image] = either;
}

// The same source compiled for the plain instruction set and for AVX2 (1.6 times as fast), chosen at run time. The
// results are equal, since neither fuses operations.
void count_image_plain(const LocalizationCounts& p, const Axis& x, const Axis& y, int64_t image, Scratch* scratch) {
  count_image<2>(p, x, y, image, scratch);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void count_image_avx2(const LocalizationCounts& p, const Axis& x, const Axis& y,
                                                      int64_t image, Scratch* scratch) {
  count_image<4>(p, x, y, image, scratch);
}

bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#else
constexpr auto count_image_avx2 = count_image_plain;
constexpr bool has_avx2() { return false; }
#endif

}  // namespace

std::string describe(const LocalizationCounts& p) {
  const char* names[] = {"float32", "bfloat16", "float16", "float64"};
  const std::string b = std::to_string(p.batch), h = std::to_string(p.height), w = std::to_string(p.width);
  return "localization_counts: similarity (" + b + ", " + h + ", " + w + ") " + names[static_cast<int>(p.type)] +
         ", boxes (" + b + ", " + std::to_string(p.each) + ", 4), size " + std::to_string(p.size);
}

void localization_counts_host(const LocalizationCounts& p, int threads, bool wide) {
  if (p.batch == 0) return;
  const Axis x_axis(p.width, p.size), y_axis(p.height, p.size);
  const auto count = wide && has_avx2() ? count_image_avx2 : count_image_plain;
  // A few sets of buffers serve many images. They are allocated here, where a lack of memory can become an error.
  const int64_t runs = std::min(p.batch, int64_t{4} * threads);
  std::vector<Scratch> scratch;
  scratch.reserve(runs);
  for (int64_t run = 0; run < runs; ++run) scratch.emplace_back(p);
  parallel_for(runs, threads, [&](int64_t run) {
    for (int64_t image = p.batch * run / runs; image < p.batch * (run + 1) / runs; ++image) {
      count(p, x_axis, y_axis, image, &scratch[run]);
    }
  });
}

}  // namespace essl
