// RaggedAdvance on a GPU: one block checks every value and decides what finishes. advance_starts.cuh goes on.
#pragma once

#include "../ragged_advance_plan.hpp"
#include "block.cuh"

namespace latentcot::cuda {

struct AdvanceOutputs {
  std::int32_t *rows, *fresh;  // [row_count, 4] and [row_count]: the token of a row that starts stands at its index
  bool* again;
};

namespace advance_detail {

using namespace latentcot::advance_detail;

// Shared memory of the block beside the places.
struct Scratch {
  AdvanceCall call;
  Message message;  // what plan_starts says: nobody reads it, but it is too large for a thread
  int parts[kBlockParts];
  std::int64_t long_parts[kBlockParts];
  int good;
};

// What is kept of every place, where threads reach it fast: the table `sequences`, and two numbers of each place.
constexpr std::size_t kPlaceBytes = sizeof(AdvancePlace) + (kSequenceColumns + 2) * sizeof(std::int32_t);
// With Scratch below the 48 KiB that a block has without asking: 731 places.
constexpr std::size_t kSharedTables = 40 * 1024;

constexpr std::size_t table_bytes(std::int64_t places) {
  return kPlaceBytes * std::size_t(places) + sizeof(std::int32_t);
}

// What the threads know together. `call` is in shared memory, its `sequences` are a copy, its `fates` are filled.
struct Plan {
  AdvanceCall& call;
  Scratch& scratch;
  std::int32_t* sequences;    // [places, 8], the table itself
  std::int32_t* finishing;    // [finished] places, ascending
  std::int32_t* first_start;  // [ordered + 1] tokens that start at the places of `order` before this one
  std::int64_t free;          // slots on the stack before anything changes
  std::int64_t needed, freed, started;
};

__device__ inline Plan plan_of(const AdvanceCall& given, unsigned char* shared, unsigned char* workspace) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared);
  unsigned char* const tables = workspace ? workspace : shared + sizeof(Scratch);
  AdvancePlace* const fates = reinterpret_cast<AdvancePlace*>(tables);
  std::int32_t* const kept = reinterpret_cast<std::int32_t*>(fates + given.places);
  std::int32_t* const finishing = kept + given.places * kSequenceColumns;
  if (threadIdx.x == 0) {
    scratch.call = given;
    scratch.call.fates = fates;
    scratch.call.sequences = kept;
    scratch.call.reserved = 0;
    scratch.call.finished = scratch.call.stalled = 0;
    scratch.call.rules.fixed = true;
  }
  for (std::int64_t s = threadIdx.x; s < given.places; s += blockDim.x) fates[s] = {};
  for (std::int64_t n = threadIdx.x; n < given.places * kSequenceColumns; n += blockDim.x) kept[n] = given.sequences[n];
  __syncthreads();
  return {scratch.call, scratch, given.sequences, finishing, finishing + given.places, given.counters[kFreeSlots], 0, 0, 0};
}

// The first index below `count` whose entry, `stride` apart, is -1; `count` where there is none.
__device__ inline std::int64_t first_none(const std::int32_t* entries, std::int64_t count, int stride,
                                          std::int64_t* parts) {
  std::int64_t first = count;
  for (std::int64_t i = threadIdx.x; i < count && first == count; i += blockDim.x)
    if (entries[i * stride] == -1) first = i;
  return merge_block(first, count, Least(), parts);
}

__device__ inline bool control_fits(const AdvanceCall& call) {
  constexpr std::int32_t most = 0x7fffffff;  // not allowed itself: one more must be a number
  return call.control[kMaxRows] >= 0 && call.control[kMaxRows] < most && call.control[kSequenceRows] >= 1 &&
         call.control[kSequenceRows] < most && call.counters[kFreeSlots] >= 0 &&
         call.counters[kFreeSlots] <= call.slot_count && counter_fits(call.counters[kPasses]) &&
         counter_fits(call.counters[kFinished]);
}

