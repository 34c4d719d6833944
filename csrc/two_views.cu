// two_views on the GPU. The contract is in two_views.h.
//
// This is a copy that widens its elements, so memory is the limit and the goal is the copy bandwidth. There are two
// kernels. `rows_kernel` is the recipe's: 16-bit outputs, constants for which a multiply-add is exact, at most 256
// pixels a row and a multiple of 8. A warp makes four rows, whose bytes it asks for all at once. Then, row by row:
//
//   1. The aligned 16-byte words that cover the row go to shared memory.
//   2. A lane takes 8 pixels: 24 bytes, so that the channel of each is known when the kernel is compiled. It shifts them
//      into place, and converts them in order, or from the last pixel to the first if the view is flipped.
//   3. Its 48 bytes of output go back to shared memory (a stride that no two lanes' banks share), and the warp stores
//      them as neighbouring 16-byte pieces.
//
// As compiled for sm_90, a row takes about 220 instructions (with its quarter of the prologue). The four schedulers of
// each of an H200's 132 multiprocessors could issue those for 8 TB/s at 1.75 GHz, so memory is the limit, by estimate:
// it was not measured on a GPU. .ci/check_csrc.py holds the number of instructions.
//
// `two_views_kernel` is for all other cases. It takes about 530 instructions a row. One warp makes one row:
//
//   1. The row's 3 W bytes start at any address. The aligned 16-byte words that cover them are copied to shared memory.
//   2. Each lane makes 16 bytes of output at a time (8 or 4 elements): it reads the aligned words that hold their
//      bytes, shifts the bytes into place in registers, reverses the pixels if the view is flipped, and stores once.
//
// Lanes store neighbouring 16-byte pieces, so each store instruction of a warp fills complete 32-byte sectors. Warps
// share nothing. So the only block-wide barrier is the one after the table is loaded and the window is drawn, where
// there is one or the other. One thread draws the window for the block: in every warp, its 100 instructions would add a
// fifth, by estimate.
//
// Bytes become values in one of two ways. For 16-bit outputs: byte -> float -> one fused multiply-add -> round, about 4
// instructions per element. It is used only if the host has found it equal to the exact table for all 768 entries (true
// for the ImageNet constants). Otherwise: the table, in shared memory. By estimate, look-ups at random addresses reach
// about 9 elements per clock and SM. At its copy bandwidth an H200 needs 7 in 16 bits, and 4 in 32 bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "common.cuh"
#include "two_views.h"

namespace essl {
namespace {

constexpr int kWarps = 8;  // output rows per block
constexpr int kPad = 16;   // bytes before and after a row in shared memory, which a lane may read (and ignore)

__host__ __device__ constexpr int staged_pitch(int window) { return kPad + (3 * window + 15 + 15) / 16 * 16 + kPad; }

struct Affine {
  float scale[3];
  float bias[3];
};
struct Table32 {
  uint32_t entry[768];
};
struct Table16 {
  uint32_t entry[384];  // two entries per word
};

__device__ __forceinline__ float byte_to_float(uint32_t word, int byte) {
  // 0x4B0000uu is the float 2^23 + uu: a permute and an exact subtraction instead of a conversion at a quarter the
  // rate.
  return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u + byte)) - 8388608.0f;
}

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// word0, word1: the bytes of the output elements, in order; channel: that of the first element.
template <class T>
__device__ __forceinline__ uint4 convert(const Affine& how, const void*, uint32_t word0, uint32_t word1, int channel) {
  float scale[3], bias[3];  // of elements 0, 1, 2 (and 3, 4, 5, ...)
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int c = channel + i < 3 ? channel + i : channel + i - 3;
    scale[i] = c == 0 ? how.scale[0] : (c == 1 ? how.scale[1] : how.scale[2]);
    bias[i] = c == 0 ? how.bias[0] : (c == 1 ? how.bias[1] : how.bias[2]);
  }
  float value[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    value[i] = __fmaf_rn(byte_to_float(i < 4 ? word0 : word1, i % 4), scale[i % 3], bias[i % 3]);
  }
  return make_uint4(pack(value[0], value[1], T{}), pack(value[2], value[3], T{}), pack(value[4], value[5], T{}),
                    pack(value[6], value[7], T{}));
}

template <class T>
__device__ __forceinline__ uint4 convert(const Table16&, const void* table, uint32_t word0, uint32_t word1,
                                         int channel) {
  const uint16_t* entries = static_cast<const uint16_t*>(table);
  uint32_t piece[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int c = channel + i % 3 < 3 ? channel + i % 3 : channel + i % 3 - 3;
    const uint32_t byte = ((i < 4 ? word0 : word1) >> (8 * (i % 4))) & 255u;
    piece[i / 2] |= static_cast<uint32_t>(entries[c * 256 + byte]) << (16 * (i % 2));
  }
  return make_uint4(piece[0], piece[1], piece[2], piece[3]);
}

