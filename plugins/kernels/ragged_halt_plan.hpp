// RaggedHalt once its tensors are bound: the decision about every row, and writing it down.
#pragma once

#include <math.h>

#include "ragged_halt.hpp"

namespace latentcot {

namespace halt_detail {

// Whether live row i runs step 1: it has no reach and no mix yet, and what stands there is not read.
LATENTCOT_FN bool is_fresh(const HaltCall& call, std::int64_t i) {
  return call.rules.fixed ? call.rows[i * kRowColumns + kRowStep] == 1 : i >= call.carried;
}

// Softmax of a fresh row's router outputs, summed from each to the last: the weights of its steps. Returns that of step 2,
// which is not a number where an output is none; `tail` may be null.
LATENTCOT_FN float weigh_steps(const HaltCall& call, std::int64_t i, float* tail) {
  const float* logits = call.gate_logits + i * call.gates;
  double largest = double(logits[0]), sum = 0, rest = 0;
  for (std::int64_t j = 1; j < call.gates; ++j) largest = logits[j] > largest ? double(logits[j]) : largest;
  for (std::int64_t j = 0; j < call.gates; ++j) sum += exp(double(logits[j]) - largest);
  float second = 0;
  for (std::int64_t j = call.gates - 1; j >= 0; --j) {
    rest += exp(double(logits[j]) - largest);
    const float weight = j == 0 ? 1.0f : float(rest / sum);
    if (tail) tail[j] = weight;
    if (j == 1) second = weight;
  }
  return second;
}

// What is compared with tau after this row's step, which is not the last.
LATENTCOT_FN float next_of(const HaltCall& call, std::int64_t i, std::int32_t step, float reach, const float* tail) {
  if (call.rules.stop == kStopCount) return reach;
  if (call.rules.stop == kStopTail) return step == 1 ? weigh_steps(call, i, nullptr) : tail[step];
  const std::int64_t column = step < call.gates ? step - 1 : call.gates - 1;
  // float64: a small gate keeps its relative accuracy, for tau may be 1e-4 and reach a product of gates
  const float gate = float(1.0 / (1.0 + exp(-double(call.gate_logits[i * call.gates + column]))));
  return call.rules.stop == kStopGate ? gate : reach * gate;
}

LATENTCOT_FN float share_of(const HaltRules& rules, bool ended, bool goes_on, bool last, float reach, float next) {
  if (rules.readout == kFinal) return last ? 1.0f : 0.0f;
  if (ended) return 0.0f;
  if (rules.readout == kSum) return 1.0f;
  if (rules.readout == kLast || rules.stop == kStopCount) return goes_on ? 0.0f : 1.0f;
  return goes_on || rules.readout == kShares ? reach - next : reach;
}

// Decides row i, whose indices fit the tables; `next` and `head` become 0 where the row gets one and -1 where not. False
// where what is compared with tau is not a number.
LATENTCOT_FN bool decide_row(const HaltCall& call, std::int64_t i, HaltRow* fate) {
  const HaltRules& rules = call.rules;
  const std::int32_t* row = call.rows + i * kRowColumns;
  const std::int64_t cell = row[kRowSequence] * call.positions + row[kRowPosition];
  const std::int32_t step = row[kRowStep];
  const bool runs_on = !rules.skip_halted || rules.readout == kFinal;
  const float reach = is_fresh(call, i) ? 1.0f : call.reach[i];
  const bool ended = runs_on && reach < 0, last = step == rules.max_steps;
  float next = 0;
  if (!last && !ended) next = next_of(call, i, step, reach, call.weights ? call.weights + cell * rules.max_steps : nullptr);
  if (!(next == next)) return false;
  const std::int32_t forced = call.forced_depth[cell];
  const bool learned = rules.stop == kStopCount || next > rules.tau;
  const bool goes_on = !last && !ended && (forced > 0 ? step < forced : learned);
  const bool stays = goes_on || (runs_on && !last);
  const bool head = !stays && (row[kRowPosition] < call.recorded ||
                               chooses_next(call.sequences + row[kRowSequence] * kSequenceColumns, row[kRowPosition],
                                            call.positions));
  fate->share = share_of(rules, ended, goes_on, last, reach, next);
  fate->next_reach = !goes_on ? -1.0f : rules.stop == kStopGate || rules.stop == kStopCount ? 1.0f : next;
  fate->next = stays ? 0 : -1;
  fate->head = head ? 0 : -1;
  fate->ends = !ended && !goes_on;
  fate->frozen = stays && !goes_on && rules.readout == kFinal;
  return true;
}

}  // namespace halt_detail

// Checks the values and decides every row. Changes no tensor.
LATENTCOT_FN bool plan_halt(HaltCall* call, void* scratch, Message* message) {
  const char* op = "RaggedHalt";
  const HaltRules& rules = call->rules;
  const std::int32_t steps = std::int32_t(rules.max_steps);
  call->fates = static_cast<HaltRow*>(scratch);
  std::int32_t* live = reinterpret_cast<std::int32_t*>(call->fates + call->row_count);
  for (std::int64_t s = 0; s < call->places; ++s) live[s] = 0;
  if (!check_counter(op, call->counters, kPasses, "(passes)", message) ||
      !check_counter(op, call->counters, kExecutedRows, "(executed rows)", message) ||
      !check_counter(op, call->counters, kHeadRows, "(head rows)", message) ||
      !count_live(op, call->rows, call->row_count, rules.fixed, &call->live, message))
    return false;
  std::int64_t going_on = 0, head_count = 0;
  for (std::int64_t i = 0; i < call->live; ++i) {
    const std::int32_t* row = call->rows + i * kRowColumns;
    if (!check_row(op, row, i, call->places, call->positions, steps, call->sequences, message)) return false;
    const std::int32_t step = row[kRowStep];
    const bool fresh = halt_detail::is_fresh(*call, i);
    if ((step == 1) != fresh) {
      message->begin(op, "rows", i) << " runs step " << step << ", but the first " << call->carried
                                    << " rows (one per entry of reach) run a later step and the others step 1.";
      return false;
    }
    HaltRow& fate = call->fates[i];
    if (!halt_detail::decide_row(*call, i, &fate)) {
      const std::int64_t column = rules.stop == kStopTail ? -1 : (step < call->gates ? step : call->gates) - 1;
      message->begin(op, "gate_logits", i, column)
        << " times reach is not a number (sequence " << row[kRowSequence] << ", position "
        << row[kRowPosition] << ", step " << step << "), but must be: the weights or a latent overflowed.";
      return false;
    }
    if (fate.next == 0) fate.next = std::int32_t(going_on++);
    if (fate.head == 0) fate.head = std::int32_t(head_count++);
    ++live[row[kRowSequence]];
  }
  for (std::int64_t s = 0; s < call->places; ++s)
    if (!check_live(op, call->sequences, s, live[s], message)) return false;
  call->going_on = going_on;
  call->head_count = head_count;
  return true;
}

// Writes next_rows, next_reach, head_rows, and the tables.
LATENTCOT_FN void write_halt(const HaltCall& call, const HaltOutputs& out) {
  for (std::int64_t i = 0; i < call.live; ++i) {
    const std::int32_t* row = call.rows + i * kRowColumns;
    const HaltRow& fate = call.fates[i];
    const std::int64_t cell = row[kRowSequence] * call.positions + row[kRowPosition];
    if (fate.ends) call.depths[cell] = row[kRowStep];
    if (call.rules.stop == kStopTail && row[kRowStep] == 1 && call.rules.max_steps > 1)
      halt_detail::weigh_steps(call, i, call.weights + cell * call.rules.max_steps);
    if (fate.next >= 0) {
      std::int32_t* next = out.rows + std::int64_t(fate.next) * kRowColumns;
      for (int column = 0; column < kRowColumns; ++column) next[column] = row[column];
      next[kRowStep] += 1;
      next[kRowSlot] = fate.frozen ? kReadsOnly : kNoSlot;
      out.reach[fate.next] = fate.next_reach;
      continue;
    }
    call.sequences[row[kRowSequence] * kSequenceColumns + kLiveRows] -= 1;
    if (fate.head < 0) continue;
    std::int32_t* head = out.head_rows + std::int64_t(fate.head) * kRowColumns;
    for (int column = 0; column < kRowColumns; ++column) head[column] = row[column];
    out.head_index[fate.head] = i;
  }
  call.counters[kPasses] += 1;
  call.counters[kExecutedRows] += call.live;
  call.counters[kHeadRows] += call.head_count;
  if (!call.rules.fixed) return;
  write_dead(out.rows, call.going_on, call.row_count);
  write_dead(out.head_rows, call.head_count, call.row_count);
  for (std::int64_t i = call.going_on; i < call.row_count; ++i) out.reach[i] = 0.0f;
  for (std::int64_t i = call.head_count; i < call.row_count; ++i) out.head_index[i] = 0;
}

// Writes next_latent and next_mix, or head_mix, of input row i; in the fixed form also zeros to the rows i of these outputs
// that are dead. Independent of every other row.
LATENTCOT_FN void write_halt_vectors(const HaltCall& call, const HaltOutputs& out, std::int64_t i) {
  if (call.rules.fixed) {
    for (std::int64_t d = i * call.hidden; i >= call.going_on && d < (i + 1) * call.hidden; ++d)
      out.latent[d] = out.mix[d] = 0.0f;
    for (std::int64_t d = i * call.hidden; i >= call.head_count && d < (i + 1) * call.hidden; ++d) out.head_mix[d] = 0.0f;
  }
  if (i >= call.live) return;
  const HaltRow& fate = call.fates[i];
  if (fate.next < 0 && fate.head < 0) return;
  const float* z = call.z + i * call.hidden;
  float* mix = fate.next >= 0 ? out.mix + fate.next * call.hidden : out.head_mix + fate.head * call.hidden;
  if (!halt_detail::is_fresh(call, i)) {
    const float* before = call.mix + i * call.hidden;
    for (std::int64_t d = 0; d < call.hidden; ++d) mix[d] = before[d] + fate.share * z[d];
  } else {
    for (std::int64_t d = 0; d < call.hidden; ++d) mix[d] = fate.share * z[d];
  }
  if (fate.next < 0) return;
  const float* read = (fate.frozen ? call.frozen : call.next_input) + i * call.hidden;
  float* latent = out.latent + fate.next * call.hidden;
  for (std::int64_t d = 0; d < call.hidden; ++d) latent[d] = read[d];
}

}  // namespace latentcot
