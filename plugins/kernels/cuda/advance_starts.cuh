// RaggedAdvance on a GPU, which tokens start: see the contract, rule 3.
//
// How rows are shared in rounds follows from sums over the places, so as long as slots last for all that get a row, no
// thread waits for another. Where they do not, one thread goes through the tokens: plan_starts of ragged_advance_plan.hpp.
#pragma once

#include "advance_plan.cuh"

namespace latentcot::cuda::advance_detail {

// Tokens that place s could start if rows and slots never ended: its newest, when only that one is left, and others.
struct Wish {
  std::int32_t newest, others;
};

__device__ inline Wish wish_of(const AdvanceCall& call, std::int32_t s) {
  const std::int32_t* sequence = sequence_of(call, s);
  const std::int32_t most_live = call.rules.token_major ? 1 : call.control[kSequenceRows];
  const std::int32_t room = Greatest()(most_live - call.fates[s].live, 0);
  const std::int32_t all = Least()(startable(call, s, 0), room);
  if (sequence[kNextPosition] == sequence[kLength] - 1) return {all, 0};  // startable: at most 1
  return {0, all};
}

// What `rounds` rounds give to a place that wishes for `others`.
__device__ inline std::int64_t in_rounds(std::int32_t others, std::int64_t rounds) {
  return Least()(std::int64_t(others), rounds * kRoundTokens);
}

// What all places get in `rounds` rounds.
__device__ inline std::int64_t sum_rounds(const Plan& plan, std::int64_t rounds) {
  std::int64_t sum = 0;
  for (std::int64_t n = threadIdx.x; n < plan.call.ordered; n += blockDim.x)
    sum += in_rounds(wish_of(plan.call, plan.call.order[n]).others, rounds);
  return sum_block(sum, plan.scratch.long_parts);
}

// first_start[n] = how many of its newest tokens (1 or none) place order[n] starts. Returns how many there are.
__device__ inline std::int64_t start_newest(const Plan& plan, std::int64_t room) {
  std::int64_t wished = 0;
  for (std::int64_t begin = 0; begin < plan.call.ordered; begin += blockDim.x) {
    const std::int64_t n = begin + threadIdx.x;
    const bool wishes = n < plan.call.ordered && wish_of(plan.call, plan.call.order[n]).newest > 0;
    int more;
    const int before = count_before(wishes, plan.scratch.parts, &more);
    if (n < plan.call.ordered) plan.first_start[n] = wishes && wished + before < room;
    wished += more;
  }
  return Least()(wished, room);
}

// Adds to first_start[n] what place order[n] gets of `room` rows: whole rounds, then a last one that begins where rounds do.
__device__ inline void share_rounds(const Plan& plan, std::int64_t room) {
  const AdvanceCall& call = plan.call;
  std::int64_t rounds = 0, too_many = call.positions / kRoundTokens + 1;
  if (sum_rounds(plan, too_many) <= room) rounds = too_many;
  while (too_many - rounds > 1) {
    const std::int64_t middle = (rounds + too_many) / 2;
    if (sum_rounds(plan, middle) <= room) rounds = middle;
    else too_many = middle;
  }
  room -= sum_rounds(plan, rounds);
  const std::int64_t first = call.ordered > 0 ? call.counters[kPasses] % call.ordered : 0;
  for (std::int64_t begin = 0; begin < call.ordered; begin += blockDim.x) {
    const std::int64_t turn = begin + threadIdx.x, n = (first + turn) % call.ordered;
    std::int64_t whole = 0, last = 0, all;
    if (turn < call.ordered) {
      const std::int32_t others = wish_of(call, call.order[n]).others;
      whole = in_rounds(others, rounds);
      last = in_rounds(others, rounds + 1) - whole;
    }
    const std::int64_t before = sum_before(last, plan.scratch.long_parts, &all);
    if (turn < call.ordered)
      plan.first_start[n] += std::int32_t(whole + Least()(last, Greatest()(room - before, std::int64_t(0))));
    room -= all;
  }
}

// first_start becomes the number of those before. `of(n)`: how many tokens start at order[n].
template <class Count>
__device__ inline void add_up_starts(Plan& plan, Count of) {
  plan.started = 0;
  for (std::int64_t begin = 0; begin < plan.call.ordered; begin += blockDim.x) {
    const std::int64_t n = begin + threadIdx.x;
    std::int64_t more;
    const std::int64_t before = sum_before(n < plan.call.ordered ? std::int64_t(of(n)) : 0, plan.scratch.long_parts, &more);
    if (n < plan.call.ordered) plan.first_start[n] = std::int32_t(plan.started + before);
    plan.started += more;
  }
  if (threadIdx.x == 0) plan.first_start[plan.call.ordered] = std::int32_t(plan.started);
  __syncthreads();
}

// Place and position of the token that starts as number j.
struct Start {
  std::int32_t place, position;
};

__device__ inline Start start_of(const Plan& plan, std::int64_t j) {
  std::int64_t low = 0, high = plan.call.ordered;  // first_start[low] <= j < first_start[high]
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (plan.first_start[middle] <= j) low = middle;
    else high = middle;
  }
  const std::int32_t s = plan.call.order[low];
  return {s, sequence_of(plan.call, s)[kNextPosition] + std::int32_t(j) - plan.first_start[low]};
}

