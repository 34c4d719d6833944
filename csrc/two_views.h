// two_views: the random crops of a batch, cut out of stored frames, mirrored if wanted, and normalised: all views in
// one pass.
//
//   frames  uint8  (N, S, S, 3)   NHWC, contiguous, any address alignment
//   rows    int64  (B,)           the frame of each sample
//   top     int32  (V, B)         first row of the window;    0 <= top,  top  + W <= S
//   left    int32  (V, B)         first column of the window; 0 <= left, left + W <= S
//   flip    uint8  (V, B)         not 0: the window is mirrored left to right
//   index   int64  (B,)           only for random_views, where top, left and flip are drawn (view_params.h) and written
//   out     T      (V, B, W, W, 3) in memory (channels_last (V, B, 3, W, W)), contiguous
//
//   out[v, b, y, x, c] = round_T((frames[rows[b], top + y, left + x', c] / 255 - mean[c]) / std[c])
//
// x' = W - 1 - x if flipped, else x. The arithmetic is float32 with each operation rounded separately (true divisions,
// no fused multiply-add), then rounded to nearest even if T is narrower. There are only 3 * 256 possible results, so
// these operations fill a table of them, and every path below equals the table to the bit by construction.
//
// Indices are brought into range before anything is read, so that a wrong index gives wrong pixels but never reads
// other memory. The caller checks them where it can.
//
// Bytes per sample with V = 2, S = 246, W = 224: at most 181,548 read (the two windows overlap; the second comes from
// the cache) and 602,112 written in 16 bits, 1,204,224 in 32 bits.
#pragma once

#include <cstdint>
#include <string>

#include "view_params.h"

#if defined(__CUDACC__)
#define ESSL_HD __host__ __device__
#else
#define ESSL_HD
#endif

namespace essl {

enum class OutType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int kMaxWindow = 4064;  // W; 8 rows and the table must fit into 99 KiB of shared memory (sm_86, 89, 120)

struct TwoViews {
  const uint8_t* frames;  // (N, S, S, 3)
  const int64_t* rows;    // (B,)
  int32_t* top;           // (V, B)
  int32_t* left;          // (V, B)
  uint8_t* flip;          // (V, B)
  void* out;              // (V, B, W, W, 3)
  int64_t stored;         // N >= 1
  int64_t batch;          // B >= 0
  int32_t views;          // V >= 1
  int32_t side;           // S >= W
  int32_t window;         // 1 <= W <= kMaxWindow
  OutType type;
  const int64_t* index = nullptr;  // (B,) if the windows are drawn here, else null
  uint64_t seed = 0;
  uint32_t epoch = 0;
};

// Every possible output value. Index: channel * 256 + byte.
struct ViewTable {
  float value[768];      // the exact float32 result
  uint16_t narrow[768];  // its bits in the 16-bit output type; unset for float32
  // If `affine` (never for float32), round(fma(M + byte, scale, bias)) equals `narrow` for all 768 entries. M + byte is
  // the float of bits magic | byte << 8; M is at least 2^15, and such that -mean / std - M scale is nearly a float.
  float scale[3];
  float bias[3];
  uint32_t magic[3];
  bool affine;
  float mean[3];
  float std[3];
  bool exact;  // `value_of` equals `value` for all 768 entries
};

// (byte / 255 - mean) / std in float32. Each division is a multiplication and one correction, which takes a vector unit
// a third of the time of a division.
float value_of(const ViewTable& table, int channel, float byte);

void make_view_table(const float mean[3], const float std[3], OutType type, ViewTable* table);

// The window of image view * B + sample, as given.
ESSL_HD inline Window given_window(const TwoViews& p, int64_t image) {
  return {p.top[image], p.left[image], p.flip[image] != 0};
}

// First byte of a sample's window in `frames`, with indices brought into range.
ESSL_HD inline int64_t window_start(const TwoViews& p, int64_t sample, const Window& window) {
  const int64_t limit = p.side - p.window;
  int64_t row = p.rows[sample];
  int64_t top = window.top;
  int64_t left = window.left;
  row = row < 0 ? 0 : (row < p.stored ? row : p.stored - 1);
  top = top < 0 ? 0 : (top < limit ? top : limit);
  left = left < 0 ? 0 : (left < limit ? left : limit);
  return ((row * p.side + top) * p.side + left) * 3;
}

// For error messages: the op and its shapes.
std::string describe(const TwoViews& p);

// On host memory. Deterministic, and the same for every `threads` >= 1.
void two_views_host(const TwoViews& p, const ViewTable& table, int threads);

// On memory of `device`: enqueues one launch on `stream` (a cudaStream_t) and does not wait. Throws std::runtime_error
// with the op, the shapes and CUDA's message.
void two_views_cuda(const TwoViews& p, const ViewTable& table, int device, void* stream);

}  // namespace essl
