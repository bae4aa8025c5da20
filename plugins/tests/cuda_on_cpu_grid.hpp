// CUDA on the CPU: blocks and grids, and the barrier as kernels write it. See cuda_on_cpu.hpp.
#pragma once

#include "cuda_on_cpu_fibers.hpp"
#include "cuda_on_cpu_warp.hpp"

namespace latentcot::cuda::on_cpu {

constexpr unsigned kMostThreads = 1024;          // of a block, on every GPU
constexpr std::size_t kMostShared = 163 * 1024;  // of a block on sm_80, the least of the architectures we ship
constexpr unsigned char kPoison = 0xfb;
constexpr std::size_t kTail = 64;  // bytes behind the shared memory that must keep their poison

inline const char* wait_name(Wait wait) {
  return wait == Wait::kBlock ? "the barrier" : wait == Wait::kWarp ? "the warp collective" : "nothing";
}

// Says who waits where when nobody can go on.
inline void report_deadlock() {
  Machine& m = machine();
  m.fault = "block " + std::to_string(blockIdx.x) + ": no thread can go on";
  unsigned last = 0;
  for (int i = 0; i < m.threads; ++i) {
    const Fiber& fiber = *m.fibers[i];
    if (fiber.wait == Wait::kEnd || fiber.place.line() == last) continue;  // one thread per line is enough
    last = fiber.place.line();
    m.fault += ", thread " + std::to_string(i) + " waits at " + wait_name(fiber.wait) + " of line " + std::to_string(last);
  }
  m.fault += "; " + std::to_string(m.threads - m.alive) + " of " + std::to_string(m.threads) + " threads have ended.";
}

inline void run_block() {
  Machine& m = machine();
  m.alive = m.threads;
  m.waiting = 0;
  m.ready.clear();
  for (int i = 0; i < m.threads; ++i) {
    m.fibers[i]->rank = m.random();  // the ranking of even seeds
    wake(i);
  }
  while (!m.ready.empty()) {
    std::pop_heap(m.ready.begin(), m.ready.end(), std::greater<>());
    const int thread = m.ready.back().second;
    m.ready.pop_back();
    enter(thread);
    if (!m.fault.empty()) return;
    if (m.fibers[thread]->wait != Wait::kEnd) continue;
    warp_end(thread);
    try_barrier();
    if (!m.fault.empty()) return;
  }
  if (m.alive > 0) report_deadlock();
}

inline cudaError_t run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
  Machine& m = machine();
  m.fault.clear();
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > kMostShared) return cudaErrorInvalidValue;
  make_fibers(static_cast<int>(threads));
  m.threads = static_cast<int>(threads);
  m.body = body;
  m.state = m.seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull;
  blockDim = block;
  gridDim = grid;
  std::vector<std::uint64_t> blocks_left(blocks);
  for (std::uint64_t i = 0; i < blocks; ++i) blocks_left[i] = i;
  for (std::uint64_t i = blocks; m.seed != 0 && i > 1; --i) std::swap(blocks_left[i - 1], blocks_left[m.random() % i]);
  for (const std::uint64_t i : blocks_left) {
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    m.shared.resize((shared_bytes + kTail + 7) / 8);
    std::memset(m.shared.data(), kPoison, m.shared.size() * 8);
    run_block();
    const auto* bytes = reinterpret_cast<const unsigned char*>(m.shared.data());
    for (std::size_t at = shared_bytes; at < m.shared.size() * 8 && m.fault.empty(); ++at)
      if (bytes[at] != kPoison)
        m.fault = "block " + std::to_string(blockIdx.x) + ": byte " + std::to_string(at) +
                  " of shared memory was written, but the launch asked for " + std::to_string(shared_bytes) + ".";
    if (m.fault.empty()) continue;
    for (const auto& fiber : m.fibers) {  // whoever was in the middle of the kernel begins anew
      if (fiber->wait != Wait::kEnd) fiber->begun = false;
    }
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace latentcot::cuda::on_cpu

inline void __syncthreads(std::source_location at = std::source_location::current()) {
  latentcot::cuda::on_cpu::barrier(false, at);
}
inline int __syncthreads_or(int vote, std::source_location at = std::source_location::current()) {
  latentcot::cuda::on_cpu::barrier(vote != 0, at);
  return latentcot::cuda::on_cpu::machine().block_vote_or;
}
inline int __syncthreads_count(int vote, std::source_location at = std::source_location::current()) {
  latentcot::cuda::on_cpu::barrier(vote != 0, at);
  return latentcot::cuda::on_cpu::machine().block_vote_count;
}

// What the last launch that failed found; the number says less.
inline const char* cudaGetErrorString(cudaError_t) { return latentcot::cuda::on_cpu::fault().c_str(); }
