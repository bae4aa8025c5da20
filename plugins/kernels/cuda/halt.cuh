// RaggedHalt on a GPU: the contract is that of latentcot_export/ops/packed_halt.py with fixed = 1, see ragged_halt.hpp.
//
// One launch. Every block decides about all rows, because where a row goes depends on those before it: at most a few
// thousand decisions, which costs less than a second launch. Then it writes the outputs and cells of its own rows; what the
// rows of a sequence share, and the counters, are the first block's.
#pragma once

#include "../ragged_halt_plan.hpp"
#include "block.cuh"

namespace latentcot::cuda {

// How many rows the outputs hold, at the begin of the workspace once the kernel has run.
struct HaltCounts {
  std::int64_t going_on, head_count;
};

namespace halt_detail {

using namespace latentcot::halt_detail;

constexpr int kMostThreads = 256;  // as many as the 16-byte parts of a row of 1024: most models have rows of 576 to 4096
// Two for each of the 108 to 132 processors of the GPUs we build for (A100, H100, H200): one row each while decoding, and
// few enough decisions made twice while a prompt runs.
constexpr std::int64_t kMostBlocks = 256;
constexpr std::int64_t kSharedPlaces = 2048;  // 16 KiB of row counts, a third of what a block has without asking
// Parts that a block writes at most: an index of them divides faster in 32 bits.
constexpr std::int64_t kMostParts = std::int64_t(1) << 30;

struct Task {
  HaltCall call;
  HaltOutputs out;
  HaltCounts* counts;
  std::int32_t* live;  // [2, places] of the workspace: rows of each place, then those that leave; null: in shared memory
  std::int64_t rows_per_block;
};

// What row i becomes; share 0 and no place in the outputs where it is dead or has a fault.
__device__ inline bool decide(const HaltCall& call, std::int64_t i, HaltRow* fate, bool* lives) {
  *fate = {0.0f, 0.0f, -1, -1, false, false};
  *lives = false;
  const std::int32_t* row = call.rows + i * kRowColumns;
  if (call.rules.fixed && is_dead(call.rows, i)) return true;
  if (!row_fits(row, call.places, call.positions, call.rules.max_steps, call.sequences)) return false;
  *lives = true;
  HaltRow found;
  if ((row[kRowStep] == 1) != is_fresh(call, i) || !decide_row(call, i, &found)) return false;
  *fate = found;
  // a live row behind a dead one is worked on, but the order was broken by somebody
  return !(call.rules.fixed && i > 0 && is_dead(call.rows, i - 1));
}

// Everything about input row i but its vectors and what belongs to its sequence; and dead rows at i in the outputs.
__device__ inline void write_row(const Task& task, std::int64_t i, const HaltRow& fate, const HaltCounts& counts) {
  const HaltCall& call = task.call;
  const HaltOutputs& out = task.out;
  const std::int32_t* row = call.rows + i * kRowColumns;
  if (i >= counts.going_on) {
    write_dead(out.rows, i, i + 1);
    out.reach[i] = 0.0f;
  }
  if (i >= counts.head_count) {
    write_dead(out.head_rows, i, i + 1);
    out.head_index[i] = 0;
  }
  if (fate.next < 0 && fate.head < 0 && !fate.ends) return;  // dead, at fault, or done long ago: its cells stay
  const std::int64_t cell = std::int64_t(row[kRowSequence]) * call.positions + row[kRowPosition];
  if (fate.ends) call.depths[cell] = row[kRowStep];
  if (call.rules.stop == kStopTail && row[kRowStep] == 1 && call.rules.max_steps > 1)
    weigh_steps(call, i, call.weights + cell * call.rules.max_steps);
  if (fate.next >= 0) {
    std::int32_t* next = out.rows + std::int64_t(fate.next) * kRowColumns;
    next[kRowSequence] = row[kRowSequence];
    next[kRowPosition] = row[kRowPosition];
    next[kRowStep] = row[kRowStep] + 1;
    next[kRowSlot] = fate.frozen ? kReadsOnly : kNoSlot;
    out.reach[fate.next] = fate.next_reach;
  } else if (fate.head >= 0) {
    std::int32_t* head = out.head_rows + std::int64_t(fate.head) * kRowColumns;
    for (int column = 0; column < kRowColumns; ++column) head[column] = row[column];
    out.head_index[fate.head] = i;
  }
}

__device__ inline float mixed(float before, float share, float z) { return before + share * z; }
__device__ inline float4 mixed(float4 a, float share, float4 z) {
  return make_float4(a.x + share * z.x, a.y + share * z.y, a.z + share * z.z, a.w + share * z.w);
}

// Part d of the vectors of input row i, and zeros at i where the outputs are dead. Part: float or float4.
template <class Part>
__device__ inline void write_part(const Task& task, std::int64_t i, std::int64_t d, std::int64_t parts,
                                  const HaltRow& fate, const HaltCounts& counts) {
  const HaltCall& call = task.call;
  const HaltOutputs& out = task.out;
  const auto in = [&](const float* rows) { return reinterpret_cast<const Part*>(rows)[i * parts + d]; };
  const auto at = [&](float* rows, std::int64_t row) { return reinterpret_cast<Part*>(rows) + row * parts + d; };
  if (i >= counts.going_on) *at(out.latent, i) = *at(out.mix, i) = Part{};
  if (i >= counts.head_count) *at(out.head_mix, i) = Part{};
  if (fate.next < 0 && fate.head < 0) return;
  const Part mix = mixed(is_fresh(call, i) ? Part{} : in(call.mix), fate.share, in(call.z));
  *(fate.next >= 0 ? at(out.mix, fate.next) : at(out.head_mix, fate.head)) = mix;
  if (fate.next >= 0) *at(out.latent, fate.next) = in(fate.frozen ? call.frozen : call.next_input);
}

template <class Part>
__device__ inline void write_vectors(const Task& task, std::int64_t first, std::int64_t rows, const HaltRow* own,
                                     const HaltCounts& counts) {
  const unsigned parts = unsigned(task.call.hidden * sizeof(float) / sizeof(Part));
  for (unsigned n = threadIdx.x; n < unsigned(rows) * parts; n += blockDim.x) {
    const unsigned row = n / parts;
    write_part<Part>(task, first + row, n - row * parts, parts, own[row], counts);
  }
}

// What the first block does alone: live_rows and counters, and that they were right before.
__device__ inline bool write_shared_tables(const Task& task, const HaltCounts& counts, std::int64_t executed,
                                           const int* live) {
  const HaltCall& call = task.call;
  bool good = true;
  for (std::int64_t s = threadIdx.x; s < call.places; s += blockDim.x) {
    std::int32_t* sequence = call.sequences + s * kSequenceColumns;
    good = good && (sequence[kStatus] != kRunning || sequence[kLiveRows] == live[s]);
    // unsigned: after a fault any number may stand there
    sequence[kLiveRows] = std::int32_t(unsigned(sequence[kLiveRows]) - unsigned(live[call.places + s]));
  }
  if (threadIdx.x > 0) return good;
  good = good && counter_fits(call.counters[kPasses]) && counter_fits(call.counters[kExecutedRows]) &&
         counter_fits(call.counters[kHeadRows]);
  call.counters[kPasses] += 1;
  call.counters[kExecutedRows] += executed;
  call.counters[kHeadRows] += counts.head_count;
  *task.counts = counts;
  return good;
}

// Part: what one thread copies at a time, float or float4.
template <class Part>
__global__ void __launch_bounds__(kMostThreads) halt_rows(const Task task) {
  LATENTCOT_SHARED(int, parts);
  HaltRow* const own = reinterpret_cast<HaltRow*>(parts + kBlockParts);
  const HaltCall& call = task.call;
  const bool leads = blockIdx.x == 0;
  std::int32_t* const live = task.live ? task.live : reinterpret_cast<std::int32_t*>(own + task.rows_per_block);
  for (std::int64_t s = threadIdx.x; leads && s < 2 * call.places; s += blockDim.x) live[s] = 0;
  const std::int64_t first = std::int64_t(blockIdx.x) * task.rows_per_block;
  HaltCounts counts = {0, 0};
  std::int64_t executed = 0;
  bool good = true;
  __syncthreads();
  for (std::int64_t begin = 0; begin < call.row_count; begin += blockDim.x) {
    const std::int64_t i = begin + threadIdx.x;
    HaltRow fate = {0.0f, 0.0f, -1, -1, false, false};
    bool lives = false;
    if (i < call.row_count) good = decide(call, i, &fate, &lives) && good;
    int found;
    const int before = count_two_before(fate.next >= 0, fate.head >= 0, parts, &found);
    if (fate.next >= 0) fate.next = std::int32_t(counts.going_on + (before & 0xffff));
    if (fate.head >= 0) fate.head = std::int32_t(counts.head_count + (before >> 16));
    counts.going_on += found & 0xffff;
    counts.head_count += found >> 16;
    if (i >= first && i < first + task.rows_per_block && i < call.row_count) own[i - first] = fate;
    if (!leads) continue;
    executed += lives;
    if (lives) atomicAdd(live + call.rows[i * kRowColumns + kRowSequence], 1);
    if (lives && fate.next < 0) atomicAdd(live + call.places + call.rows[i * kRowColumns + kRowSequence], 1);
  }
  __syncthreads();
  const std::int64_t rows = Least()(task.rows_per_block, Greatest()(call.row_count - first, std::int64_t(0)));
  for (std::int64_t n = threadIdx.x; n < rows; n += blockDim.x) write_row(task, first + n, own[n], counts);
  if (leads) {
    executed = sum_block(int(executed), parts);
    good = write_shared_tables(task, counts, executed, live) && good;
    if (__syncthreads_or(!good) && threadIdx.x == 0) report_fault(call.counters, kHaltFault);
  }
  write_vectors<Part>(task, first, rows, own, counts);
}

}  // namespace halt_detail

// Bytes of device memory that launch_halt works in, aligned to 8; they begin with HaltCounts.
inline std::size_t halt_workspace(const HaltCall& call) {
  const bool shared = call.places <= halt_detail::kSharedPlaces;
  return sizeof(HaltCounts) + (shared ? 0 : 2 * sizeof(std::int32_t) * std::size_t(call.places));
}

// Outputs of `row_count` rows in device memory, none of it an input of the call.
inline cudaError_t launch_halt(const HaltCall& call, const HaltOutputs& out, void* workspace, Stream stream) {
  using namespace halt_detail;
  Task task = {call, out, static_cast<HaltCounts*>(workspace), nullptr, 1};
  if (call.places > kSharedPlaces) task.live = reinterpret_cast<std::int32_t*>(task.counts + 1);
  bool wide = call.hidden % 4 == 0;
  for (const float* at : {call.z, call.mix, call.next_input, call.frozen, static_cast<const float*>(out.latent),
                          static_cast<const float*>(out.mix), static_cast<const float*>(out.head_mix)})
    wide = wide && aligned_to_16(at);
  const std::int64_t fitting = kMostParts / (call.hidden + 1) + 1;
  const std::int64_t wanted = (call.row_count + kMostBlocks - 1) / kMostBlocks;
  task.rows_per_block = Greatest()(Least()(wanted, fitting), std::int64_t(1));
  const std::int64_t blocks = (call.row_count + task.rows_per_block - 1) / task.rows_per_block;
  const std::size_t bytes = kBlockParts * sizeof(int) + std::size_t(task.rows_per_block) * sizeof(HaltRow) +
                            (task.live ? 0 : 2 * sizeof(std::int32_t) * std::size_t(call.places));
  const std::int64_t work = Greatest()(call.row_count, task.rows_per_block * call.hidden / (wide ? 4 : 1));
  return launch(wide ? halt_rows<float4> : halt_rows<float>, dim3(unsigned(Greatest()(blocks, std::int64_t(1)))),
                dim3(unsigned(threads_for(work, kMostThreads))), bytes, stream, task);
}

}  // namespace latentcot::cuda
