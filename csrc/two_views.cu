// two_views on the GPU. The contract is in two_views.h.
//
// This is a copy that widens its elements, so memory is the limit and the goal is the copy bandwidth. There are two
// kernels. `rows_kernel` is the recipe's: 16-bit outputs, constants for which a multiply-add is exact, at most 256
// pixels a row and a multiple of 8. A row of output consists of pieces of 16 bytes, 8 elements. A warp makes eight
// rows, and nothing goes through shared memory:
//
//   1. Lane i makes pieces i, i + 32 and i + 64 of each row, so that a warp stores neighbouring pieces. Piece i begins
//      with channel 2 i % 3. A lane takes the constants of the channels in the order in which its first piece needs
//      them. Those of the second piece begin one channel later, those of the third two.
//   2. A piece's 8 source bytes start at any address. The lane reads the three aligned 4-byte words that hold them, and
//      shifts them into place. In a flipped view, pixels are mirrored and channels are not. Compared with a mirror
//      image of the bytes, each byte is at most 2 places off. So piece i of a row of W pixels lies in the 12 bytes from
//      byte 3 W - 10 - 8 i on: four words, which two permutes put in order. The words of a piece share their 32-byte
//      sectors with those of the lanes beside it. They come from L1 after the first touch.
//   3. A permute puts a byte into a float, a fused multiply-add makes the value, and half an instruction packs it.
//
// As compiled for sm_90 a row takes 99 instructions, or 112 if flipped (78 and 90 of them are the three steps). For
// sm_100, which multiplies two floats at once, it takes 88 or 102. .ci/check_csrc.py holds these numbers. Memory is the
// limit on every GPU, by estimate: it was not measured on a GPU.
//
//                                              H200    B200
//   DRAM bytes of a row                       1,750   1,750  1,344 written; 405 read, since the two windows overlap
//   clocks of a multiprocessor for them          94      66  at 4.3, 7.2 TB/s; 132, 148 of them; 1.75, 1.85 GHz
//   clocks to issue it, by 4 schedulers          26      24  mean of both ways round
//   128-byte lines looked up in L1, at most      49      49  three a load (9 or 12 of them), 13 for the stores
//
// Bytes in flight: to read a row's 672 bytes every 66 clocks, with 1,500 clocks of latency, takes 15 KB. A
// multiprocessor holds at least 24 warps (at most 80 registers a thread). Each waits for about four rows of 256 bytes
// or more, so for 24 KB in all.
//
// `two_views_kernel` is for all other cases. It takes about 430 instructions a row. One warp makes one row:
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
// Bytes become values in one of two ways. For 16-bit outputs: byte -> float -> one fused multiply-add -> round. A
// permute alone makes a float of a byte, but one that is M too large; the multiply-add takes M scale off with the bias.
// The host looks for constants for which the result equals the exact table for all 768 entries (ViewTable), and finds
// them for ImageNet's. Otherwise: the table, in shared memory. By estimate, look-ups at random addresses reach about 9
// elements per clock and SM. At its copy bandwidth an H200 needs 7 in 16 bits, and 4 in 32 bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "common.cuh"
#include "two_views.h"