__device__ inline bool place_fits(const AdvanceCall& call, std::int64_t s) {
  const std::int32_t* sequence = sequence_of(call, s);
  if (sequence[kStatus] != kRunning) return sequence[kStatus] == kEmpty || sequence[kStatus] == kDone;
  return sequence[kLength] >= 0 && sequence[kLength] <= call.positions && sequence[kNextPosition] >= 0 &&
         sequence[kNextPosition] <= sequence[kLength] && sequence[kEnd] >= 0 && sequence[kEnd] <= call.positions;
}

// Control, places and order, as check_control, check_places and check_order.
__device__ inline bool check_tables(Plan& plan) {
  AdvanceCall& call = plan.call;
  bool good = control_fits(call);
  const std::int64_t ordered = first_none(call.order, call.places, 1, plan.scratch.long_parts);
  const std::int64_t live = first_none(call.rows, call.row_count, kRowColumns, plan.scratch.long_parts);
  if (threadIdx.x == 0) {
    call.ordered = ordered;
    call.live = call.row_total = live;
    call.fresh_total = call.fresh_count;
  }
  for (std::int64_t n = threadIdx.x; n < ordered; n += blockDim.x) {
    const std::int32_t s = call.order[n];
    good = good && s >= 0 && s < call.places && atomicAdd(&call.fates[s].ordered, 1) == 0;
  }
  __syncthreads();
  for (std::int64_t s = threadIdx.x; s < call.places; s += blockDim.x)
    good = good && place_fits(call, s) && (sequence_of(call, s)[kStatus] != kRunning || call.fates[s].ordered);
  return !__syncthreads_or(!good);
}

__device__ inline std::int32_t& cell_of(const AdvanceCall& call, const std::int32_t* row) {
  return slot_cell(call, row[kRowSequence], row[kRowStep], row[kRowPosition]);
}

// Whether the values of live row i agree with the tables while no cell has a mark, as check_advance_row.
__device__ inline bool advance_row_fits(const AdvanceCall& call, std::int64_t i) {
  const std::int32_t* row = call.rows + i * kRowColumns;
  if (!row_fits(row, call.places, call.positions, call.max_steps, call.sequences)) return false;
  const std::int32_t s = row[kRowSequence], t = row[kRowPosition], k = row[kRowStep], slot = row[kRowSlot];
  const bool reads_only = slot == kReadsOnly, jacobi = call.rules.jacobi;
  const std::int32_t cell = cell_of(call, row);
  const bool keeps = jacobi && slot == kNoSlot && cell >= 0 && cell < call.slot_count;
  return slot >= kReadsOnly && slot < call.slot_count && t < sequence_of(call, s)[kNextPosition] &&
         k <= step_limit(call, s, t) && (k == 1) == (i >= call.live - call.fresh_count) &&
         (cell == (reads_only ? kNoSlot : slot) || keeps) &&
         (k == 1 || reads_only || slot_cell(call, s, k - 1, t) >= 0) &&
         (k == call.max_steps || jacobi || slot_cell(call, s, k + 1, t) == kNoSlot);
}

// Whether no row stands beside row i in its token, once all have their marks: only jacobi lets several steps run at once.
__device__ inline bool runs_alone(const AdvanceCall& call, const std::int32_t* row) {
  const std::int32_t s = row[kRowSequence], t = row[kRowPosition], k = row[kRowStep];
  return (k == 1 || row[kRowSlot] == kReadsOnly || slot_cell(call, s, k - 1, t) >= kNoSlot) &&
         (k == call.max_steps || slot_cell(call, s, k + 1, t) >= kNoSlot);
}