template <class T>
__device__ __forceinline__ uint4 convert(const Table32&, const void* table, uint32_t word0, uint32_t, int channel) {
  const uint32_t* entries = static_cast<const uint32_t*>(table);
  uint32_t piece[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int c = channel + i % 3 < 3 ? channel + i % 3 : channel + i % 3 - 3;
    piece[i] = entries[c * 256 + ((word0 >> (8 * i)) & 255u)];
  }
  return make_uint4(piece[0], piece[1], piece[2], piece[3]);
}

// An aligned 16-byte word. Only the bytes inside [begin, end) are read; the others are 0.
__device__ __forceinline__ uint4 load_word(uintptr_t address, uintptr_t begin, uintptr_t end) {
  if (address >= begin && address + 16 <= end) return __ldg(reinterpret_cast<const uint4*>(address));
  uint32_t piece[4] = {0, 0, 0, 0};  // the tensor's first or last word
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (address + i >= begin && address + i < end) {
      piece[i / 4] |= static_cast<uint32_t>(*reinterpret_cast<const uint8_t*>(address + i)) << (8 * (i % 4));
    }
  }
  return make_uint4(piece[0], piece[1], piece[2], piece[3]);
}

// Order of blocks: V innermost (both windows of a frame are read at about the same time, so once from DRAM), then bands
// of kWarps rows, then B. Shared memory: kWarps rows of staged_pitch(W) bytes, then the table, then the window if it is
// drawn.
template <class T, class How>
__global__ void __launch_bounds__(32 * kWarps) two_views_kernel(const TwoViews p, const How how, const bool aligned) {
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  constexpr bool kTable = !std::is_same_v<How, Affine>;
  const int bands = (p.window + kWarps - 1) / kWarps;
  const int64_t block = blockIdx.x;
  const int64_t view = block % p.views;
  const int64_t band = block / p.views % bands;
  const int64_t sample = block / p.views / bands;
  const int64_t image = view * p.batch + sample;

  uint8_t* const staged = dynamic_shared();
  const int pitch = staged_pitch(p.window);
  uint8_t* const table = staged + kWarps * pitch;
  Window* const drawn = reinterpret_cast<Window*>(table + (kTable ? sizeof(How) : 0));
  if constexpr (kTable) {
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(How) / 4); i += 32 * kWarps) {
      reinterpret_cast<uint32_t*>(table)[i] = how.entry[i];
    }
  }
  if (p.index && threadIdx.x == 0) {
    *drawn = draw_window(p.seed, p.epoch, p.index[sample], static_cast<uint32_t>(view), p.side - p.window);
    if (band == 0) p.top[image] = drawn->top, p.left[image] = drawn->left, p.flip[image] = drawn->flip;
  }
  if (kTable || p.index) __syncthreads();
  const Window window = p.index ? *drawn : given_window(p, image);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t y = band * kWarps + warp;
  if (y >= p.window) return;

  const uintptr_t begin = reinterpret_cast<uintptr_t>(p.frames);
  const uintptr_t end = begin + p.stored * p.side * p.side * 3;
  const uintptr_t first = begin + window_start(p, sample, window) + y * p.side * 3;
  const int shift = static_cast<int>(first % 16);
  const int row_bytes = 3 * p.window;
  uint8_t* const row = staged + warp * pitch + kPad;  // the window starts at row + shift
  for (int i = lane; 16 * i < shift + row_bytes; i += 32) {
    *reinterpret_cast<uint4*>(row + 16 * i) = load_word(first - shift + 16 * i, begin, end);
  }
  __syncwarp();

  const bool flip = window.flip;
  T* const out = static_cast<T*>(p.out) + (image * p.window + y) * row_bytes;
  for (int element = kElements * lane; element < row_bytes; element += 32 * kElements) {
    const int pixel = element / 3;
    const int channel = element - 3 * pixel;
    // 8 bytes from `element` on, or the 12 bytes of the four pixels that hold the mirrored piece. They may start up to
    // 9 bytes before the row, hence kPad, from which `from` counts.
    const int from = kPad + shift + (flip ? 3 * (p.window - 4 - pixel) : element);
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(row - kPad) + from / 4;
    const uint32_t offset = 8u * (from % 4);
    const uint32_t a = __funnelshift_r(words[0], words[1], offset);
    const uint32_t b = __funnelshift_r(words[1], words[2], offset);
    uint32_t word0 = a, word1 = b;
    if (flip) {
      const uint32_t c = __funnelshift_r(words[2], words[3], offset);
      // Pixels 3 2 1 0 of bytes 0..11 are 9 10 11 6 | 7 8 3 4 | 5 0 1 2. Then the first `channel` bytes are dropped.
      const uint32_t r0 = __byte_perm(b, c, 0x2765);
      const uint32_t r1 = __byte_perm(__byte_perm(a, b, 0x0043), __byte_perm(b, c, 0x0043), 0x1054);
      const uint32_t r2 = __byte_perm(a, b, 0x2105);
      word0 = __funnelshift_r(r0, r1, 8u * channel);
      word1 = __funnelshift_r(r1, r2, 8u * channel);
    }
    const uint4 piece = convert<T>(how, table, word0, word1, channel);
    if (aligned) {
      *reinterpret_cast<uint4*>(out + element) = piece;
      continue;
    }
    // Rows that do not end on 16 bytes (W not a multiple of 8, or of 4 in float32): element by element.
    const uint32_t parts[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (element + i >= row_bytes) break;
      if constexpr (sizeof(T) == 4) {
        reinterpret_cast<uint32_t*>(out)[element + i] = parts[i];
      } else {
        reinterpret_cast<uint16_t*>(out)[element + i] = static_cast<uint16_t>(parts[i / 2] >> (16 * (i % 2)));
      }
    }
  }
}

