// The Python module _essl_fast_native. Addresses come as integers; Python (essl_fast/kernels/native.py) allocates every
// buffer, checks every shape and keeps everything alive for the call. Nothing here knows of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "two_views.h"

namespace py = pybind11;

namespace {

// Raise with any change of a function's arguments: native.py refuses a module built from other sources.
constexpr int kInterface = 1;

using Channels = std::array<float, 3>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

essl::OutType out_type(int code) {
  if (code < 0 || code > 2) throw std::invalid_argument("two_views: unknown output type " + std::to_string(code));
  return static_cast<essl::OutType>(code);
}

essl::TwoViews two_views_params(uintptr_t out, int type, uintptr_t frames, uintptr_t rows, uintptr_t top,
                                uintptr_t left, uintptr_t flip, int64_t stored, int32_t side, int32_t views,
                                int64_t batch, int32_t window) {
  const essl::TwoViews p = {at<const uint8_t>(frames),
                            at<const int64_t>(rows),
                            at<const int32_t>(top),
                            at<const int32_t>(left),
                            at<const uint8_t>(flip),
                            at<void>(out),
                            stored,
                            batch,
                            views,
                            side,
                            window,
                            out_type(type)};
  const bool sizes =
      stored >= 1 && batch >= 0 && views >= 1 && window >= 1 && window <= essl::kMaxWindow && side >= window;
  const bool buffers = batch == 0 || (frames && rows && top && left && flip && out);
  if (!sizes) throw std::invalid_argument(essl::describe(p) + ": impossible sizes");
  if (!buffers) throw std::invalid_argument(essl::describe(p) + ": a buffer has no address");
  return p;
}

// The table of the last call on this thread: training makes the same one for ever.
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
                    const Channels& mean, const Channels& std, int threads) {
  const auto p = two_views_params(out, type, frames, rows, top, left, flip, stored, side, views, batch, window);
  const py::gil_scoped_release release;
  essl::two_views_host(p, view_table(mean, std, p.type), threads);
}

#ifdef ESSL_WITH_CUDA
void two_views_cuda(uintptr_t out, int type, uintptr_t frames, uintptr_t rows, uintptr_t top, uintptr_t left,
                    uintptr_t flip, int64_t stored, int32_t side, int32_t views, int64_t batch, int32_t window,
                    const Channels& mean, const Channels& std, int device, uintptr_t stream) {
  const auto p = two_views_params(out, type, frames, rows, top, left, flip, stored, side, views, batch, window);
  const py::gil_scoped_release release;
  essl::two_views_cuda(p, view_table(mean, std, p.type), device, at<void>(stream));
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
        py::arg("batch"), py::arg("window"), py::arg("mean"), py::arg("std"), py::arg("threads"),
        "See csrc/two_views.h.");
#ifdef ESSL_WITH_CUDA
  m.def("two_views_cuda", &two_views_cuda, py::arg("out"), py::arg("type"), py::arg("frames"), py::arg("rows"),
        py::arg("top"), py::arg("left"), py::arg("flip"), py::arg("stored"), py::arg("side"), py::arg("views"),
        py::arg("batch"), py::arg("window"), py::arg("mean"), py::arg("std"), py::arg("device"), py::arg("stream"),
        "See csrc/two_views.h.");
#endif
}
