// CUDA on the CPU: the threads of a block as fibers, and the barrier of a block. See cuda_on_cpu.hpp.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static
#define __align__(bytes) alignas(bytes)

#define LATENTCOT_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::latentcot::cuda::on_cpu::machine().shared.data())

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

// Those of the CUDA runtime that a launch can answer with here.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = void*;

inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace latentcot::cuda::on_cpu {

constexpr int kWarpLanes = 32;
constexpr std::size_t kStack = std::size_t(128) << 10;  // of a fiber; pages that are not touched cost nothing
constexpr std::size_t kGuard = std::size_t(64) << 10;  // below it: an overflow ends the process instead of other data

// What a thread waits for.
enum class Wait { kNothing, kBlock, kWarp, kEnd };

// What a thread brings to a collective of its warp, and what it takes back.
struct Offer {
  int kind = 0, width = 0, source = 0;
  unsigned mask = 0;
  std::uint64_t value = 0, result = 0;
  void (*custom)(Offer* const* lanes) = nullptr;  // of the kind kCustom: what is done with the offers of all lanes
};

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  unsigned char* stack = nullptr;  // its lowest usable byte
  bool begun = false;              // has a frame of run_fiber
  Wait wait = Wait::kNothing;
  std::source_location place;  // where it waits
  Offer offer;
  bool vote = false;        // what it brings to a barrier
  std::uint64_t rank = 0;   // the least rank of all ready fibers goes on
  void* fake_stack = nullptr;
};

// One block in flight and the stacks it runs on. One host thread at a time may use it.
struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::pair<std::uint64_t, int>> ready;  // a heap: rank, thread
  std::function<void()> body;
  std::vector<std::uint64_t> shared;  // dynamic shared memory, aligned as a GPU's
  jmp_buf home;
  const void* home_stack = nullptr;
  std::size_t home_bytes = 0;
  int current = 0, threads = 0, alive = 0, waiting = 0;
  bool block_vote_or = false;
  int block_vote_count = 0;
  std::uint64_t seed = 0, state = 0, arrivals = 0;
  std::string fault;

  std::uint64_t random() {  // xorshift64*: any numbers do, but the same on every machine
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
  }
};

inline Machine& machine() {
  static Machine one;
  return one;
}

// In which order threads and blocks run from now on.
inline void order(std::uint64_t seed) { machine().seed = seed; }

// What the last launch that failed found, else empty.
inline const std::string& fault() { return machine().fault; }

inline void before_switch(void** fake_stack, const void* bottom, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#else
  (void)fake_stack, (void)bottom, (void)bytes;
#endif
}

inline void after_switch(void* fake_stack, const void** bottom, std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#else
  (void)fake_stack, (void)bottom, (void)bytes;
#endif
}

// Back to the scheduler until it is this fiber's turn again. setjmp, since swapcontext asks the kernel at every switch.
__attribute__((noinline)) inline void leave() {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[m.current];
  before_switch(&fiber.fake_stack, m.home_stack, m.home_bytes);
  if (_setjmp(fiber.at) == 0) _longjmp(m.home, 1);
  after_switch(fiber.fake_stack, nullptr, nullptr);
}

inline void wake(int thread) {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[thread];
  fiber.wait = Wait::kNothing;
  if (m.seed == 0) fiber.rank = ++m.arrivals;
  if (m.seed % 2 == 1) fiber.rank = m.random();
  m.ready.emplace_back(fiber.rank, thread);
  std::push_heap(m.ready.begin(), m.ready.end(), std::greater<>());
}

// Ends the launch with a sentence about `thread` as soon as the running fiber leaves. The first one stays.
inline void fail(int thread, std::source_location at, const std::string& sentence) {
  Machine& m = machine();
  const std::string file = at.file_name();
  if (m.fault.empty())
    m.fault = "block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(thread) + ", " +
              file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line()) + ": " + sentence;
}

// Lets everybody go on who waits at the block's barrier, once no living thread is missing.
inline void try_barrier() {
  Machine& m = machine();
  if (m.waiting == 0 || m.waiting < m.alive) return;
  m.block_vote_or = false;
  m.block_vote_count = 0;
  const std::source_location* place = nullptr;
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    if (fiber.wait != Wait::kBlock) continue;
    if (place && (place->line() != fiber.place.line() || std::strcmp(place->file_name(), fiber.place.file_name()) != 0))
      fail(i, fiber.place, "others of its block wait at the barrier of line " + std::to_string(place->line()) + ".");
    place = &fiber.place;
    m.block_vote_or |= fiber.vote;
    m.block_vote_count += fiber.vote;
  }
  m.waiting = 0;
  for (int i = 0; i < m.threads; ++i)
    if (m.fibers[i]->wait == Wait::kBlock) wake(i);
}

inline void barrier(bool vote, std::source_location at) {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[m.current];
  fiber.wait = Wait::kBlock;
  fiber.place = at;
  fiber.vote = vote;
  ++m.waiting;
  try_barrier();
  leave();
}

// A fiber runs the kernel once per block, for ever: it is made only once.
inline void run_fiber() {
  Machine& m = machine();
  after_switch(nullptr, &m.home_stack, &m.home_bytes);
  for (;;) {
    m.body();
    m.fibers[m.current]->wait = Wait::kEnd;
    --m.alive;
    leave();
  }
}

inline void make_fibers(int count) {
  Machine& m = machine();
  while (static_cast<int>(m.fibers.size()) < count) {
    auto fiber = std::make_unique<Fiber>();
    void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    mprotect(memory, kGuard, PROT_NONE);
    fiber->stack = static_cast<unsigned char*>(memory) + kGuard;
    m.fibers.push_back(std::move(fiber));
  }
}

// Runs fiber `thread` until it leaves.
__attribute__((noinline)) inline void enter(int thread) {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[thread];
  m.current = thread;
  const unsigned plane = blockDim.x * blockDim.y, t = static_cast<unsigned>(thread);
  threadIdx = {t % blockDim.x, t % plane / blockDim.x, t / plane};
  void* fake_stack = nullptr;
  before_switch(&fake_stack, fiber.stack, kStack);
  if (_setjmp(m.home) == 0) {
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_fiber, 0);
    setcontext(&fiber.start);
  }
  after_switch(fake_stack, nullptr, nullptr);
}

}  // namespace latentcot::cuda::on_cpu