constexpr int kRows = 4;         // output rows per warp of rows_kernel
constexpr int kMostGroups = 32;  // of 8 pixels in a row, one a lane
constexpr int kStaged = 16 * ((15 + 24 * kMostGroups + 15) / 16);  // bytes of a row in shared memory
constexpr int kWarpShared = kStaged + 48 * kMostGroups;
constexpr unsigned kMostSamples = 65535;  // of a launch: CUDA's limit of a grid's z

// 24 elements of output, 2 to a word, of 24 bytes: in order, or with the 8 pixels reversed.
template <class T, bool kFlip>
__device__ __forceinline__ void convert_group(const Affine& how, const uint32_t (&bytes)[6], uint32_t (&out)[12]) {
#pragma unroll
  for (int i = 0; i < 12; ++i) {
    float value[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int element = 2 * i + j, channel = element % 3;
      const int from = kFlip ? 3 * (7 - element / 3) + channel : element;
      value[j] = __fmaf_rn(byte_to_float(bytes[from / 4], from % 4), how.scale[channel], how.bias[channel]);
    }
    out[i] = pack(value[0], value[1], T{});
  }
}

// Grid: bands of kWarps * kRows rows, views, samples from `first_sample` on. Shared memory: kWarpShared bytes a warp,
// then the window if it is drawn.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    rows_kernel(const TwoViews p, const Affine how, const int64_t first_sample) {
  const int64_t sample = first_sample + blockIdx.z;
  const int64_t image = static_cast<int64_t>(blockIdx.y) * p.batch + sample;
  uint8_t* const shared = dynamic_shared();
  Window* const drawn = reinterpret_cast<Window*>(shared + kWarps * kWarpShared);
  if (p.index) {
    if (threadIdx.x == 0) {
      *drawn = draw_window(p.seed, p.epoch, p.index[sample], blockIdx.y, p.side - p.window);
      if (blockIdx.x == 0) p.top[image] = drawn->top, p.left[image] = drawn->left, p.flip[image] = drawn->flip;
    }
    __syncthreads();
  }
  const Window window = p.index ? *drawn : given_window(p, image);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int y0 = (static_cast<int>(blockIdx.x) * kWarps + warp) * kRows;
  if (y0 >= p.window) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p.frames);
  const uintptr_t end = begin + p.stored * p.side * p.side * 3;
  const int pitch = 3 * p.side;
  const uintptr_t first = begin + window_start(p, sample, window) + static_cast<int64_t>(y0) * pitch;
  const int row_bytes = 3 * p.window;
  // All rows are there, since p.window is a multiple of 8. Only the tensor's first and last word need care.
  const bool inside = first / 16 * 16 >= begin && first + (kRows - 1) * pitch + row_bytes + 15 <= end;

  uint4 words[kRows][2];
  if (inside) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uintptr_t row = first + r * pitch;
      const int bytes = static_cast<int>(row % 16) + row_bytes;
      const uint4* const from = reinterpret_cast<const uint4*>(row / 16 * 16) + lane;
      if (16 * lane < bytes) words[r][0] = __ldg(from);
      if (16 * (lane + 32) < bytes) words[r][1] = __ldg(from + 32);
    }
  }

  uint8_t* const staged = shared + warp * kWarpShared;
  uint4* const pieces = reinterpret_cast<uint4*>(staged + kStaged);
  const int groups = p.window / 8;
  const int group = window.flip ? groups - 1 - lane : lane;  // that the lane reads
  uint4* out = reinterpret_cast<uint4*>(static_cast<T*>(p.out) + (image * p.window + y0) * row_bytes);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uintptr_t row = first + r * pitch;
    const int shift = static_cast<int>(row % 16);
    uint4* const words_of_row = reinterpret_cast<uint4*>(staged) + lane;
    if (inside) {
      if (16 * lane < shift + row_bytes) words_of_row[0] = words[r][0];
      if (16 * (lane + 32) < shift + row_bytes) words_of_row[32] = words[r][1];
    } else {
      for (int i = 16 * lane; i < shift + row_bytes; i += 16 * 32) {
        *reinterpret_cast<uint4*>(staged + i) = load_word(row - shift + i, begin, end);
      }
    }
    __syncwarp();
    if (lane < groups) {
      const uint32_t* const from = reinterpret_cast<const uint32_t*>(staged + shift / 4 * 4 + 24 * group);
      uint32_t word[7], bytes[6], made[12];
#pragma unroll
      for (int i = 0; i < 6; ++i) word[i] = from[i];
      word[6] = shift % 4 ? from[6] : 0;  // without a shift it may lie after the row
#pragma unroll
      for (int i = 0; i < 6; ++i) bytes[i] = __funnelshift_r(word[i], word[i + 1], 8u * (shift % 4));
      if (window.flip) {
        convert_group<T, true>(how, bytes, made);
      } else {
        convert_group<T, false>(how, bytes, made);
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        pieces[3 * lane + i] = make_uint4(made[4 * i], made[4 * i + 1], made[4 * i + 2], made[4 * i + 3]);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (lane + 32 * i < 3 * groups) out[lane + 32 * i] = pieces[lane + 32 * i];
    }
    out += 3 * groups;
  }
}

