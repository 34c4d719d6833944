// log_mel's output is new memory at every call (the memory of views is used again: kernels/recycling.py). The system
// provides new memory page by page, and with 2 MiB pages there are fewer of them than with 4 KiB pages.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace essl {

// Asks for 2 MiB pages for the aligned 2 MiB blocks inside [start, start + bytes). It is only advice: if the system
// refuses it, nothing changes.
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