// The packed rows, as check_rows; counts what they need and may still ask for, and those of each place.
__device__ inline bool check_rows(Plan& plan) {
  AdvanceCall& call = plan.call;
  bool good = call.fresh_count <= call.live;
  std::int64_t needed = 0, reserved = 0;
  for (std::int64_t i = threadIdx.x; i < call.row_count; i += blockDim.x) {
    if (i >= call.live) {
      good = good && is_dead(call.rows, i);
    } else if (advance_row_fits(call, i)) {
      const std::int32_t* row = call.rows + i * kRowColumns;
      needed += row[kRowSlot] == kNoSlot && cell_of(call, row) == kNoSlot;
      atomicAdd(&call.fates[row[kRowSequence]].live, 1);
    } else {
      good = false;
    }
  }
  if (__syncthreads_or(!good)) return false;
  // every row claims its cell with a mark: a second row of the same one finds it claimed
  for (std::int64_t i = threadIdx.x; i < call.live; i += blockDim.x) {
    std::int32_t& cell = cell_of(call, call.rows + i * kRowColumns);
    const std::int32_t held = cell;
    good = held >= kNoSlot && atomicCAS(&cell, held, marked(held)) == held && good;
  }
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < call.live; i += blockDim.x) {
    const std::int32_t* row = call.rows + i * kRowColumns;
    good = good && (call.rules.jacobi || runs_alone(call, row));
    reserved += still_asks(call, row);
  }
  const bool at_fault = __syncthreads_or(!good);
  for (std::int64_t i = threadIdx.x; i < call.live; i += blockDim.x) {
    std::int32_t& cell = cell_of(call, call.rows + i * kRowColumns);
    cell = unmarked(cell);  // of two rows of one cell either may be first
  }
  plan.needed = sum_block(needed, plan.scratch.long_parts);
  reserved = sum_block(reserved, plan.scratch.long_parts);
  if (threadIdx.x == 0) call.reserved = reserved;
  return !at_fault;  // the barriers of the sums stand between the cells and who reads them next
}

// Cells of a finishing place that may hold a slot, step by step, by position; cell n of them.
__device__ inline std::int64_t cells_of(const AdvanceCall& call, std::int32_t s) {
  return std::int64_t(call.max_steps) * sequence_of(call, s)[kNextPosition];
}
__device__ inline std::int32_t& cell_at(const AdvanceCall& call, std::int32_t s, std::int64_t n) {
  const std::int64_t width = sequence_of(call, s)[kNextPosition];
  return slot_cell(call, s, n / width + 1, n % width);
}

// Which sequences are done, and what they give back, as plan_finish; then whether all who go on find a slot.
__device__ inline bool decide_finish(Plan& plan) {
  AdvanceCall& call = plan.call;
  bool good = true;
  std::int32_t finished = 0;
  for (std::int64_t begin = 0; begin < call.places; begin += blockDim.x) {
    const std::int64_t s = begin + threadIdx.x;
    bool done = false;
    if (s < call.places && sequence_of(call, s)[kStatus] == kRunning) {
      const std::int32_t* sequence = sequence_of(call, s);
      good = good && sequence[kLiveRows] == call.fates[s].live;
      done = call.fates[s].live == 0 && (sequence[kStopped] || sequence[kNextPosition] >= sequence[kEnd]);
      call.fates[s].finishes = done;
    }
    int more;
    const int before = count_before(done, plan.scratch.parts, &more);
    if (done) plan.finishing[finished + before] = std::int32_t(s);
    finished += more;
  }
  if (threadIdx.x == 0) call.finished = finished;
  if (__syncthreads_or(!good)) return false;
  std::int64_t freed = 0;
  for (std::int32_t n = 0; n < finished; ++n) {
    const std::int32_t s = plan.finishing[n];
    for (std::int64_t cell = threadIdx.x; cell < cells_of(call, s); cell += blockDim.x) {
      const std::int32_t slot = cell_at(call, s, cell);
      good = good && slot >= kNoSlot && slot < call.slot_count;
      freed += slot >= 0;
    }
  }
  plan.freed = finished > 0 ? sum_block(freed, plan.scratch.long_parts) : 0;
  const std::int64_t available = plan.free + plan.freed;
  good = good && available <= call.slot_count && plan.needed <= available;
  if (threadIdx.x == 0) call.free_left = available - plan.needed;
  return !__syncthreads_or(!good);
}

}  // namespace advance_detail
}  // namespace latentcot::cuda