template <class T>
void launch_rows(const TwoViews& p, const Affine& how, cudaStream_t stream, const std::string& what) {
  if (p.views > static_cast<int>(kMostSamples)) throw std::runtime_error(what + ": too many views for one launch");
  for (int64_t sample = 0; sample < p.batch; sample += kMostSamples) {
    const int64_t samples = p.batch - sample < kMostSamples ? p.batch - sample : kMostSamples;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>((p.window + kWarps * kRows - 1) / (kWarps * kRows)),
                          static_cast<unsigned>(p.views), static_cast<unsigned>(samples));
    config.blockDim = dim3(32 * kWarps);
    config.dynamicSmemBytes = kWarps * kWarpShared + (p.index ? sizeof(Window) : 0);
    config.stream = stream;
    check_cuda(cudaLaunchKernelEx(&config, rows_kernel<T>, p, how, sample), what);
  }
}

template <class T, class How>
void launch(const TwoViews& p, const How& how, cudaStream_t stream, const std::string& what) {
  const int64_t blocks = p.batch * p.views * ((p.window + kWarps - 1) / kWarps);
  if (blocks > INT32_MAX) throw std::runtime_error(what + ": too many rows for one launch");
  const size_t table_bytes = std::is_same_v<How, Affine> ? 0 : sizeof(How);
  const size_t window_bytes = p.index ? sizeof(Window) : 0;
  const size_t shared = static_cast<size_t>(kWarps) * staged_pitch(p.window) + table_bytes + window_bytes;
  const bool aligned = 3 * p.window * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  const auto kernel = two_views_kernel<T, How>;
  if (shared > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               what);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(32 * kWarps);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p, how, aligned), what);
}

template <class T>
void launch_narrow(const TwoViews& p, const ViewTable& table, cudaStream_t stream, const std::string& what) {
  if (table.affine) {
    Affine how;
    for (int c = 0; c < 3; ++c) how.scale[c] = table.scale[c], how.bias[c] = table.bias[c];
    const bool whole = p.window % 8 == 0 && p.window <= 8 * kMostGroups;
    if (whole && reinterpret_cast<uintptr_t>(p.out) % 16 == 0) return launch_rows<T>(p, how, stream, what);
    return launch<T>(p, how, stream, what);
  }
  Table16 how;
  for (int i = 0; i < 384; ++i)
    how.entry[i] = table.narrow[2 * i] | static_cast<uint32_t>(table.narrow[2 * i + 1]) << 16;
  launch<T>(p, how, stream, what);
}

}  // namespace

void two_views_cuda(const TwoViews& p, const ViewTable& table, int device, void* stream_pointer) {
  if (p.batch == 0) return;
  const std::string what = describe(p);
  const DeviceGuard guard(device, what);
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.type == OutType::kBFloat16) return launch_narrow<__nv_bfloat16>(p, table, stream, what);
  if (p.type == OutType::kFloat16) return launch_narrow<__half>(p, table, stream, what);
  Table32 how;
  static_assert(sizeof how.entry == sizeof table.value, "the table goes over bit by bit");
  std::memcpy(how.entry, table.value, sizeof how.entry);
  launch<float>(p, how, stream, what);
}

}  // namespace essl
