// Runs two_views and random_views over odd shapes and alignments, built with the address and undefined-behaviour
// sanitizers: the host code, and the CUDA kernel on host threads (emulated/cuda_runtime.h), both bit by bit against the
// formula in two_views.h. Buffers are heap blocks of exactly the right size, so a read or write one byte off is caught.
//
//   python .ci/check_csrc.py      builds and runs it
#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "two_views.cu"  // the emulated headers come first on the include path

namespace {

using essl::OutType;

struct Case {
  int stored, side, views, batch, window, misalign;
  bool odd_constants;  // instead of ImageNet's
  bool corners = false;  // windows from the first corner of the frames on and back from the last, view 1 mirrored
};

int failures = 0;

uint16_t narrow_bits(float x, OutType type) {
  return type == OutType::kBFloat16 ? __float2bfloat16_rn(x).bits : __float2half_rn(x).bits;
}

void check(const Case& c, OutType type, std::mt19937& random) {
  const size_t item = type == OutType::kFloat32 ? 4 : 2;
  const size_t frame_bytes = size_t(c.stored) * c.side * c.side * 3;
  const size_t count = size_t(c.views) * c.batch * c.window * c.window * 3;
  std::vector<uint8_t> block(c.misalign + frame_bytes);
  block.shrink_to_fit();
  uint8_t* const frames = block.data() + c.misalign;
  ASAN_POISON_MEMORY_REGION(block.data(), c.misalign / 8 * 8);  // whole 8-byte groups are all that can be forbidden
  for (size_t i = 0; i < frame_bytes; ++i) frames[i] = uint8_t(random());
  std::vector<int64_t> rows(c.batch);
  std::vector<int32_t> top(c.views * c.batch), left(c.views * c.batch);
  std::vector<uint8_t> flip(c.views * c.batch);
  for (auto& r : rows) r = random() % c.stored;
  rows.back() = c.stored - 1;  // the very last bytes of `frames` are read
  for (size_t i = 0; i < top.size(); ++i) {
    top[i] = int32_t(random() % (c.side - c.window + 1)), left[i] = int32_t(random() % (c.side - c.window + 1));
    flip[i] = uint8_t(random() % 2);
  }
  top.back() = left.back() = c.side - c.window;
  if (c.batch > 1) rows[0] = top[0] = left[0] = 0;  // ... and the very first
  for (int at = 0; c.corners && at < c.views * c.batch; ++at) {
    const int step = at % c.batch, margin = c.side - c.window;
    top[at] = step % 2 ? margin : 0, left[at] = step % 2 ? margin - step : step, flip[at] = uint8_t(at / c.batch);
  }
  const float imagenet_mean[3] = {0.485f, 0.456f, 0.406f}, imagenet_std[3] = {0.229f, 0.224f, 0.225f};
  const float odd_mean[3] = {0.1f, 0.2f, 0.3f}, odd_std[3] = {1e-3f, 0.7f, 3.0f};
  const float* mean = c.odd_constants ? odd_mean : imagenet_mean;
  const float* std = c.odd_constants ? odd_std : imagenet_std;

  std::vector<uint8_t> want(count * item);
  for (int v = 0; v < c.views; ++v)
    for (int b = 0; b < c.batch; ++b)
      for (int y = 0; y < c.window; ++y)
        for (int x = 0; x < c.window; ++x)
          for (int k = 0; k < 3; ++k) {
            const int at = v * c.batch + b;
            const int64_t from_x = left[at] + (flip[at] ? c.window - 1 - x : x);
            const float byte = frames[((rows[b] * c.side + top[at] + y) * c.side + from_x) * 3 + k];
            volatile float unit = byte / 255.0f;  // volatile: each operation rounds by itself
            volatile float shifted = unit - mean[k];
            const float value = shifted / std[k];
            const size_t i = ((size_t(at) * c.window + y) * c.window + x) * 3 + k;
            const uint16_t narrow = type == OutType::kFloat32 ? 0 : narrow_bits(value, type);
            std::memcpy(&want[i * item], item == 4 ? static_cast<const void*>(&value) : &narrow, item);
          }

  essl::ViewTable table;
  essl::make_view_table(mean, std, type, &table);
  if (!c.odd_constants && type != OutType::kFloat32 && !table.affine) {
    ++failures, std::printf("ImageNet's constants should take the affine path\n");
  }
  // Ways: host on 1 and on 3 threads, CUDA as the table chooses, CUDA with look-ups.
  for (int way = 0; way < (c.corners ? 3 : 4); ++way) {
    std::vector<uint8_t> out(count * item, 0xff);
    const essl::TwoViews p = {frames,   rows.data(), top.data(), left.data(), flip.data(), out.data(),
                              c.stored, c.batch,     c.views,    c.side,      c.window,    type};
    if (way == 3) table.affine = false;
    if (way < 2) {
      essl::two_views_host(p, table, way == 0 ? 1 : 3);
    } else {
      essl::two_views_cuda(p, table, 0, nullptr);
    }
    if (out != want) {
      size_t i = 0;
      while (out[i] == want[i]) ++i;
      ++failures;
      std::printf("%s, frames %d bytes off: %s differs first at element %zu of %zu\n", essl::describe(p).c_str(),
                  c.misalign, way < 2 ? "host" : "CUDA", i / item, count);
    }
  }
  // random_views: the windows are drawn, used, and written down.
  std::vector<int64_t> index(c.batch);
  for (auto& i : index) i = static_cast<int64_t>(random()) << 16;
  const uint64_t seed = static_cast<uint64_t>(random()) << 20;
  const uint32_t epoch = static_cast<uint32_t>(random());
  essl::make_view_table(mean, std, type, &table);
  for (int at = 0; at < c.views * c.batch; ++at) {
    const essl::Window drawn = essl::draw_window(seed, epoch, index[at % c.batch], at / c.batch, c.side - c.window);
    top[at] = drawn.top, left[at] = drawn.left, flip[at] = drawn.flip;
  }
  const essl::TwoViews given = {frames,   rows.data(), top.data(), left.data(), flip.data(), want.data(),
                                c.stored, c.batch,     c.views,    c.side,      c.window,    type};
  essl::two_views_host(given, table, 1);
  for (int way = 0; way < 2; ++way) {
    std::vector<uint8_t> out(count * item, 0xff), flips(flip.size(), 9);
    std::vector<int32_t> tops(top.size(), -1), lefts(left.size(), -1);
    const essl::TwoViews p = {frames,     rows.data(), tops.data(),  lefts.data(), flips.data(),
                              out.data(), c.stored,    c.batch,      c.views,      c.side,
                              c.window,   type,        index.data(), seed,         epoch};
    way == 0 ? essl::two_views_host(p, table, 3) : essl::two_views_cuda(p, table, 0, nullptr);
    if (out != want || tops != top || lefts != left || flips != flip) {
      ++failures, std::printf("%s: %s differs\n", essl::describe(p).c_str(), way == 0 ? "host" : "CUDA");
    }
  }
  ASAN_UNPOISON_MEMORY_REGION(block.data(), c.misalign / 8 * 8);
}

// Bad indices: wrong pixels are fine, a wild read is not (the sanitizer sees it).
void check_wild_indices(OutType type) {
  const int side = 40, window = 32, count = 3 * window * window * 3;
  std::vector<uint8_t> frames(2 * side * side * 3, 7);
  const std::vector<int64_t> rows = {-1, int64_t{1} << 40, 2};
  std::vector<int32_t> top = {INT32_MIN, INT32_MAX, 9}, left = {INT32_MAX, INT32_MIN, -1};
  std::vector<uint8_t> flip = {1, 0, 1};
  const float mean[3] = {0, 0, 0}, std[3] = {1, 1, 1};
  essl::ViewTable table;
  essl::make_view_table(mean, std, type, &table);
  for (bool host : {true, false}) {
    std::vector<float> wide(count);
    std::vector<uint16_t> narrow(count);
    void* const out = type == OutType::kFloat32 ? static_cast<void*>(wide.data()) : narrow.data();
    const essl::TwoViews p = {frames.data(), rows.data(), top.data(), left.data(), flip.data(), out,
                              2,             3,           1,          side,        window,      type};
    host ? essl::two_views_host(p, table, 2) : essl::two_views_cuda(p, table, 0, nullptr);
    for (int i = 0; i < count; ++i) {
      failures += type == OutType::kFloat32 ? wide[i] != 7.0f / 255.0f : narrow[i] != narrow_bits(7.0f / 255.0f, type);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const Case cases[] = {
      {3, 40, 2, 2, 32, 0, false},  {2, 33, 2, 2, 32, 1, false},   {1, 8, 1, 1, 8, 3, false},
      {2, 47, 2, 1, 24, 13, false}, {3, 17, 3, 2, 17, 5, false},   {1, 1, 1, 1, 1, 2, false},
      {2, 31, 2, 3, 11, 9, true},   {2, 31, 2, 9, 11, 9, false},   {2, 23, 1, 9, 3, 15, false},
      {2, 101, 1, 1, 96, 15, true}, {1, 246, 2, 1, 224, 9, false},  {2, 260, 1, 2, 256, 7, false},
      {2, 266, 2, 1, 264, 1, false},
  };
  for (const Case& c : cases)
    for (OutType type : {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16}) check(c, type, random);
  // rows_kernel: at every place modulo 16, with pitches of 96, 120, 123 and 864 bytes; all sizes; all base addresses.
  const Case corners[] = {{1, 32, 2, 16, 8, 0, false, true},
                          {1, 40, 2, 16, 16, 5, false, true},
                          {1, 41, 2, 16, 24, 11, false, true},
                          {1, 288, 2, 2, 224, 8, false, true}};
  for (const Case& c : corners)
    for (OutType type : {OutType::kBFloat16, OutType::kFloat16}) check(c, type, random);
  for (int window = 8; window <= 256; window += window < 96 ? 8 : 40) {
    const OutType type = window / 8 % 2 ? OutType::kBFloat16 : OutType::kFloat16;
    check({1, window + window / 8 % 4, 2, 1, window, window / 8 % 16, false, true}, type, random);
  }
  for (int misalign = 0; misalign < 16; ++misalign) {
    check({1, 16, 2, 1, 16, misalign, false, true}, misalign % 2 ? OutType::kBFloat16 : OutType::kFloat16, random);
  }
  for (OutType type : {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16}) check_wild_indices(type);
  if (failures) return std::printf("two_views: %d checks failed\n", failures), EXIT_FAILURE;
  return std::printf("two_views: host code and CUDA kernel (on host threads) equal the formula, bit for bit\n"),
         EXIT_SUCCESS;
}
