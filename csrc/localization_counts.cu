// localization_counts on the GPU: one block per image, one launch. The contract and the mathematics are in
// localization_counts.h.
//
// A lane's unit of work is a column between two map rows: 14 x 224 units for a 14 x 14 map, instead of 224 x 224
// pixels. Two passes over them:
//
//   1. The extremes, from the first and last output row of each unit, reduced over the block. One thread computes the
//      bound.
//   2. The run of inferred rows. If both ends of the unit agree, it is all rows or none; if they differ, bisection
//      finds where the run begins or ends. Then the boxes, in steps from one box edge in that column to the next.
//
// The map is copied to shared memory in double if it fits; otherwise it is read through the cache at each use. Resized
// values are computed again, not stored. All arithmetic is double: about 40 operations per unit and pass, which GPUs
// with few double units can do, too. Sums are exact (see the header), so the order of the reduction does not matter.
//
// Not measured on a GPU yet. By estimate a block takes about 5 us, mostly waiting; 304 blocks share 132 processors.
#include <algorithm>

#include "common.cuh"
#include "localization_counts.h"

namespace essl {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kStaged = 3072;  // largest map, in elements, that is copied to shared memory: 24 KiB

struct Layout {
  int share, partial, map, first, bytes;  // offsets in shared memory
};

__host__ __device__ inline Layout layout_of(const LocalizationCounts& p) {
  Layout at = {};
  at.partial = at.share + p.size * 8;       // share: (S,) double, the shares of output rows
  at.map = at.partial + 3 * kWarps * 8;     // partial: (3, kWarps) double
  const int elements = p.height * p.width;  // map: (h, w) double if staged
  at.first = at.map + (elements <= kStaged ? elements * 8 : 0);
  at.bytes = at.first + (p.height + 1) * 4;  // first: (h + 1,) int32, the first output row of each interval
  return at;
}

template <class Combine>
__device__ __forceinline__ double reduce_warp(double value, const Combine& combine) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

__device__ __forceinline__ double lesser(double a, double b) { return b < a ? b : a; }
__device__ __forceinline__ double greater(double a, double b) { return b > a ? b : a; }
__device__ __forceinline__ double plus(double a, double b) { return a + b; }

// A multiprocessor of sm_86 and sm_89 holds 1,536 threads, three blocks. nvcc 13.5 has to be told, or else it spills.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
#define ESSL_BOUNDS __launch_bounds__(kThreads, 3)
#else
#define ESSL_BOUNDS __launch_bounds__(kThreads)
#endif

__global__ void ESSL_BOUNDS localization_counts_kernel(const LocalizationCounts p) {
  const Layout at = layout_of(p);
  unsigned char* const shared = dynamic_shared();
  double* const share = reinterpret_cast<double*>(shared + at.share);
  double* const partial = reinterpret_cast<double*>(shared + at.partial);
  double* const map = reinterpret_cast<double*>(shared + at.map);
  int32_t* const first = reinterpret_cast<int32_t*>(shared + at.first);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t image = blockIdx.x;
  const int elements = p.height * p.width;
  const bool staged = elements <= kStaged;
  const double x_scale = static_cast<double>(p.width) / p.size;
  const double y_scale = static_cast<double>(p.height) / p.size;

  for (int i = threadIdx.x; staged && i < elements; i += kThreads) map[i] = map_value(p, image * elements + i);
  for (int y = threadIdx.x; y < p.size; y += kThreads) {
    const Place place = place_of(y, y_scale, p.height);
    share[y] = place.share;
    // Row y is the first of its own interval, and of the empty intervals after that of row y - 1.
    for (int r = y == 0 ? 0 : place_of(y - 1, y_scale, p.height).from + 1; r <= place.from; ++r) first[r] = y;
    for (int r = place.from + 1; y == p.size - 1 && r <= p.height; ++r) first[r] = p.size;
  }
  __syncthreads();

  // Column x of two neighbouring rows of the map, resized along x.
  struct Pair {
    double a, step;  // of a + share * step
  };
  const auto value = [&](int i) { return staged ? map[i] : map_value(p, image * elements + i); };
  const auto pair_at = [&](int r, int x) {
    const Place place = place_of(x, x_scale, p.width);
    const int right = place.from + 1 < p.width ? 1 : 0;
    const int below = r + 1 < p.height ? p.width : 0;
    const int i = r * p.width + place.from;
    const double a = blend(value(i), value(i + right), place.share);
    return Pair{a, blend(value(i + below), value(i + below + right), place.share) - a};
  };
  const auto heat = [&](const Pair& pair, int y) { return pair.a + times(share[y], pair.step); };
  const int chunks = (p.size + 31) / 32;

  double low = bits_to_double(uint64_t{0x7ff0} << 48), high = -low, zero = 0;
  for (int task = warp; task < p.height * chunks; task += kWarps) {
    const int r = task / chunks;
    const int x = task % chunks * 32 + lane;
    if (x >= p.size || first[r] == first[r + 1]) continue;
    const Pair pair = pair_at(r, x);
    const double u = heat(pair, first[r]), v = heat(pair, first[r + 1] - 1);
    low = lesser(low, lesser(u, v));
    high = greater(high, greater(u, v));
    zero += times(0.0, pair.step);  // becomes NaN if anything is not finite
  }
  low = reduce_warp(low, lesser);
  high = reduce_warp(high, greater);
  zero = reduce_warp(zero, plus);
  if (lane == 0) partial[warp] = low, partial[kWarps + warp] = high, partial[2 * kWarps + warp] = zero;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) {
      low = lesser(low, partial[w]);
      high = greater(high, partial[kWarps + w]);
      zero += partial[2 * kWarps + w];
    }
    const double range = high - low;
    const bool infers = zero == 0 && range > 0 && range - range == 0;
    partial[0] = low;
    partial[1] = infers ? bound_of(p.threshold, range) : 0;
    partial[2] = infers ? 1 : 0;
  }
  __syncthreads();
  low = partial[0];
  const double bound = partial[1];
  const bool infers = partial[2] != 0;
  __syncthreads();  // `partial` is written again below

  double hit = 0, either = 0;
  for (int task = warp; task < p.height * chunks; task += kWarps) {
    const int r = task / chunks;
    const int x = task % chunks * 32 + lane;
    const int begin = first[r], end = first[r + 1];
    if (x >= p.size || begin == end) continue;
    int from = begin, to = begin;  // the inferred rows
    if (infers) {
      const Pair pair = pair_at(r, x);
      const auto inside = [&](int y) { return heat(pair, y) - low >= bound; };
      const bool top = inside(begin), bottom = inside(end - 1);
      int turn = end;  // the first row that differs from `begin`
      if (top != bottom) {
        int same = begin;
        turn = end - 1;
        while (turn - same > 1) {
          const int middle = (same + turn) / 2;
          if (inside(middle) == top) {
            same = middle;
          } else {
            turn = middle;
          }
        }
      }
      from = top ? begin : turn;
      to = top ? turn : end;
    }
    for (int y = begin; y < end;) {
      int level = 0;
      int until = end;  // the same boxes cover the column up to here
      for (int k = 0; k < p.each; ++k) {
        const int32_t* const box = p.boxes + (image * p.each + k) * 4;
        const int y1 = __ldg(box + 1), y2 = __ldg(box + 3);
        if (x < __ldg(box) || x >= __ldg(box + 2) || y >= y2 || y1 >= y2) continue;
        level += y >= y1;
        const int edge = y >= y1 ? y2 : y1;
        until = until < edge ? until : edge;
      }
      const int above = from > y ? from : y, below = to < until ? to : until;
      const double inferred = below > above ? below - above : 0;
      const double weight = weight_of(level, p.consensus);
      hit += times(weight, inferred);
      either += level == 0 ? inferred : times(weight, until - y);
      y = until;
    }
  }
  hit = reduce_warp(hit, plus);
  either = reduce_warp(either, plus);
  if (lane == 0) partial[warp] = hit, partial[kWarps + warp] = either;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) hit += partial[w], either += partial[kWarps + w];
    p.intersection[image] = hit;
    p.union_[image] = either;
  }
}

}  // namespace

void localization_counts_cuda(const LocalizationCounts& p, int device, void* stream) {
  if (p.batch == 0) return;
  const std::string what = describe(p);
  if (p.batch > INT32_MAX) throw std::runtime_error(what + ": too many images for one launch");
  const DeviceGuard guard(device, what);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(p.batch));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = layout_of(p).bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, localization_counts_kernel, p), what);
}

}  // namespace essl
