// What every CUDA kernel of this folder includes: the CUDA runtime under nvcc, else an emulation of the part of it that
// the kernels use (plugins/tests/cuda_on_cpu.hpp), so that the same source runs, thread by thread, where there is no GPU.
//
//   LATENTCOT_SHARED(type, name)   `type* name`: the block's dynamic shared memory, once per kernel
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)   asynchronous, never allocates, may be captured
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LATENTCOT_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char latentcot_shared[]; \
  type* const name = reinterpret_cast<type*>(latentcot_shared)
#else
#include "../../tests/cuda_on_cpu.hpp"
#endif

namespace latentcot::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

using Stream = cudaStream_t;

#ifdef __CUDACC__

// Shared memory that a block gets without being asked for by an attribute of the kernel (CUDA programming guide).
constexpr std::size_t kPlainShared = 48 * 1024;

// Starts `kernel` on `stream`. The error is that of the start; a fault in values shows in counters[kStalled] alone.
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
                          const Arguments&... arguments) {
  if (shared_bytes > kPlainShared) {
    const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

#else

template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream,
                          const Arguments&... arguments) {
  const auto body = [&] { kernel(Parameters(arguments)...); };
  return on_cpu::run_grid(grid, block, shared_bytes, body);
}

#endif

}  // namespace latentcot::cuda
