// log_mel's output is fresh memory at every call (that of views is kept and used again, kernels/recycling.py), which the
// system hands out page by page: 2 MiB pages take fewer of these turns than 4 KiB ones.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace essl {

// Asks for 2 MiB pages under the whole 2 MiB blocks of [start, start + bytes). Advice only: it may be refused, and
// nothing changes.
inline void advise_huge_pages(void* start, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + bytes) / kPage * kPage;
  if (last > first + kPage) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)start;
  (void)bytes;
#endif
}

}  // namespace essl
