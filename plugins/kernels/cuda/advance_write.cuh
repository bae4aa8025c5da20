// RaggedAdvance on a GPU, writing down what was decided: as write_advance of ragged_advance_plan.hpp.
#pragma once

#include "advance_starts.cuh"

namespace latentcot::cuda::advance_detail {

// Finished sequences give their slots back: place by place, step by step, by position.
__device__ inline void write_finished(const Plan& plan) {
  const AdvanceCall& call = plan.call;
  std::int64_t free = plan.free;
  for (std::int32_t n = 0; n < call.finished; ++n) {
    const std::int32_t s = plan.finishing[n];
    for (std::int64_t begin = 0; begin < cells_of(call, s); begin += blockDim.x) {
      const std::int64_t at = begin + threadIdx.x;
      const bool there = at < cells_of(call, s);
      const std::int32_t slot = there ? cell_at(call, s, at) : kNoSlot;
      int more;
      const int before = count_before(slot >= 0, plan.scratch.parts, &more);
      if (slot >= 0) {
        call.free_slots[free + before] = slot;
        cell_at(call, s, at) = kNoSlot;
      }
      free += more;
    }
    if (threadIdx.x == 0) plan.sequences[std::int64_t(s) * kSequenceColumns + kStatus] = kDone;
  }
  __syncthreads();  // rows take what was given back
}

// Rows that go on, those that start and dead ones; the slots they take.
__device__ inline void write_rows(const Plan& plan, const AdvanceOutputs& out) {
  const AdvanceCall& call = plan.call;
  const std::int64_t top = plan.free + plan.freed - 1, first_fresh = call.live - call.fresh_count;
  std::int64_t given = 0;
  for (std::int64_t begin = 0; begin < call.live; begin += blockDim.x) {
    const std::int64_t i = begin + threadIdx.x;
    const std::int32_t* row = call.rows + i * kRowColumns;
    const bool without = i < call.live && row[kRowSlot] == kNoSlot;
    const std::int32_t held = without ? cell_of(call, row) : kNoSlot;  // jacobi: a row keeps the slot of its cell
    const bool wants = without && held == kNoSlot;
    int more;
    const int before = count_before(wants, plan.scratch.parts, &more);
    if (i < call.live) {
      const std::int32_t slot = wants ? call.free_slots[top - given - before] : without ? held : row[kRowSlot];
      if (wants) cell_of(call, row) = slot;
      std::int32_t* next = out.rows + i * kRowColumns;
      for (int column = 0; column < kRowSlot; ++column) next[column] = row[column];
      next[kRowSlot] = slot;
      out.fresh[i] = i < first_fresh ? 0 : call.fresh[i - first_fresh];
    }
    given += more;
  }
  for (std::int64_t i = call.live + threadIdx.x; i < call.row_count; i += blockDim.x) {
    const std::int64_t j = i - call.live;
    if (j >= plan.started) {
      write_dead(out.rows, i, i + 1);
      out.fresh[i] = 0;
      continue;
    }
    const Start start = start_of(plan, j);
    const std::int32_t slot = call.free_slots[top - plan.needed - j];
    slot_cell(call, start.place, 1, start.position) = slot;
    std::int32_t* row = out.rows + i * kRowColumns;
    row[kRowSequence] = start.place;
    row[kRowPosition] = start.position;
    row[kRowStep] = 1;
    row[kRowSlot] = slot;
    out.fresh[i] = call.tokens[start.place * call.positions + start.position];
  }
}

// The table `sequences`, counters and `again`.
__device__ inline void write_tables(const Plan& plan, const AdvanceOutputs& out) {
  const AdvanceCall& call = plan.call;
  for (std::int64_t n = threadIdx.x; n < call.ordered; n += blockDim.x) {
    const std::int32_t s = call.order[n];
    std::int32_t* sequence = plan.sequences + std::int64_t(s) * kSequenceColumns;
    const std::int32_t* before = sequence_of(call, s);
    if (before[kStatus] != kRunning) continue;
    sequence[kNextPosition] = before[kNextPosition] + call.fates[s].starts;
    sequence[kLiveRows] = call.fates[s].live;
  }
  if (threadIdx.x > 0) return;
  const std::int64_t free = plan.free + plan.freed - plan.needed - plan.started, used = call.slot_count - free;
  call.counters[kFreeSlots] = free;
  call.counters[kReserved] = call.reserved;
  call.counters[kFinished] += call.finished;
  if (call.counters[kStalled] >= 0) call.counters[kStalled] = call.stalled;  // a fault stays
  if (used > call.counters[kMostSlots]) call.counters[kMostSlots] = used;
  *out.again = call.again != 0;
}

// No row lives, no table changes.
__device__ inline void write_fault(const AdvanceCall& call, const AdvanceOutputs& out) {
  for (std::int64_t i = threadIdx.x; i < call.row_count; i += blockDim.x) {
    write_dead(out.rows, i, i + 1);
    out.fresh[i] = 0;
  }
  if (threadIdx.x > 0) return;
  *out.again = false;
  report_fault(call.counters, kAdvanceFault);
}

}  // namespace latentcot::cuda::advance_detail
