// RaggedHalt: stop rule and readout of every packed row; rows that go on and halted rows for the head, compacted.
//
// Contract and reference: latentcot_export/ops/packed_halt.py. Call bind_halt, then, of ragged_halt_plan.hpp, plan_halt and
// with outputs of `going_on` and `head_count` rows write_halt once, and write_halt_vectors for every row on any threads.
// In the fixed form all inputs and outputs have `row_count` rows: see "dead row" in latentcot_export/ops/packed_tables.py.
#pragma once

#include "tables.hpp"

namespace latentcot {

enum HaltInput : int {
  kHaltZ,           // float32 [r, D]
  kHaltGateLogits,  // float32 [r, J], J = 1 or max_steps - 1, tail: max_steps; absent for count or when max_steps is 1
  kHaltRows,        // int32 [r, 4]
  kHaltReach,       // float32 [c], fixed: [r]
  kHaltMix,         // float32 [c, D], fixed: [r, D]
  kHaltSequences,   // int32 [B, 8], written
  kHaltDepths,      // int32 [B, T], written
  kHaltForced,      // int32 [B, T]
  kHaltLogits,      // float32 [B, P, V]: only P is read
  kHaltCounters,    // int64 [8], written
  kHaltNextInput,   // float32 [r, D], absent: z
  kHaltFrozen,      // float32 [r, D], what the rows read; for final alone
  kHaltWeights,     // float32 [B, T, K], written; for tail alone
  kHaltInputs,
};

// The rules, in the order of STOPS and READOUTS of latentcot_export/spec/recurrence.py.
enum StopRule : std::int32_t { kStopReach, kStopGate, kStopCount, kStopTail, kStopRules };
enum Readout : std::int32_t { kMixture, kLast, kSum, kShares, kFinal, kReadouts };

struct HaltRules {
  float tau;
  std::int64_t max_steps;
  std::int32_t stop, readout;
  bool skip_halted;
  bool fixed = false;  // the fixed form: dead rows behind the live ones
};

// What happens to one row.
struct HaltRow {
  float next_reach, share;    // reach of the next step; weight of z in the mix
  std::int32_t next, head;    // row of next_*, row of head_*; -1 = none
  bool ends, frozen;          // its token halts here; it runs on and reads what it read before
};

struct HaltCall {
  const float *z, *gate_logits, *reach, *mix, *next_input, *frozen;
  float* weights;
  const std::int32_t *rows, *forced_depth;
  std::int32_t *sequences, *depths;
  std::int64_t* counters;
  std::int64_t row_count, carried, hidden, gates, places, positions, recorded;  // carried: entries of reach
  HaltRules rules;
  // set by plan_halt
  HaltRow* fates;
  std::int64_t live, going_on, head_count;
};

// Outputs of `going_on` (the first four) and `head_count` rows, in the fixed form of `row_count`.
struct HaltOutputs {
  std::int32_t* rows;
  float *latent, *reach, *mix;
  std::int32_t* head_rows;
  float* head_mix;
  std::int64_t* head_index;  // which input rows these are
};

inline constexpr InputSpec kHaltSpecs[kHaltInputs] = {
  {"z", Type::kFloat32, 2, false},        {"gate_logits", Type::kFloat32, 2, false, true},
  {"rows", Type::kInt32, 2, false},       {"reach", Type::kFloat32, 1, false},
  {"mix", Type::kFloat32, 2, false},      {"sequences", Type::kInt32, 2, true},
  {"depths", Type::kInt32, 2, true},      {"forced_depth", Type::kInt32, 2, false},
  {"logits", Type::kFloat32, 3, false},   {"counters", Type::kInt64, 1, true},
  {"next_input", Type::kFloat32, 2, false, true}, {"x", Type::kFloat32, 2, false, true},
  {"weights", Type::kFloat32, 3, true, true},
};

namespace halt_detail {

inline bool check_rules(const char* op, const HaltRules& rules, Message* message) {
  if (rules.max_steps < 1 || rules.max_steps > kMostSteps || !(rules.tau >= 0)) {
    message->begin(op, "attributes") << " are tau " << double(rules.tau) << " and max_steps " << rules.max_steps
                                     << ", but must be at least 0 and between 1 and " << kMostSteps << ".";
    return false;
  }
  return check_range(op, "attribute", -1, "stop", rules.stop, 0, kStopRules, message) &&
         check_range(op, "attribute", -1, "readout", rules.readout, 0, kReadouts, message);
}

// The optional inputs are there exactly where the rules need them, and as wide as they must be.
inline bool check_optional(const char* op, const HaltRules& rules, const Tensor* inputs, Message* message) {
  const std::int64_t steps = rules.max_steps;
  const std::int64_t gates = inputs[kHaltGateLogits].type == Type::kNone ? 0 : inputs[kHaltGateLogits].shape[1];
  const bool tail = rules.stop == kStopTail && steps > 1;
  const bool wanted = rules.stop != kStopCount && steps > 1;
  if (tail ? gates != steps : wanted ? gates != 1 && gates != steps - 1 : false) {
    message->begin(op, "gate_logits") << " has " << gates << " columns, but must have ";
    if (tail)
      *message << "max_steps = " << steps << ".";
    else
      *message << "1 (shared) or max_steps - 1 = " << steps - 1 << ".";
    return false;
  }
  const struct {
    int input;
    bool needed;
    const char* rule;
  } needs[] = {{kHaltFrozen, rules.readout == kFinal, "the readout final"}, {kHaltWeights, tail, "the stop rule tail"}};
  for (const auto& need : needs)
    if (need.needed && inputs[need.input].type == Type::kNone) {
      message->begin(op, kHaltSpecs[need.input].name) << " is absent, but " << need.rule << " needs it.";
      return false;
    }
  return true;
}

}  // namespace halt_detail

// Checks types, shapes and overlaps of inputs [kHaltInputs]. Reads no tensor.
inline bool bind_halt(const Tensor* inputs, const HaltRules& rules, HaltCall* call, Message* message) {
  const char* op = "RaggedHalt";
  if (!halt_detail::check_rules(op, rules, message)) return false;
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
  if (rules.fixed ? carried != rows : carried > rows) {
    message->begin(op, "reach") << " has " << carried << " entries, but there are " << (rules.fixed ? "" : "only ")
                                << rows << " rows.";
    return false;
  }
  if (!halt_detail::check_optional(op, rules, inputs, message)) return false;
  const struct {
    int input, axis;
    std::int64_t wanted;
    const char* meaning;
  } optional[] = {
    {kHaltGateLogits, 0, rows, "one per row"},
    {kHaltNextInput, 0, rows, "one per row"},
    {kHaltNextInput, 1, hidden, "the width of z"},
    {kHaltFrozen, 0, rows, "one per row"},
    {kHaltFrozen, 1, hidden, "the width of z"},
    {kHaltWeights, 0, places, "one per row of sequences"},
    {kHaltWeights, 1, positions, "the positions of depths"},
    {kHaltWeights, 2, rules.max_steps, "max_steps"},
  };
  for (const auto& size : optional)
    if (inputs[size.input].type != Type::kNone &&
        !check_size(op, kHaltSpecs, inputs, size.input, size.axis, size.wanted, size.meaning, message))
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
  call->rules = rules;
  const bool replaced = inputs[kHaltNextInput].type != Type::kNone;
  call->next_input = replaced ? static_cast<const float*>(inputs[kHaltNextInput].data) : call->z;
  call->frozen = static_cast<const float*>(inputs[kHaltFrozen].data);
  call->weights = static_cast<float*>(inputs[kHaltWeights].data);
  return true;
}

// Bytes of scratch that plan_halt wants, at an address aligned to 8; they live until the last write.
inline std::size_t halt_bytes(const HaltCall& call) {
  return sizeof(HaltRow) * std::size_t(call.row_count) + sizeof(std::int32_t) * std::size_t(call.places);
}

}  // namespace latentcot
