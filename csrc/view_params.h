// view_params draws the crop offsets and flips of training views. view_boxes moves boxes with the views.
//
//   index  int64  (B,)          the pair's row in the manifest
//   top    int32  (V, B)        in [0, margin]
//   left   int32  (V, B)        in [0, margin]
//   flip   uint8  (V, B)        0 or 1
//   boxes  int32  (B, K, 4)     x1 y1 x2 y2, half-open, on the W x W grid
//   out    int32  (V, B, K, 4)  the same on the view's grid, clamped to it; zero area if nothing is left of the box
//
// A view is a pure function of (seed, epoch, index, view): the counter-based generator Philox 4x32-10
// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter of four words and a key of two
// words to four random words. It uses only integer products, so that every device draws the same words, and there is no
// state to save.
//
//   counter = (index low, index high, view, epoch), key = (seed low, seed high) -> words w0, w1, w2, w3
//   top = w0 (margin + 1) / 2^32,  left = w1 (margin + 1) / 2^32,  flip = w2 / 2^31     (rounded down)
//
// Boxes: a coordinate c of the W grid becomes the pixel edge c S / W of the stored S x S frame, rounded to the nearest
// (half up), minus the window's corner, and mirrored if the view is.
//
// There are few bytes (64 pairs, two views: 1.7 KB of parameters, 2 KB per box): the cost is the launches. So each op
// is one launch, and random_views (two_views.h) draws inside the kernel that cuts the views.
#pragma once

#include <cstdint>
#include <string>

#if defined(__CUDACC__)
#define ESSL_HD __host__ __device__
#else
#define ESSL_HD
#endif

namespace essl {

struct Words {
  uint32_t w[4];
};

// Philox 4x32-10.
ESSL_HD inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0;
    const uint64_t b = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

struct Window {
  int32_t top, left;
  bool flip;
};

ESSL_HD inline Window draw_window(uint64_t seed, uint32_t epoch, int64_t index, uint32_t view, int32_t margin) {
  const uint64_t row = static_cast<uint64_t>(index);
  const Words drawn = philox(static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), view, epoch,
                             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t choices = static_cast<uint64_t>(margin) + 1;
  return {static_cast<int32_t>(drawn.w[0] * choices >> 32), static_cast<int32_t>(drawn.w[1] * choices >> 32),
          drawn.w[2] >> 31 != 0};
}

struct ViewParams {
  const int64_t* index;  // (B,)
  int32_t* top;          // (V, B)
  int32_t* left;         // (V, B)
  uint8_t* flip;         // (V, B)
  int64_t batch;         // B >= 0
  int32_t views;         // V >= 1
  int32_t margin;        // >= 0
  uint64_t seed;
  uint32_t epoch;
};

// Draws and writes number `at` of the V B views.
ESSL_HD inline void write_params(const ViewParams& p, int64_t at) {
  const uint32_t view = static_cast<uint32_t>(at / p.batch);
  const Window window = draw_window(p.seed, p.epoch, p.index[at % p.batch], view, p.margin);
  p.top[at] = window.top;
  p.left[at] = window.left;
  p.flip[at] = window.flip;
}

struct ViewBoxes {
  const int32_t* boxes;  // (B, K, 4)
  const int32_t* top;    // (V, B)
  const int32_t* left;   // (V, B)
  const uint8_t* flip;   // (V, B)
  int32_t* out;          // (V, B, K, 4)
  int64_t batch;         // B >= 0
  int64_t each;          // K >= 0
  int32_t views;         // V >= 1
  int32_t side;          // S >= 1
  int32_t size;          // W >= 1
};

// Writes number `at` of the V B K boxes.
ESSL_HD inline void write_box(const ViewBoxes& p, int64_t at) {
  const int64_t image = at / p.each;  // view * B + sample
  const int32_t* const box = p.boxes + (image % p.batch * p.each + at % p.each) * 4;
  const int64_t corner[2] = {p.left[image], p.top[image]};
  int32_t edge[4];
  for (int i = 0; i < 4; ++i) {
    const int64_t above = 2 * int64_t{p.side} * box[i] + p.size, below = 2 * int64_t{p.size};
    const int64_t stored = above / below - (above % below < 0);  // rounded down
    const int64_t moved = stored - corner[i % 2];
    edge[i] = static_cast<int32_t>(moved < 0 ? 0 : (moved < p.size ? moved : p.size));
  }
  const bool flip = p.flip[image] != 0;
  int32_t* const out = p.out + 4 * at;
  out[0] = flip ? p.size - edge[2] : edge[0];
  out[1] = edge[1];
  out[2] = flip ? p.size - edge[0] : edge[2];
  out[3] = edge[3];
}

// For error messages: the op and its shapes.
std::string describe(const ViewParams& p);
std::string describe(const ViewBoxes& p);

// On host memory.
void view_params_host(const ViewParams& p);
void view_boxes_host(const ViewBoxes& p);

// On memory of `device`: each enqueues one launch on `stream` (a cudaStream_t) and does not wait. Throws
// std::runtime_error with the op, the shapes and CUDA's message.
void view_params_cuda(const ViewParams& p, int device, void* stream);
void view_boxes_cuda(const ViewBoxes& p, int device, void* stream);

}  // namespace essl
