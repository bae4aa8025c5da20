// RaggedHalt: the halting recurrence of every packed row; rows that go on and halted rows for the head, compacted.
//
// Contract and reference: latentcot_export/ops/packed_halt.py. Call bind_halt, plan_halt, then with outputs of
// `going_on` and `head_count` rows write_halt once, and write_halt_vectors for every row on any threads.
#pragma once

#include <math.h>

#include "tables.hpp"

namespace latentcot {

enum HaltInput : int {
  kHaltZ,           // float32 [r, D]
  kHaltGateLogits,  // float32 [r, J], J = 1 or max_steps - 1; absent when max_steps is 1
  kHaltRows,        // int32 [r, 4]
  kHaltReach,       // float32 [c]
  kHaltMix,         // float32 [c, D]
  kHaltSequences,   // int32 [B, 8], written
  kHaltDepths,      // int32 [B, T], written
  kHaltForced,      // int32 [B, T]
  kHaltLogits,      // float32 [B, P, V]: only P is read
  kHaltCounters,    // int64 [8], written
  kHaltInputs,
};

// What happens to one row.
struct HaltRow {
  float next_reach, exit;     // reach of the next step; weight of z in the mix
  std::int32_t next, head;    // row of next_*, row of head_*; -1 = none
};

struct HaltCall {
  const float *z, *gate_logits, *reach, *mix;
  const std::int32_t *rows, *forced_depth;
  std::int32_t *sequences, *depths;
  std::int64_t* counters;
  std::int64_t row_count, carried, hidden, gates, places, positions, recorded;
  float tau;
  std::int32_t max_steps;
  // set by plan_halt
  HaltRow* fates;
  std::int64_t going_on, head_count;
};

// Outputs of `going_on` (the first four) and `head_count` rows.
struct HaltOutputs {
  std::int32_t* rows;
  float *latent, *reach, *mix;
  std::int32_t* head_rows;
  float* head_mix;
};

inline constexpr InputSpec kHaltSpecs[kHaltInputs] = {
  {"z", Type::kFloat32, 2, false},        {"gate_logits", Type::kFloat32, 2, false, true},
  {"rows", Type::kInt32, 2, false},       {"reach", Type::kFloat32, 1, false},
  {"mix", Type::kFloat32, 2, false},      {"sequences", Type::kInt32, 2, true},
  {"depths", Type::kInt32, 2, true},      {"forced_depth", Type::kInt32, 2, false},
  {"logits", Type::kFloat32, 3, false},   {"counters", Type::kInt64, 1, true},
};

// Checks types, shapes and overlaps of inputs [kHaltInputs]. Reads no tensor.
inline bool bind_halt(const Tensor* inputs, float tau, std::int64_t max_steps, HaltCall* call, Message* message) {
  const char* op = "RaggedHalt";
  if (max_steps < 1 || max_steps > kMostSteps || !(tau >= 0)) {
    message->begin(op, "attributes") << " are tau " << double(tau) << " and max_steps " << max_steps
                                     << ", but must be at least 0 and between 1 and " << kMostSteps << ".";
    return false;
  }
  if (!check_inputs(op, kHaltSpecs, kHaltInputs, inputs, message)) return false;
  const std::int64_t rows = inputs[kHaltRows].shape[0], carried = inputs[kHaltReach].shape[0];
  const std::int64_t hidden = inputs[kHaltZ].shape[1], places = inputs[kHaltSequences].shape[0];
  const std::int64_t positions = inputs[kHaltDepths].shape[1];
  const struct {
    int input, axis;
    std::int64_t wanted;
    const char* meaning;
  } sizes[] = {
    {kHaltRows, 1, kRowColumns, "sequence, position, step, slot"},
    {kHaltZ, 0, rows, "one per row"},
    {kHaltMix, 0, carried, "one per entry of reach"},
    {kHaltMix, 1, hidden, "the width of z"},
    {kHaltSequences, 1, kSequenceColumns, "its columns"},
    {kHaltDepths, 0, places, "one per row of sequences"},
    {kHaltForced, 0, places, "one per row of sequences"},
    {kHaltForced, 1, positions, "the positions of depths"},
    {kHaltLogits, 0, places, "one per row of sequences"},
    {kHaltCounters, 0, kCounterEntries, "its entries"},
  };
  for (const auto& size : sizes)
    if (!check_size(op, kHaltSpecs, inputs, size.input, size.axis, size.wanted, size.meaning, message))
      return false;
  const Tensor& gates = inputs[kHaltGateLogits];
  if (carried > rows) {
    message->begin(op, "reach") << " has " << carried << " entries, but there are only " << rows << " rows.";
    return false;
  }
  if (gates.type == Type::kNone ? max_steps > 1 : gates.shape[1] != 1 && gates.shape[1] != max_steps - 1) {
    message->begin(op, "gate_logits")
      << " has " << (gates.type == Type::kNone ? 0 : gates.shape[1])
      << " columns, but must have 1 (shared) or max_steps - 1 = " << max_steps - 1 << ".";
    return false;
  }
  if (gates.type != Type::kNone &&
      !check_size(op, kHaltSpecs, inputs, kHaltGateLogits, 0, rows, "one per row", message))
    return false;
  if (inputs[kHaltLogits].shape[1] > positions) {
    message->begin(op, "logits") << " records " << inputs[kHaltLogits].shape[1] << " positions, but there are only "
                                 << positions << ".";
    return false;
  }
  *call = {};
  call->z = static_cast<const float*>(inputs[kHaltZ].data);
  call->gate_logits = static_cast<const float*>(gates.data);
  call->reach = static_cast<const float*>(inputs[kHaltReach].data);
  call->mix = static_cast<const float*>(inputs[kHaltMix].data);
  call->rows = static_cast<const std::int32_t*>(inputs[kHaltRows].data);
  call->forced_depth = static_cast<const std::int32_t*>(inputs[kHaltForced].data);
  call->sequences = static_cast<std::int32_t*>(inputs[kHaltSequences].data);
  call->depths = static_cast<std::int32_t*>(inputs[kHaltDepths].data);
  call->counters = static_cast<std::int64_t*>(inputs[kHaltCounters].data);
  call->row_count = rows;
  call->carried = carried;
  call->hidden = hidden;
  call->gates = gates.type == Type::kNone ? 0 : gates.shape[1];
  call->places = places;
  call->positions = positions;
  call->recorded = inputs[kHaltLogits].shape[1];
  call->tau = tau;
  call->max_steps = static_cast<std::int32_t>(max_steps);
  return true;
}

// Bytes of scratch that plan_halt wants, at an address aligned to 8; they live until the last write.
inline std::size_t halt_bytes(const HaltCall& call) {
  return sizeof(HaltRow) * std::size_t(call.row_count) + sizeof(std::int32_t) * std::size_t(call.places);
}

// Checks the values and decides every row. Changes no tensor.
LATENTCOT_FN bool plan_halt(HaltCall* call, void* scratch, Message* message) {
  const char* op = "RaggedHalt";
  call->fates = static_cast<HaltRow*>(scratch);
  std::int32_t* live = reinterpret_cast<std::int32_t*>(call->fates + call->row_count);
  for (std::int64_t s = 0; s < call->places; ++s) live[s] = 0;
  if (!check_counter(op, call->counters, kPasses, "(passes)", message) ||
      !check_counter(op, call->counters, kExecutedRows, "(executed rows)", message) ||
      !check_counter(op, call->counters, kHeadRows, "(head rows)", message))
    return false;
  std::int64_t going_on = 0, head_count = 0;
  for (std::int64_t i = 0; i < call->row_count; ++i) {
    const std::int32_t* row = call->rows + i * kRowColumns;
    if (!check_row(op, row, i, call->places, call->positions, call->max_steps, call->sequences, message))
      return false;
    const std::int32_t step = row[kRowStep];
    if ((step == 1) != (i >= call->carried)) {
      message->begin(op, "rows", i) << " runs step " << step << ", but the first " << call->carried
                                    << " rows (one per entry of reach) run a later step and the others step 1.";
      return false;
    }
    const std::int64_t cell = row[kRowSequence] * call->positions + row[kRowPosition];
    const float reach = i < call->carried ? call->reach[i] : 1.0f;
    float next = 0;
    if (step < call->max_steps) {
      const std::int64_t column = step < call->gates ? step - 1 : call->gates - 1;
      // float64: a small gate keeps its relative accuracy, for tau may be 1e-4 and reach a product of gates
      const float gate = float(1.0 / (1.0 + exp(-double(call->gate_logits[i * call->gates + column]))));
      next = reach * gate;
      if (!(next == next)) {
        message->begin(op, "gate_logits", i, column)
          << " times reach is not a number (sequence " << row[kRowSequence] << ", position "
          << row[kRowPosition] << ", step " << step << "), but must be: the weights or a latent overflowed.";
        return false;
      }
    }
    const std::int32_t forced = call->forced_depth[cell];
    const bool go_on = step < call->max_steps && (forced > 0 ? step < forced : next > call->tau);
    const bool head = !go_on && (row[kRowPosition] < call->recorded ||
                                 chooses_next(call->sequences + row[kRowSequence] * kSequenceColumns,
                                              row[kRowPosition], call->positions));
    call->fates[i] = {next, go_on ? reach - next : reach, go_on ? std::int32_t(going_on) : -1,
                      head ? std::int32_t(head_count) : -1};
    going_on += go_on;
    head_count += head;
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
  for (std::int64_t i = 0; i < call.row_count; ++i) {
    const std::int32_t* row = call.rows + i * kRowColumns;
    const HaltRow& fate = call.fates[i];
    if (fate.next >= 0) {
      std::int32_t* next = out.rows + std::int64_t(fate.next) * kRowColumns;
      for (int column = 0; column < kRowColumns; ++column) next[column] = row[column];
      next[kRowStep] += 1;
      next[kRowSlot] = -1;
      out.reach[fate.next] = fate.next_reach;
      continue;
    }
    call.depths[row[kRowSequence] * call.positions + row[kRowPosition]] = row[kRowStep];
    call.sequences[row[kRowSequence] * kSequenceColumns + kLiveRows] -= 1;
    if (fate.head < 0) continue;
    std::int32_t* head = out.head_rows + std::int64_t(fate.head) * kRowColumns;
    for (int column = 0; column < kRowColumns; ++column) head[column] = row[column];
  }
  call.counters[kPasses] += 1;
  call.counters[kExecutedRows] += call.row_count;
  call.counters[kHeadRows] += call.head_count;
}

// Writes next_latent and next_mix, or head_mix, of input row i. Independent of every other row.
LATENTCOT_FN void write_halt_vectors(const HaltCall& call, const HaltOutputs& out, std::int64_t i) {
  const HaltRow& fate = call.fates[i];
  if (fate.next < 0 && fate.head < 0) return;
  const float* z = call.z + i * call.hidden;
  float* mix = fate.next >= 0 ? out.mix + fate.next * call.hidden : out.head_mix + fate.head * call.hidden;
  if (i < call.carried) {
    const float* before = call.mix + i * call.hidden;
    for (std::int64_t d = 0; d < call.hidden; ++d) mix[d] = before[d] + fate.exit * z[d];
  } else {
    for (std::int64_t d = 0; d < call.hidden; ++d) mix[d] = fate.exit * z[d];
  }
  if (fate.next < 0) return;
  float* latent = out.latent + fate.next * call.hidden;
  for (std::int64_t d = 0; d < call.hidden; ++d) latent[d] = z[d];
}

}  // namespace latentcot
