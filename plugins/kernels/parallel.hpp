// How a kernel spreads work over threads it does not own.
#pragma once

#include <cstddef>

namespace latentcot {

// `run` calls task(argument, i) once for every i in [0, tasks), on any threads and in any order, and returns when all
// are done. `threads` is the most that can run at once, as far as the host knows; kernels size their workspaces by it.
struct Parallel {
  void* context;
  int threads;
  void (*run)(void* context, std::size_t tasks, void (*task)(void* argument, std::size_t index), void* argument);
};

// Runs everything on the calling thread. A named function: nvcc 13.0 cannot compile a lambda that takes a function.
inline void run_serially(void*, std::size_t tasks, void (*task)(void*, std::size_t), void* argument) {
  for (std::size_t i = 0; i < tasks; ++i) task(argument, i);
}
inline Parallel serial() { return {nullptr, 1, &run_serially}; }

}  // namespace latentcot
