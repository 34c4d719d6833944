// The Python module _essl_fast_native. Addresses come as integers. Python (essl_fast/kernels/native.py) allocates every
// buffer, checks every shape and keeps everything alive during the call. Nothing here knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "localization_counts.h"
#include "log_mel.h"
#include "two_views.h"
#include "view_params.h"

namespace py = pybind11;

namespace {

// Add 1 whenever a function's arguments change: native.py refuses a module with another number.
constexpr int kInterface = 2;

using Channels = std::array<float, 3>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

essl::OutType out_type(int code) {
  if (code < 0 || code > 2) throw std::invalid_argument("two_views: unknown output type " + std::to_string(code));
  return static_cast<essl::OutType>(code);
}

// With index != 0 this is random_views.
essl::TwoViews two_views_params(uintptr_t out, int type, uintptr_t frames, uintptr_t rows, uintptr_t top,
                                uintptr_t left, uintptr_t flip, int64_t stored, int32_t side, int32_t views,
                                int64_t batch, int32_t window, uintptr_t index, int64_t seed, int64_t epoch) {
  const essl::TwoViews p = {at<const uint8_t>(frames),
                            at<const int64_t>(rows),
                            at<int32_t>(top),
                            at<int32_t>(left),
                            at<uint8_t>(flip),
                            at<void>(out),
                            stored,
                            batch,
                            views,
                            side,
                            window,
                            out_type(type),
                            at<const int64_t>(index),
                            static_cast<uint64_t>(seed),
                            static_cast<uint32_t>(epoch)};
  const bool sizes =
      stored >= 1 && batch >= 0 && views >= 1 && window >= 1 && window <= essl::kMaxWindow && side >= window;
  const bool buffers = batch == 0 || (frames && rows && top && left && flip && out);
  if (!sizes) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (!buffers) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

// The table of the last call on this thread, since training always needs the same one.
const essl::ViewTable& view_table(const Channels& mean, const Channels& std, essl::OutType type) {
  struct Key {
    Channels mean, std;
    essl::OutType type;
  };
  thread_local Key key = {};
  thread_local essl::ViewTable table;
  thread_local bool made = false;
  if (!made || key.mean != mean || key.std != std || key.type != type) {
    key = {mean, std, type};
    essl::make_view_table(mean.data(), std.data(), type, &table);
    made = true;
  }
  return table;
}

void two_views_host(uintptr_t out, int type, uintptr_t frames, uintptr_t rows, uintptr_t top, uintptr_t left,
                    uintptr_t flip, int64_t stored, int32_t side, int32_t views, int64_t batch, int32_t window,
                    const Channels& mean, const Channels& std, int threads, uintptr_t index, int64_t seed,
                    int64_t epoch) {
  const auto p = two_views_params(out, type, frames, rows, top, left, flip, stored, side, views, batch, window, index,
                                  seed, epoch);
  const py::gil_scoped_release release;
  essl::two_views_host(p, view_table(mean, std, p.type), threads);
}

#ifdef ESSL_WITH_CUDA
void two_views_cuda(uintptr_t out, int type, uintptr_t frames, uintptr_t rows, uintptr_t top, uintptr_t left,
                    uintptr_t flip, int64_t stored, int32_t side, int32_t views, int64_t batch, int32_t window,
                    const Channels& mean, const Channels& std, int device, uintptr_t stream, uintptr_t index,
                    int64_t seed, int64_t epoch) {
  const auto p = two_views_params(out, type, frames, rows, top, left, flip, stored, side, views, batch, window, index,
                                  seed, epoch);
  const py::gil_scoped_release release;
  essl::two_views_cuda(p, view_table(mean, std, p.type), device, at<void>(stream));
}
#endif

essl::ViewParams view_params_params(uintptr_t top, uintptr_t left, uintptr_t flip, uintptr_t index, int64_t batch,
                                    int32_t views, int32_t margin, int64_t seed, int64_t epoch) {
  const essl::ViewParams p = {at<const int64_t>(index),
                              at<int32_t>(top),
                              at<int32_t>(left),
                              at<uint8_t>(flip),
                              batch,
                              views,
                              margin,
                              static_cast<uint64_t>(seed),
                              static_cast<uint32_t>(epoch)};
  const bool buffers = batch == 0 || (index && top && left && flip);
  if (batch < 0 || views < 1 || margin < 0) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (!buffers) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

void view_params_host(uintptr_t top, uintptr_t left, uintptr_t flip, uintptr_t index, int64_t batch, int32_t views,
                      int32_t margin, int64_t seed, int64_t epoch, int) {
  essl::view_params_host(view_params_params(top, left, flip, index, batch, views, margin, seed, epoch));
}

essl::ViewBoxes view_boxes_params(uintptr_t out, uintptr_t boxes, uintptr_t top, uintptr_t left, uintptr_t flip,
                                  int64_t batch, int64_t each, int32_t views, int32_t side, int32_t size) {
  const essl::ViewBoxes p = {at<const int32_t>(boxes),
                             at<const int32_t>(top),
                             at<const int32_t>(left),
                             at<const uint8_t>(flip),
                             at<int32_t>(out),
                             batch,
                             each,
                             views,
                             side,
                             size};
  const bool sizes = batch >= 0 && each >= 0 && views >= 1 && side >= 1 && size >= 1;
  const bool buffers = batch == 0 || each == 0 || (boxes && top && left && flip && out);
  if (!sizes) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (!buffers) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

void view_boxes_host(uintptr_t out, uintptr_t boxes, uintptr_t top, uintptr_t left, uintptr_t flip, int64_t batch,
                     int64_t each, int32_t views, int32_t side, int32_t size, int) {
  const auto p = view_boxes_params(out, boxes, top, left, flip, batch, each, views, side, size);
  const py::gil_scoped_release release;
  essl::view_boxes_host(p);
}

essl::LocalizationCounts localization_counts_params(uintptr_t intersection, uintptr_t union_, uintptr_t similarity,
                                                    int type, uintptr_t boxes, int64_t batch, int32_t each,
                                                    int32_t height, int32_t width, int32_t size, int32_t consensus,
                                                    double threshold) {
  if (type < 0 || type > 3) {
    throw std::invalid_argument("localization_counts: unknown similarity type " + std::to_string(type));
  }
  const essl::LocalizationCounts p = {at<const void>(similarity),
                                      at<const int32_t>(boxes),
                                      at<double>(intersection),
                                      at<double>(union_),
                                      batch,
                                      each,
                                      height,
                                      width,
                                      size,
                                      consensus,
                                      threshold,
                                      static_cast<essl::MapType>(type)};
  const auto side = [](int32_t length) { return length >= 1 && length <= essl::kMaxSide; };
  const bool sizes = batch >= 0 && each >= 0 && side(height) && side(width) && side(size) && consensus >= 1 &&
                     consensus <= essl::kMaxConsensus;
  const bool buffers = batch == 0 || (similarity && (each == 0 || boxes) && intersection && union_);
  if (!sizes) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (!buffers) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

void localization_counts_host(uintptr_t intersection, uintptr_t union_, uintptr_t similarity, int type, uintptr_t boxes,
                              int64_t batch, int32_t each, int32_t height, int32_t width, int32_t size,
                              int32_t consensus, double threshold, int threads) {
  const auto p = localization_counts_params(intersection, union_, similarity, type, boxes, batch, each, height, width,
                                            size, consensus, threshold);
  const py::gil_scoped_release release;
  essl::localization_counts_host(p, threads);
}

#ifdef ESSL_WITH_CUDA
void view_params_cuda(uintptr_t top, uintptr_t left, uintptr_t flip, uintptr_t index, int64_t batch, int32_t views,
                      int32_t margin, int64_t seed, int64_t epoch, int device, uintptr_t stream) {
  const auto p = view_params_params(top, left, flip, index, batch, views, margin, seed, epoch);
  const py::gil_scoped_release release;
  essl::view_params_cuda(p, device, at<void>(stream));
}

void view_boxes_cuda(uintptr_t out, uintptr_t boxes, uintptr_t top, uintptr_t left, uintptr_t flip, int64_t batch,
                     int64_t each, int32_t views, int32_t side, int32_t size, int device, uintptr_t stream) {
  const auto p = view_boxes_params(out, boxes, top, left, flip, batch, each, views, side, size);
  const py::gil_scoped_release release;
  essl::view_boxes_cuda(p, device, at<void>(stream));
}

void localization_counts_cuda(uintptr_t intersection, uintptr_t union_, uintptr_t similarity, int type, uintptr_t boxes,
                              int64_t batch, int32_t each, int32_t height, int32_t width, int32_t size,
                              int32_t consensus, double threshold, int device, uintptr_t stream) {
  const auto p = localization_counts_params(intersection, union_, similarity, type, boxes, batch, each, height, width,
                                            size, consensus, threshold);
  const py::gil_scoped_release release;
  essl::localization_counts_cuda(p, device, at<void>(stream));
}
#endif

essl::LogMel log_mel_params(uintptr_t out, uintptr_t pcm, int type, int64_t batch, int64_t samples, bool normalize) {
  if (type < 0 || type > 1) throw std::invalid_argument("log_mel: unknown sample type " + std::to_string(type));
  const essl::LogMel p = {at<const void>(pcm), at<float>(out), batch, samples, static_cast<essl::PcmType>(type),
                          normalize};
  const bool sizes = batch >= 0 && essl::examples_of(samples) >= 1;
  if (!sizes) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (batch > 0 && !(pcm && out)) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

void log_mel_host(uintptr_t out, uintptr_t pcm, int type, int64_t batch, int64_t samples, bool normalize,
                  int threads) {
  const auto p = log_mel_params(out, pcm, type, batch, samples, normalize);
  const py::gil_scoped_release release;
  essl::log_mel_host(p, threads);
}

#ifdef ESSL_WITH_CUDA
void log_mel_cuda(uintptr_t out, uintptr_t pcm, int type, int64_t batch, int64_t samples, bool normalize, int device,
                  uintptr_t stream) {
  const auto p = log_mel_params(out, pcm, type, batch, samples, normalize);
  const py::gil_scoped_release release;
  essl::log_mel_cuda(p, device, at<void>(stream));
}
#endif

py::dict build_info() {
  py::dict info;
  info["interface"] = kInterface;
  info["compiler"] = ESSL_COMPILER;
#ifdef ESSL_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = ESSL_CUDA_VERSION;
  info["archs"] = std::string(ESSL_CUDA_ARCHS);
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["archs"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_essl_fast_native, m) {
  m.doc() = "The compiled operations of essl_fast. Use essl_fast.kernels, not this.";
  m.def("build_info", &build_info, "What this module was built with.");
  m.def("two_views_host", &two_views_host, py::arg("out"), py::arg("type"), py::arg("frames"), py::arg("rows"),
        py::arg("top"), py::arg("left"), py::arg("flip"), py::arg("stored"), py::arg("side"), py::arg("views"),
        py::arg("batch"), py::arg("window"), py::arg("mean"), py::arg("std"), py::arg("threads"), py::arg("index") = 0,
        py::arg("seed") = 0, py::arg("epoch") = 0, "See csrc/two_views.h.");
  m.def("view_params_host", &view_params_host, py::arg("top"), py::arg("left"), py::arg("flip"), py::arg("index"),
        py::arg("batch"), py::arg("views"), py::arg("margin"), py::arg("seed"), py::arg("epoch"), py::arg("threads"),
        "See csrc/view_params.h.");
  m.def("view_boxes_host", &view_boxes_host, py::arg("out"), py::arg("boxes"), py::arg("top"), py::arg("left"),
        py::arg("flip"), py::arg("batch"), py::arg("each"), py::arg("views"), py::arg("side"), py::arg("size"),
        py::arg("threads"), "See csrc/view_params.h.");
  m.def("localization_counts_host", &localization_counts_host, py::arg("intersection"), py::arg("union_"),
        py::arg("similarity"), py::arg("type"), py::arg("boxes"), py::arg("batch"), py::arg("each"), py::arg("height"),
        py::arg("width"), py::arg("size"), py::arg("consensus"), py::arg("threshold"), py::arg("threads"),
        "See csrc/localization_counts.h.");
  m.def("log_mel_host", &log_mel_host, py::arg("out"), py::arg("pcm"), py::arg("type"), py::arg("batch"),
        py::arg("samples"), py::arg("normalize"), py::arg("threads"), "See csrc/log_mel.h.");
#ifdef ESSL_WITH_CUDA
  m.def("two_views_cuda", &two_views_cuda, py::arg("out"), py::arg("type"), py::arg("frames"), py::arg("rows"),
        py::arg("top"), py::arg("left"), py::arg("flip"), py::arg("stored"), py::arg("side"), py::arg("views"),
        py::arg("batch"), py::arg("window"), py::arg("mean"), py::arg("std"), py::arg("device"), py::arg("stream"),
        py::arg("index") = 0, py::arg("seed") = 0, py::arg("epoch") = 0, "See csrc/two_views.h.");
  m.def("view_params_cuda", &view_params_cuda, py::arg("top"), py::arg("left"), py::arg("flip"), py::arg("index"),
        py::arg("batch"), py::arg("views"), py::arg("margin"), py::arg("seed"), py::arg("epoch"), py::arg("device"),
        py::arg("stream"), "See csrc/view_params.h.");
  m.def("view_boxes_cuda", &view_boxes_cuda, py::arg("out"), py::arg("boxes"), py::arg("top"), py::arg("left"),
        py::arg("flip"), py::arg("batch"), py::arg("each"), py::arg("views"), py::arg("side"), py::arg("size"),
        py::arg("device"), py::arg("stream"), "See csrc/view_params.h.");
  m.def("localization_counts_cuda", &localization_counts_cuda, py::arg("intersection"), py::arg("union_"),
        py::arg("similarity"), py::arg("type"), py::arg("boxes"), py::arg("batch"), py::arg("each"), py::arg("height"),
        py::arg("width"), py::arg("size"), py::arg("consensus"), py::arg("threshold"), py::arg("device"),
        py::arg("stream"), "See csrc/localization_counts.h.");
  m.def("log_mel_cuda", &log_mel_cuda, py::arg("out"), py::arg("pcm"), py::arg("type"), py::arg("batch"),
        py::arg("samples"), py::arg("normalize"), py::arg("device"), py::arg("stream"), "See csrc/log_mel.h.");
#endif
}
