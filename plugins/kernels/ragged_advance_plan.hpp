// RaggedAdvance, the decisions: what finishes, which slots are needed, what starts. ragged_advance.hpp has the inputs.
#pragma once

#include "ragged_advance.hpp"

namespace latentcot {

namespace advance_detail {

inline constexpr const char* kOp = "RaggedAdvance";

LATENTCOT_FN std::int32_t* sequence_of(const AdvanceCall& call, std::int64_t s) {
  return call.sequences + s * kSequenceColumns;
}

// Cell of step k (1-based) of position t of place s.
LATENTCOT_FN std::int32_t& slot_cell(const AdvanceCall& call, std::int64_t s, std::int64_t k, std::int64_t t) {
  return call.slots[(s * call.max_steps + k - 1) * call.positions + t];
}

// A cell that a row has claimed while rows are checked; its own inverse, below -1 for every slot and for "none".
LATENTCOT_FN std::int32_t marked(std::int32_t slot) { return -3 - slot; }
LATENTCOT_FN std::int32_t unmarked(std::int32_t cell) { return cell < kNoSlot ? marked(cell) : cell; }

// The steps that rows of a token run at most.
LATENTCOT_FN std::int32_t step_limit(const AdvanceCall& call, std::int64_t s, std::int64_t t) {
  return call.rules.runs_on ? call.max_steps : depth_limit(call.forced_depth[s * call.positions + t], call.max_steps);
}

// Positions of place s that are known and wanted but not started, `starts` of them being on their way already.
LATENTCOT_FN std::int32_t startable(const AdvanceCall& call, std::int64_t s, std::int32_t starts) {
  const std::int32_t* sequence = sequence_of(call, s);
  if (sequence[kStatus] != kRunning || sequence[kStopped]) return 0;
  std::int32_t limit = sequence[kLength] < sequence[kEnd] ? sequence[kLength] : sequence[kEnd];
  limit = limit < sequence[kPause] ? limit : sequence[kPause];
  const std::int32_t next = sequence[kNextPosition] + starts;
  return next < limit ? limit - next : 0;
}

LATENTCOT_FN bool check_places(const AdvanceCall& call, Message* message) {
  const std::int64_t limit = call.positions + 1;
  for (std::int64_t s = 0; s < call.places; ++s) {
    call.fates[s] = {};
    const std::int32_t* sequence = sequence_of(call, s);
    if (!check_range(kOp, "sequences", s, "status", sequence[kStatus], kEmpty, kDone + 1, message)) return false;
    if (sequence[kStatus] != kRunning) continue;
    if (!check_range(kOp, "sequences", s, "length", sequence[kLength], 0, limit, message) ||
        !check_range(kOp, "sequences", s, "next_position", sequence[kNextPosition], 0,
                     std::int64_t(sequence[kLength]) + 1, message) ||
        !check_range(kOp, "sequences", s, "end", sequence[kEnd], 0, limit, message))
      return false;
  }
  return true;
}

LATENTCOT_FN bool check_order(AdvanceCall* call, Message* message) {
  for (call->ordered = 0; call->ordered < call->places && call->order[call->ordered] != -1; ++call->ordered) {
    const std::int32_t s = call->order[call->ordered];
    if (!check_range(kOp, "order", call->ordered, "", s, 0, call->places, message)) return false;
    if (call->fates[s].ordered++) {
      message->begin(kOp, "order", call->ordered) << " is " << s << ", which already stands before it.";
      return false;
    }
  }
  for (std::int64_t s = 0; s < call->places; ++s)
    if (sequence_of(*call, s)[kStatus] == kRunning && !call->fates[s].ordered) {
      message->begin(kOp, "order") << " lacks sequence " << s << ", which is running and would never start.";
      return false;
    }
  return true;
}

LATENTCOT_FN bool check_control(const AdvanceCall& call, Message* message) {
  constexpr std::int64_t most = 0x7fffffff;
  return check_range(kOp, "control", kMaxRows, "(max_rows)", call.control[kMaxRows], 0, most, message) &&
         check_range(kOp, "control", kSequenceRows, "(sequence_rows)", call.control[kSequenceRows], 1, most, message) &&
         check_range(kOp, "counters", kFreeSlots, "(free slots)", call.counters[kFreeSlots], 0, call.slot_count + 1,
                     message) &&
         check_counter(kOp, call.counters, kPasses, "(passes)", message) &&
         check_counter(kOp, call.counters, kFinished, "(finished)", message);
}

// One input row: its indices, that the cell of its step holds its slot, that the step before has one and the step after
// has none. Counts it, and whether it needs a slot.
LATENTCOT_FN bool check_advance_row(AdvanceCall* call, std::int64_t i, std::int64_t* needed, Message* message) {
  const std::int32_t* row = call->rows + i * kRowColumns;
  if (!check_row(kOp, row, i, call->places, call->positions, call->max_steps, call->sequences, message) ||
      !check_range(kOp, "rows", i, "slot", row[kRowSlot], kReadsOnly, call->slot_count, message))
    return false;
  const std::int32_t s = row[kRowSequence], t = row[kRowPosition], k = row[kRowStep];
  if (!check_range(kOp, "rows", i, "position", t, 0, sequence_of(*call, s)[kNextPosition], message)) return false;
  const std::int32_t limit = step_limit(*call, s, t);
  if (!check_range(kOp, "rows", i, "step", k, 1, std::int64_t(limit) + 1, message)) return false;
  if ((k == 1) != (i >= call->live - call->fresh_count)) {
    message->begin(kOp, "rows", i) << " runs step " << k << ", but the last " << call->fresh_count
                                   << " rows (one per entry of fresh) run step 1 and the others a later one.";
    return false;
  }
  std::int32_t& cell = slot_cell(*call, s, k, t);
  const bool reads_only = row[kRowSlot] == kReadsOnly, jacobi = call->rules.jacobi;
  const bool again = jacobi && row[kRowSlot] == kNoSlot && cell >= 0 && cell < call->slot_count;  // keeps its slot
  if (cell != (reads_only ? kNoSlot : row[kRowSlot]) && !again) {
    message->begin(kOp, "slots", s, k - 1, t) << " is " << unmarked(cell) << " and rows[" << i
                                              << "] has slot " << row[kRowSlot]
                                              << ", but a cell must hold the slot of its one row.";
    return false;
  }
  const std::int32_t before = k > 1 ? slot_cell(*call, s, k - 1, t) : 0;
  if ((!reads_only && (jacobi ? unmarked(before) : before) < 0) ||
      (!jacobi && k < call->max_steps && slot_cell(*call, s, k + 1, t) != -1)) {
    message->begin(kOp, "slots", s, k - 1, t) << " belongs to step " << k << " of rows[" << i
                                              << "], but the step before must have a slot and the next must not.";
    return false;
  }
  *needed += cell == kNoSlot && !reads_only;
  cell = marked(cell);
  ++call->fates[s].live;
  return true;
}

// Slots that the token of a row may still ask for, counted at its deepest row alone. Every row has its mark.
LATENTCOT_FN std::int32_t still_asks(const AdvanceCall& call, const std::int32_t* row) {
  if (row[kRowSlot] == kReadsOnly) return 0;
  const std::int32_t s = row[kRowSequence], t = row[kRowPosition], limit = step_limit(call, s, t);
  std::int32_t missing = 0;
  for (std::int32_t k = row[kRowStep] + 1; k <= limit; ++k) {
    const std::int32_t cell = slot_cell(call, s, k, t);
    if (cell < kNoSlot) return 0;
    missing += cell == kNoSlot;
  }
  return missing;
}

LATENTCOT_FN bool check_rows(AdvanceCall* call, std::int64_t* needed, Message* message) {
  std::int64_t i = 0;
  while (i < call->live && check_advance_row(call, i, needed, message)) ++i;
  const bool good = i == call->live;
  for (std::int64_t j = 0; good && j < i; ++j) call->reserved += still_asks(*call, call->rows + j * kRowColumns);
  while (i-- > 0) {  // takes every mark away, also after a fault
    const std::int32_t* row = call->rows + i * kRowColumns;
    std::int32_t& cell = slot_cell(*call, row[kRowSequence], row[kRowStep], row[kRowPosition]);
    cell = marked(cell);
  }
  return good;
}

// Decides which sequences are done and counts the slots they give back.
LATENTCOT_FN bool plan_finish(AdvanceCall* call, std::int64_t* freed, Message* message) {
  for (std::int64_t s = 0; s < call->places; ++s) {
    const std::int32_t* sequence = sequence_of(*call, s);
    if (!check_live(kOp, call->sequences, s, call->fates[s].live, message)) return false;
    if (sequence[kStatus] != kRunning || call->fates[s].live > 0) continue;
    if (!sequence[kStopped] && sequence[kNextPosition] < sequence[kEnd]) continue;
    call->fates[s].finishes = 1;
    call->finished += 1;
    for (std::int32_t k = 1; k <= call->max_steps; ++k)
      for (std::int32_t t = 0; t < sequence[kNextPosition]; ++t) {
        const std::int32_t slot = slot_cell(*call, s, k, t);
        if (slot == -1) continue;
        if (slot < 0 || slot >= call->slot_count) {
          message->begin(kOp, "slots", s, k - 1, t)
            << " is " << slot << ", but must be -1 or at least 0 and below " << call->slot_count << ".";
          return false;
        }
        *freed += 1;
      }
  }
  if (call->counters[kFreeSlots] + *freed <= call->slot_count) return true;
  message->begin(kOp, "counters", kFreeSlots)
    << " (free slots) is " << call->counters[kFreeSlots] << " and finished sequences give " << *freed
    << " back, but there are only " << call->slot_count << ": a slot is listed twice.";
  return false;
}

// Starts up to `most` tokens of place s, as far as slots and rows last. Returns how many, -1 after a fault.
LATENTCOT_FN std::int32_t start_tokens(AdvanceCall* call, std::int64_t s, std::int64_t most, Message* message) {
  AdvancePlace& fate = call->fates[s];
  const std::int32_t most_live = call->rules.token_major ? 1 : call->control[kSequenceRows];
  std::int32_t started = 0;
  for (; started < most && fate.live < most_live; ++started) {
    if (call->rules.fixed && call->row_total + started >= call->row_count) break;  // no row left: it waits
    if (startable(*call, s, fate.starts) == 0) break;
    const std::int64_t t = sequence_of(*call, s)[kNextPosition] + fate.starts;
    const std::int32_t token = call->tokens[s * call->positions + t];
    const std::int32_t limit = step_limit(*call, s, t);
    if (call->free_left - call->reserved < limit) break;
    if (token < 0 || slot_cell(*call, s, 1, t) != -1) {
      message->begin(kOp, token < 0 ? "tokens" : "slots", s, token < 0 ? t : 0, token < 0 ? -1 : t)
        << " is " << (token < 0 ? token : slot_cell(*call, s, 1, t))
        << (token < 0 ? ", but a position below length needs a token of at least 0."
               : ", but a position that was not started must have no slot (-1).");
      return -1;
    }
    call->free_left -= 1;
    call->reserved += limit - 1;
    ++fate.live;
    ++fate.starts;
  }
  call->fresh_total += started;
  call->row_total += started;
  return started;
}

LATENTCOT_FN bool plan_starts(AdvanceCall* call, Message* message) {
  if (call->control[kLockstep] && call->live > 0) return true;
  for (std::int64_t n = 0; n < call->ordered; ++n) {  // decoding: the newest token, whatever max_rows says
    const std::int32_t s = call->order[n];
    const std::int32_t* sequence = sequence_of(*call, s);
    if (sequence[kStatus] == kRunning && sequence[kNextPosition] == sequence[kLength] - 1 &&
        start_tokens(call, s, 1, message) < 0)
      return false;
  }
  const std::int64_t first = call->ordered ? call->counters[kPasses] % call->ordered : 0;
  for (std::int64_t before = -1; before < call->row_total && call->row_total < call->control[kMaxRows];) {
    before = call->row_total;
    for (std::int64_t n = 0; n < call->ordered; ++n) {
      const std::int64_t room = call->control[kMaxRows] - call->row_total;
      const std::int32_t s = call->order[(first + n) % call->ordered];
      if (start_tokens(call, s, room < kRoundTokens ? room : kRoundTokens, message) < 0) return false;
    }
  }
  return true;
}

}  // namespace advance_detail

// Checks the values and decides what finishes and what starts. When it returns, no tensor has changed.
LATENTCOT_FN bool plan_advance(AdvanceCall* call, void* scratch, Message* message) {
  using namespace advance_detail;
  call->fates = static_cast<AdvancePlace*>(scratch);
  if (!count_live(kOp, call->rows, call->row_count, call->rules.fixed, &call->live, message)) return false;
  call->row_total = call->live;
  call->fresh_total = call->fresh_count;
  call->reserved = call->finished = call->stalled = 0;
  std::int64_t needed = 0, freed = 0;
  if (!check_control(*call, message) || !check_places(*call, message) || !check_order(call, message) ||
      !check_rows(call, &needed, message) || !plan_finish(call, &freed, message))
    return false;
  const std::int64_t available = call->counters[kFreeSlots] + freed;
  if (needed > available) {
    message->begin(kOp, "counters", kFreeSlots)
      << " (free slots) is " << available << " with what finished sequences give back, but rows that go on need "
      << needed << ": a token started without its reserve.";
    return false;
  }
  call->free_left = available - needed;
  if (!plan_starts(call, message)) return false;
  // slots given back lie on top of the stack; what is taken beyond them comes from its old part
  const std::int64_t taken = available - call->free_left - freed;
  for (std::int64_t i = 0; i < taken; ++i) {
    const std::int64_t at = call->counters[kFreeSlots] - 1 - i;
    if (!check_range(kOp, "free_slots", at, "", call->free_slots[at], 0, call->slot_count, message)) return false;
  }
  for (std::int64_t s = 0; s < call->places && call->row_total == 0; ++s)
    if (startable(*call, s, 0) > 0) call->stalled = 1;  // what finishes has nothing left to start
  call->again = call->row_total > 0 && !(call->control[kYieldWhenDone] &&
                                         call->counters[kFinished] + call->finished > 0);
  return true;
}

// Writes rows [row_total, 4], fresh [fresh_total], again [1], and the tables. In the fixed form rows and fresh have
// row_count rows.
LATENTCOT_FN void write_advance(const AdvanceCall& call, std::int32_t* rows, std::int32_t* fresh, bool* again) {
  using namespace advance_detail;
  std::int64_t free = call.counters[kFreeSlots];
  for (std::int64_t s = 0; s < call.places; ++s) {
    if (!call.fates[s].finishes) continue;
    std::int32_t* sequence = sequence_of(call, s);
    for (std::int32_t k = 1; k <= call.max_steps; ++k)
      for (std::int32_t t = 0; t < sequence[kNextPosition]; ++t) {
        std::int32_t& cell = slot_cell(call, s, k, t);
        if (cell >= 0) call.free_slots[free++] = cell;
        cell = -1;
      }
    sequence[kStatus] = kDone;
  }
  for (std::int64_t i = 0; i < call.live; ++i) {
    std::int32_t* row = rows + i * kRowColumns;
    for (int column = 0; column < kRowColumns; ++column) row[column] = call.rows[i * kRowColumns + column];
    if (row[kRowSlot] != kNoSlot) continue;
    std::int32_t& cell = slot_cell(call, row[kRowSequence], row[kRowStep], row[kRowPosition]);
    if (cell < 0) cell = call.free_slots[--free];
    row[kRowSlot] = cell;
  }
  for (std::int64_t i = 0; i < call.fresh_count; ++i) fresh[i] = call.fresh[i];
  std::int32_t* row = rows + call.live * kRowColumns;
  std::int32_t* token = fresh + call.fresh_count;
  if (call.rules.fixed) {  // the token of row i stands at i
    for (std::int64_t i = 0; i < call.row_count; ++i) fresh[i] = 0;
    write_dead(rows, call.row_total, call.row_count);
    token = fresh + call.live;
  }
  for (std::int64_t n = 0; n < call.ordered; ++n) {
    const std::int32_t s = call.order[n];
    std::int32_t* sequence = sequence_of(call, s);
    for (std::int32_t left = call.fates[s].starts; left > 0; --left, row += kRowColumns) {
      const std::int32_t t = sequence[kNextPosition]++;
      const std::int32_t slot = call.free_slots[--free];
      slot_cell(call, s, 1, t) = slot;
      row[kRowSequence] = s;
      row[kRowPosition] = t;
      row[kRowStep] = 1;
      row[kRowSlot] = slot;
      *token++ = call.tokens[s * call.positions + t];
    }
    if (sequence[kStatus] == kRunning) sequence[kLiveRows] = call.fates[s].live;
  }
  call.counters[kFreeSlots] = free;
  call.counters[kReserved] = call.reserved;
  call.counters[kFinished] += call.finished;
  call.counters[kStalled] = call.stalled;
  const std::int64_t used = call.slot_count - free;
  if (used > call.counters[kMostSlots]) call.counters[kMostSlots] = used;
  *again = call.again != 0;
}

}  // namespace latentcot
