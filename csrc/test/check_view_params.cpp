// Runs view_params and view_boxes, built with the address and undefined-behaviour sanitizers: the host code, and the
// CUDA kernels on host threads (emulated/cuda_runtime.h), against known answers and the formulas in view_params.h.
// Buffers are heap blocks of exactly the right size, so a read or write one element off is caught.
//
//   python .ci/check_csrc.py      builds and runs it
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "view_params.cu"  // the emulated headers come first on the include path

namespace {

int failures = 0;

void expect(bool truth, const char* what) {
  if (!truth) ++failures, std::printf("%s\n", what);
}

// The known answers that the authors of Philox publish.
void check_philox() {
  const auto is = [](const essl::Words& have, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
    expect(have.w[0] == w0 && have.w[1] == w1 && have.w[2] == w2 && have.w[3] == w3, "philox: another answer");
  };
  const uint32_t ones = 0xffffffffu;
  is(essl::philox(0, 0, 0, 0, 0, 0), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u);
  is(essl::philox(ones, ones, ones, ones, ones, ones), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu);
  is(essl::philox(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u), 0xd16cfe09u,
     0x94fdccebu, 0x5001e420u, 0x24126ea1u);
}

void check_params(int batch, int views, int32_t margin, std::mt19937_64& random) {
  std::vector<int64_t> index(batch);
  for (auto& i : index) i = static_cast<int64_t>(random());
  const uint64_t seed = random();
  const uint32_t epoch = static_cast<uint32_t>(random());
  for (int way = 0; way < 2; ++way) {
    std::vector<int32_t> top(batch * views, -1), left(batch * views, -1);
    std::vector<uint8_t> flip(batch * views, 7);
    const essl::ViewParams p = {index.data(), top.data(), left.data(), flip.data(), batch, views, margin, seed, epoch};
    way == 0 ? essl::view_params_host(p) : essl::view_params_cuda(p, 0, nullptr);
    for (int at = 0; at < batch * views; ++at) {
      const uint64_t row = static_cast<uint64_t>(index[at % batch]);
      const auto w =
          essl::philox(uint32_t(row), uint32_t(row >> 32), at / batch, epoch, uint32_t(seed), uint32_t(seed >> 32));
      const long double unit = 4294967296.0L;
      expect(top[at] == static_cast<int32_t>(std::floor(w.w[0] / unit * (margin + 1.0L))), "view_params: top");
      expect(left[at] == static_cast<int32_t>(std::floor(w.w[1] / unit * (margin + 1.0L))), "view_params: left");
      expect(flip[at] == (w.w[2] >= 0x80000000u), "view_params: flip");
    }
  }
}

// reach: how far outside their places coordinates and corners lie; negative: anywhere.
void check_boxes(int batch, int each, int views, int side, int size, int reach, std::mt19937_64& random) {
  const auto draw = [&](int most) {
    return static_cast<int32_t>(reach < 0 ? random() : random() % (most + 1 + 2 * reach) - reach);
  };
  std::vector<int32_t> boxes(batch * each * 4), top(batch * views), left(batch * views);
  std::vector<uint8_t> flip(batch * views);
  for (auto& edge : boxes) edge = draw(size);
  for (size_t i = 0; i < top.size(); ++i) {
    top[i] = draw(side - size), left[i] = draw(side - size), flip[i] = static_cast<uint8_t>(random() % 3);
  }
  for (int way = 0; way < 2; ++way) {
    std::vector<int32_t> out(batch * each * views * 4, -1);
    const essl::ViewBoxes p = {boxes.data(), top.data(), left.data(), flip.data(), out.data(),
                               batch,        each,       views,       side,        size};
    way == 0 ? essl::view_boxes_host(p) : essl::view_boxes_cuda(p, 0, nullptr);
    for (int v = 0; v < views; ++v)
      for (int b = 0; b < batch; ++b)
        for (int k = 0; k < each; ++k) {
          const int image = v * batch + b;
          const int32_t* const box = &boxes[(b * each + k) * 4];
          int32_t want[4];
          for (int i = 0; i < 4; ++i) {
            const long double edge = std::floor(static_cast<long double>(box[i]) * side / size + 0.5L);
            const long double moved = edge - (i % 2 ? top[image] : left[image]);
            want[i] = static_cast<int32_t>(std::fmin(std::fmax(moved, 0.0L), size));
          }
          if (flip[image]) {
            const int32_t x1 = want[0];
            want[0] = size - want[2], want[2] = size - x1;
          }
          for (int i = 0; i < 4; ++i) expect(out[(image * each + k) * 4 + i] == want[i], "view_boxes: an edge");
        }
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(1);
  check_philox();
  check_params(3, 2, 22, random);
  check_params(129, 3, 0, random);
  check_params(7, 1, INT32_MAX, random);
  check_params(0, 2, 5, random);
  for (const int reach : {0, 300, -1}) {
    check_boxes(5, 4, 2, 246, 224, reach, random);
    check_boxes(43, 1, 3, 37, 37, reach, random);
    check_boxes(2, 7, 1, 301, 7, reach, random);
    check_boxes(3, 0, 2, 246, 224, reach, random);
  }
  if (failures) return std::printf("view_params, view_boxes: %d checks failed\n", failures), EXIT_FAILURE;
  return std::printf("view_params, view_boxes: host code and CUDA kernels (on host threads) equal the formulas\n"),
         EXIT_SUCCESS;
}