// Takes the starts as they are, unless slots do not last for them: then one thread decides anew. False after a fault.
__device__ inline bool reserve_slots(Plan& plan) {
  AdvanceCall& call = plan.call;
  std::int64_t limits = 0;
  bool good = true;
  for (std::int64_t j = threadIdx.x; j < plan.started; j += blockDim.x) {
    const Start start = start_of(plan, j);
    limits += step_limit(call, start.place, start.position);
    good = good && call.tokens[start.place * call.positions + start.position] >= 0 &&
           slot_cell(call, start.place, 1, start.position) == kNoSlot;
  }
  limits = sum_block(limits, plan.scratch.long_parts);
  if (limits <= call.free_left - call.reserved) {
    for (std::int64_t n = threadIdx.x; n < call.ordered; n += blockDim.x) {
      AdvancePlace& fate = call.fates[call.order[n]];
      fate.starts = plan.first_start[n + 1] - plan.first_start[n];
      fate.live += fate.starts;
    }
    __syncthreads();  // whoever still compares with free_left and reserved
    if (threadIdx.x == 0) {
      call.free_left -= plan.started;
      call.reserved += limits - plan.started;
      call.row_total += plan.started;
    }
    return !__syncthreads_or(!good);
  }
  __syncthreads();
  if (threadIdx.x == 0) plan.scratch.good = latentcot::advance_detail::plan_starts(&call, &plan.scratch.message);
  __syncthreads();
  if (!plan.scratch.good) return false;
  add_up_starts(plan, [&](std::int64_t n) { return call.fates[call.order[n]].starts; });
  return true;
}

// Decides what starts, and whether the passes go on.
__device__ inline bool decide_starts(Plan& plan) {
  AdvanceCall& call = plan.call;
  const bool waits = call.control[kLockstep] && call.live > 0;
  const std::int64_t newest = start_newest(plan, waits ? 0 : call.row_count - call.live);
  const std::int64_t most = Least()(call.row_count, std::int64_t(call.control[kMaxRows]));
  const std::int64_t room = waits ? 0 : most - call.live - newest;
  __syncthreads();  // another thread adds to what this one wrote
  if (room > 0) share_rounds(plan, room);
  __syncthreads();
  add_up_starts(plan, [&](std::int64_t n) { return plan.first_start[n]; });
  if (!reserve_slots(plan)) return false;
  // slots given back lie on top of the stack; what is taken beyond them comes from its old part
  bool good = true;
  const std::int64_t taken = plan.needed + plan.started - plan.freed;
  for (std::int64_t i = threadIdx.x; i < taken; i += blockDim.x) {
    const std::int32_t slot = call.free_slots[plan.free - 1 - i];
    good = good && slot >= 0 && slot < call.slot_count;
  }
  if (__syncthreads_or(!good)) return false;
  bool wait_for_slots = false;
  for (std::int64_t s = threadIdx.x; s < call.places && call.row_total == 0; s += blockDim.x)
    wait_for_slots = wait_for_slots || startable(call, s, 0) > 0;
  const bool stalled = __syncthreads_or(wait_for_slots);
  if (threadIdx.x == 0) {
    call.stalled = stalled;
    call.again =
      call.row_total > 0 && !(call.control[kYieldWhenDone] && call.counters[kFinished] + call.finished > 0);
  }
  return true;
}

}  // namespace latentcot::cuda::advance_detail