namespace essl {
namespace {

constexpr int kWarps = 8;  // output rows per block of two_views_kernel
constexpr int kPad = 16;   // bytes before and after a row in shared memory, which a lane may read (and ignore)

__host__ __device__ constexpr int staged_pitch(int window) { return kPad + (3 * window + 15 + 15) / 16 * 16 + kPad; }

// The constants of the channels, in the order in which a piece of output needs them: entry i is that of its elements
// i, i + 3, ... Pairs, since sm_100 multiplies two floats at once.
struct Channels {
  float2 scale[3];     // of elements i and i + 1
  float2 bias[3];      // of elements i and i + 1
  uint32_t magic[3];   // see ViewTable
  uint32_t mirror[3];  // selects bytes 0..3 of a mirrored piece; entry i + 1 selects bytes 4..7
};
struct Affine {
  Channels of[3];  // of pieces 0, 3, ..., of pieces 1, 4, ... and of pieces 2, 5, ... of a row
};
struct Table32 {
  uint32_t entry[768];
};
struct Table16 {
  uint32_t entry[384];  // two entries per word
};

// M + byte: a permute instead of a conversion at a quarter the rate.
__device__ __forceinline__ float byte_to_float(uint32_t word, int byte, uint32_t magic) {
  return __uint_as_float(__byte_perm(word, magic, 0x7604u + 16u * byte));
}

// x y + z, each element rounded once.
__device__ __forceinline__ float2 multiply_add(float2 x, const float2& y, const float2& z) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // y and z go in as the 64 bits as which they were loaded: put together from halves, they cost a move each.
  uint64_t factor, addend;
  std::memcpy(&factor, &y, sizeof y);
  std::memcpy(&addend, &z, sizeof z);
  float2 sum;
  asm("{.reg .b64 x, sum;\n"
      "mov.b64 x, {%2, %3};\n"
      "fma.rn.f32x2 sum, x, %4, %5;\n"
      "mov.b64 {%0, %1}, sum;}"
      : "=f"(sum.x), "=f"(sum.y)
      : "f"(x.x), "f"(x.y), "l"(factor), "l"(addend));
  return sum;
#else
  return make_float2(__fmaf_rn(x.x, y.x, z.x), __fmaf_rn(x.y, y.y, z.y));
#endif
}

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// word0, word1: the bytes of the output elements, in order; `how` as for `turn` channels earlier.
template <class T>
__device__ __forceinline__ uint4 convert_piece(const Channels& how, int turn, uint32_t word0, uint32_t word1) {
  uint32_t piece[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int first = (turn + 2 * i) % 3, second = (first + 1) % 3;
    const uint32_t word = i < 2 ? word0 : word1;
    const float2 value = make_float2(byte_to_float(word, 2 * i % 4, how.magic[first]),
                                     byte_to_float(word, 2 * i % 4 + 1, how.magic[second]));
    const float2 made = multiply_add(value, how.scale[first], how.bias[first]);
    piece[i] = pack(made.x, made.y, T{});
  }
  return make_uint4(piece[0], piece[1], piece[2], piece[3]);
}

// word0, word1: the bytes of the output elements, in order; channel: that of the first element.
template <class T>
__device__ __forceinline__ uint4 convert(const Affine& how, const void*, uint32_t word0, uint32_t word1, int channel) {
  return convert_piece<T>(how.of[2 * channel % 3], 0, word0, word1);  // piece i begins with channel 2 i % 3
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

constexpr int kRowWarps = 4;  // warps of a block of rows_kernel
constexpr int kRows = 8;      // output rows of a warp
constexpr int kTurns = 3;     // pieces of a lane in a row
constexpr int kMargin = 6;    // bytes before (5) and after (6) a row into which its words may reach
constexpr unsigned kMostImages = 65535;  // CUDA's limit of a grid's y and z

// A lane's pieces of kRows rows. `from`: the bytes of its first piece, 8 or, for a flipped view, the 12 that hold them.
template <class T, bool kFlip>
__device__ __forceinline__ void make_rows(const Channels& how, uintptr_t from, int pitch, uint4* out, int lane,
                                          int pieces) {
  constexpr int kWords = kFlip ? 4 : 3;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (lane + 32 * turn >= pieces) break;
    uint32_t word[kRows][kWords];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t* const words = reinterpret_cast<const uint32_t*>((from + r * pitch) / 4 * 4);
#pragma unroll
      for (int i = 0; i < kWords; ++i) word[r][i] = __ldg(words + (kFlip ? -64 : 64) * turn + i);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t shift = 8u * static_cast<uint32_t>(from + r * pitch);  // modulo 32
      const uint32_t a = __funnelshift_r(word[r][0], word[r][1], shift);
      const uint32_t b = __funnelshift_r(word[r][1], word[r][2], shift);
      uint32_t bytes[2] = {a, b};
      if constexpr (kFlip) {
        const uint32_t c = __funnelshift_r(word[r][2], word[r][3], shift);
        bytes[0] = __byte_perm(b, c, how.mirror[turn]);
        bytes[1] = __byte_perm(a, b, how.mirror[(turn + 1) % 3]);
      }
      out[r * pieces + 32 * turn] = convert_piece<T>(how, turn, bytes[0], bytes[1]);
    }
  }
}

// The same, byte by byte: for rows whose words could reach out of the tensor. `row`, `out`: where the first row begins.
template <class T>
__device__ __forceinline__ void make_edge_rows(const Affine& affine, const uint8_t* row, int pitch, uint4* out,
                                               int lane, int pieces, bool flip) {
#pragma unroll 1
  for (int piece = lane; piece < kRows * pieces; piece += 32) {
    const int first = 8 * (piece % pieces);
    uint32_t bytes[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int pixel = (first + i) / 3, channel = (first + i) % 3;
      const int from = 3 * (flip ? 8 * pieces / 3 - 1 - pixel : pixel) + channel;
      bytes[i / 4] |= static_cast<uint32_t>(__ldg(row + piece / pieces * pitch + from)) << (8 * (i % 4));
    }
    out[piece] = convert_piece<T>(affine.of[piece % 3], 0, bytes[0], bytes[1]);
  }
}

__device__ __forceinline__ int clamp(int x, int most) {
  x = x < 0 ? 0 : x;
  return x < most ? x : most;
}

// Sizes that rows_kernel takes. All but the place of a frame and of an image is then computed in 32 bits.
bool fits_rows_kernel(const TwoViews& p) {
  return p.window % 8 == 0 && 3 * p.window <= 8 * 32 * kTurns && reinterpret_cast<uintptr_t>(p.out) % 16 == 0 &&
         int64_t{3} * p.side * p.side <= INT32_MAX - kMargin && p.stored <= INT32_MAX &&
         p.views <= static_cast<int>(kMostImages) && p.batch <= INT32_MAX / p.views;
}

