// Small kernels that do what the emulation of CUDA must compute, or must refuse, for tests/cuda/test_emulator.py.
#include "../kernels/cuda/device.cuh"

namespace latentcot::cuda {
namespace {

// Every collective, as one lane sees it: out [threads, 12].
__global__ void collectives(const int* in, int* out, unsigned mask) {
  const int thread = int(threadIdx.x), lane = thread % kWarp;
  if (!(mask >> lane & 1)) return;
  const int value = in[thread];
  int* mine = out + thread * 12;
  mine[0] = __shfl_sync(mask, value, value & 63);
  mine[1] = __shfl_sync(mask, value, lane + 1, 8);
  mine[2] = __shfl_up_sync(mask, value, 3);
  mine[3] = __shfl_up_sync(mask, value, 2, 8);
  mine[4] = __shfl_down_sync(mask, value, 5);
  mine[5] = __shfl_down_sync(mask, value, 1, 4);
  mine[6] = __shfl_xor_sync(mask, value, 9, 16);
  mine[7] = int(__ballot_sync(mask, value & 1));
  mine[8] = __any_sync(mask, value == 7);
  mine[9] = __all_sync(mask, value >= 0);
  mine[10] = int(__shfl_xor_sync(mask, double(value) + 0.5, 1) * 2);
  mine[11] = __syncthreads_or(value == 7) * 2 + (__syncthreads_count(value & 1) > 3);
}

// Neighbours through shared memory, with the barrier that this needs or without it.
__global__ void turn(const int* in, int* out, bool waits) {
  LATENTCOT_SHARED(int, values);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  values[thread] = in[thread];
  if (waits) __syncthreads();
  out[blockIdx.x * threads + thread] = values[(thread + 1) % threads];
  if (thread == 0) atomicAdd(out + gridDim.x * threads, 1 + int(blockIdx.x));
}

enum Mistake : int { kMissesBarrier, kOtherBarrier, kOtherCollective, kNotInMask, kReadsNobody, kMissesLane, kOverflow };

__global__ void mistake(int which, int* out) {
  LATENTCOT_SHARED(int, values);
  const int thread = int(threadIdx.x);
  int found = 0;
  switch (which) {
    case kMissesBarrier:  // a lane waits for its warp, whose others wait for the block
      if (thread == 3) found = __shfl_sync(kAllLanes, thread, 0);
      __syncthreads();
      break;
    case kOtherBarrier:
      if (thread < 32)
        __syncthreads();
      else
        __syncthreads();
      break;
    case kOtherCollective: found = thread & 1 ? __any_sync(kAllLanes, 1) : __all_sync(kAllLanes, 1); break;
    case kNotInMask: found = __any_sync(0xfffffffeu, 1); break;
    case kReadsNobody: found = thread < 8 ? __shfl_sync(0xffu, thread, 9) : 0; break;
    case kMissesLane:
      found = thread < 8 ? __any_sync(0x1ffu, 1) : __any_sync(0xffffff00u, 1);
      __syncthreads();
      break;
    case kOverflow: values[thread] = thread; break;
    default: break;
  }
  out[thread] = found;
}

// What a block finds in its shared memory, and the numbers that float16 and bfloat16 make of others.
__global__ void numbers(const float* in, int count, float* out, unsigned* poison) {
  LATENTCOT_SHARED(unsigned, values);
  if (threadIdx.x == 0) *poison = values[0];
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    out[2 * i] = __half2float(__float2half_rn(in[i]));
    out[2 * i + 1] = __bfloat162float(__float2bfloat16_rn(in[i]));
  }
}

}  // namespace
}  // namespace latentcot::cuda

using namespace latentcot::cuda;

extern "C" {
#define LATENTCOT_ENTRY __attribute__((visibility("default"))) int

LATENTCOT_ENTRY latentcot_cuda_collectives(const int* in, int* out, unsigned mask, int threads) {
  return launch(collectives, dim3(1), dim3(threads), 0, nullptr, in, out, mask);
}
LATENTCOT_ENTRY latentcot_cuda_turn(const int* in, int* out, int blocks, int x, int y, int z, int waits) {
  return launch(turn, dim3(blocks), dim3(x, y, z), std::size_t(x) * y * z * sizeof(int), nullptr, in, out, waits != 0);
}
LATENTCOT_ENTRY latentcot_cuda_mistake(int which, int* out, int threads, std::size_t shared) {
  return launch(mistake, dim3(1), dim3(threads), shared, nullptr, which, out);
}
LATENTCOT_ENTRY latentcot_cuda_numbers(const float* in, int count, float* out, unsigned* poison) {
  return launch(numbers, dim3(1), dim3(32), 16, nullptr, in, count, out, poison);
}
}
