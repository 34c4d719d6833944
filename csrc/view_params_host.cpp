// view_params and view_boxes on the host: a few microseconds on one thread. The contract is in view_params.h.
#include "view_params.h"

namespace essl {

std::string describe(const ViewParams& p) {
  const std::string v = std::to_string(p.views), b = std::to_string(p.batch);
  return "view_params: index (" + b + ",) -> (" + v + ", " + b + "), margin " + std::to_string(p.margin);
}

std::string describe(const ViewBoxes& p) {
  const std::string v = std::to_string(p.views), b = std::to_string(p.batch), k = std::to_string(p.each);
  return "view_boxes: boxes (" + b + ", " + k + ", 4) -> (" + v + ", " + b + ", " + k + ", 4), side " +
         std::to_string(p.side) + ", size " + std::to_string(p.size);
}

void view_params_host(const ViewParams& p) {
  for (int64_t at = 0; at < p.views * p.batch; ++at) write_params(p, at);
}

void view_boxes_host(const ViewBoxes& p) {
  for (int64_t at = 0; at < p.views * p.batch * p.each; ++at) write_box(p, at);
}

}  // namespace essl