// Grid: bands of kRowWarps * kRows rows, views, samples from `first_sample` on. Shared memory: the window if it is
// drawn.
template <class T>
__global__ void __launch_bounds__(32 * kRowWarps)
    rows_kernel(const TwoViews p, const Affine affine, const unsigned first_sample) {
  const unsigned sample = first_sample + blockIdx.z;
  const unsigned image = blockIdx.y * static_cast<unsigned>(p.batch) + sample;
  const int64_t stored_row = p.rows[sample];
  Window* const drawn = reinterpret_cast<Window*>(dynamic_shared());
  if (p.index) {
    if (threadIdx.x == 0) {
      *drawn = draw_window(p.seed, p.epoch, p.index[sample], blockIdx.y, p.side - p.window);
      if (blockIdx.x == 0) p.top[image] = drawn->top, p.left[image] = drawn->left, p.flip[image] = drawn->flip;
    }
    __syncthreads();
  }
  const Window window = p.index ? *drawn : given_window(p, image);

  const unsigned lane = threadIdx.x % 32;
  const int y = static_cast<int>(blockIdx.x * kRowWarps + threadIdx.x / 32) * kRows;
  if (y >= p.window) return;  // the other warps have all their rows, since p.window is a multiple of 8

  // window_start, in 32 bits as far as it goes.
  const int pitch = 3 * p.side, row_bytes = 3 * p.window, frame_bytes = pitch * p.side, limit = p.side - p.window;
  const int last = static_cast<int>(p.stored) - 1;
  const int frame = stored_row < 0 ? 0 : (stored_row < p.stored ? static_cast<int>(stored_row) : last);
  const int start = (clamp(window.top, limit) + y) * pitch + 3 * clamp(window.left, limit);
  const int stop = start + (kRows - 1) * pitch + row_bytes;
  const bool edge = (frame == 0 && start < kMargin) || (frame == last && stop > frame_bytes - kMargin);
  const uint8_t* const row = p.frames + static_cast<int64_t>(frame) * frame_bytes + start;

  const unsigned pieces = static_cast<unsigned>(row_bytes) / 8;
  uint4* const out = static_cast<uint4*>(p.out) + uint64_t{image} * (p.window * pieces) + y * pieces;
  const unsigned phase = lane - 3 * (lane * 11 / 32);  // lane % 3
  const Channels how = affine.of[phase];
  const uintptr_t from = reinterpret_cast<uintptr_t>(row);
  if (edge) {
    make_edge_rows<T>(affine, row, pitch, out, lane, pieces, window.flip);
  } else if (window.flip) {
    make_rows<T, true>(how, from + row_bytes - 10 - 8 * lane, pitch, out + lane, lane, pieces);
  } else {
    make_rows<T, false>(how, from + 8 * lane, pitch, out + lane, lane, pieces);
  }
}

template <class T>
void launch_rows(const TwoViews& p, const Affine& how, cudaStream_t stream, const std::string& what) {
  for (int64_t sample = 0; sample < p.batch; sample += kMostImages) {
    const int64_t samples = p.batch - sample < kMostImages ? p.batch - sample : kMostImages;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>((p.window + kRowWarps * kRows - 1) / (kRowWarps * kRows)),
                          static_cast<unsigned>(p.views), static_cast<unsigned>(samples));
    config.blockDim = dim3(32 * kRowWarps);
    config.dynamicSmemBytes = p.index ? sizeof(Window) : 0;
    config.stream = stream;
    check_cuda(cudaLaunchKernelEx(&config, rows_kernel<T>, p, how, static_cast<unsigned>(sample)), what);
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

Affine make_affine(const ViewTable& table) {
  // make_rows has the 12 bytes that hold a mirrored piece in the words a, b, c. By its first channel they are, in order
  // of the output, 7 8 9 4 | 5 6 1 2, or 9 10 5 6 | 7 2 3 4, or 11 6 7 8 | 3 4 5 0. Bytes of the first word of output
  // come from b and c, those of the second from a and b.
  constexpr uint32_t kMirror[3] = {0x0543, 0x2165, 0x4327};
  Affine affine;
  for (int piece = 0; piece < 3; ++piece) {
    for (int i = 0; i < 3; ++i) {
      const int c = (2 * piece + i) % 3, next = (c + 1) % 3;
      affine.of[piece].scale[i] = make_float2(table.scale[c], table.scale[next]);
      affine.of[piece].bias[i] = make_float2(table.bias[c], table.bias[next]);
      affine.of[piece].magic[i] = table.magic[c];
      affine.of[piece].mirror[i] = kMirror[c];
    }
  }
  return affine;
}

template <class T>
void launch_narrow(const TwoViews& p, const ViewTable& table, cudaStream_t stream, const std::string& what) {
  if (table.affine) {
    const Affine how = make_affine(table);
    return fits_rows_kernel(p) ? launch_rows<T>(p, how, stream, what) : launch<T>(p, how, stream, what);
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
