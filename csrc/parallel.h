// Splits independent tasks over threads. There is no pool of threads: starting one costs about 20 us, an op takes
// milliseconds, and a process without a pool can fork.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace essl {

// Calls task(i) once for every i in [0, tasks), on at most `threads` threads, including the caller's. `task` must not
// throw.
template <class Task>
void parallel_for(int64_t tasks, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) task(i);
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = (threads < tasks ? threads : tasks) - 1;
  try {
    for (int64_t t = 0; t < wanted; ++t) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no more threads: those that run, and this one, do all the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace essl
