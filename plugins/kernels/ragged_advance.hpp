// RaggedAdvance: finished sequences give their slots back, rows get a slot, and tokens start while slots and rows last.
//
// Contract and reference: latentcot_export/ops/packed_advance.py. Call bind_advance, then plan_advance and, with outputs
// of `row_total` and `fresh_total` rows, write_advance (both in ragged_advance_plan.hpp). One thread is enough.
// In the fixed form both outputs have `row_count` rows, and no more than these are ever live.
#pragma once

#include "tables.hpp"

namespace latentcot {

enum AdvanceInput : int {
  kAdvanceRows,       // int32 [m, 4]
  kAdvanceFresh,      // int32 [f0]: tokens of the last f0 rows; fixed: [0]
  kAdvanceChosen,     // int32 [any]: only an edge in the graph, never read
  kAdvanceSequences,  // int32 [B, 8], written
  kAdvanceTokens,     // int32 [B, T]
  kAdvanceForced,     // int32 [B, T]
  kAdvanceSlots,      // int32 [B, K, T], written
  kAdvanceFree,       // int32 [N], written
  kAdvanceOrder,      // int32 [B]
  kAdvanceControl,    // int32 [4]
  kAdvanceCounters,   // int64 [8], written
  kAdvanceInputs,
};

// Tokens that one sequence starts in a round of sharing: few, so that short prompts do not wait behind long ones.
constexpr std::int32_t kRoundTokens = 16;

// What happens at one place.
struct AdvancePlace {
  std::int32_t live;      // rows in flight, those that start included
  std::int32_t starts;    // tokens that start
  std::int32_t finishes;  // 1: the sequence is done
  std::int32_t ordered;   // 1: stands in `order`
};

struct AdvanceRules {
  std::int64_t max_steps;
  bool runs_on;      // rows run to max_steps whatever their token's depth
  bool token_major;  // a token starts only when its sequence has no live row
  bool fixed = false;  // the fixed form: dead rows behind the live ones
  bool jacobi = false;  // several rows of a token may be in flight: see latentcot_export/ops/packed_advance.py
};

struct AdvanceCall {
  const std::int32_t *rows, *fresh, *tokens, *forced_depth, *order, *control;
  std::int32_t *sequences, *slots, *free_slots;
  std::int64_t* counters;
  std::int64_t row_count, fresh_count, places, positions, slot_count;
  std::int32_t max_steps;
  AdvanceRules rules;
  // set by plan_advance
  AdvancePlace* fates;
  std::int64_t live, ordered, row_total, fresh_total, free_left, reserved;  // live: input rows
  std::int32_t finished, stalled, again;
};

inline constexpr InputSpec kAdvanceSpecs[kAdvanceInputs] = {
  {"rows", Type::kInt32, 2, false},         {"fresh", Type::kInt32, 1, false},
  {"chosen", Type::kInt32, 1, false},       {"sequences", Type::kInt32, 2, true},
  {"tokens", Type::kInt32, 2, false},       {"forced_depth", Type::kInt32, 2, false},
  {"slots", Type::kInt32, 3, true},         {"free_slots", Type::kInt32, 1, true},
  {"order", Type::kInt32, 1, false},        {"control", Type::kInt32, 1, false},
  {"counters", Type::kInt64, 1, true},
};

// Checks types, shapes and overlaps of inputs [kAdvanceInputs]. Reads no tensor.
inline bool bind_advance(const Tensor* inputs, const AdvanceRules& rules, AdvanceCall* call, Message* message) {
  const char* op = "RaggedAdvance";
  const std::int64_t max_steps = rules.max_steps;
  if (max_steps < 1 || max_steps > kMostSteps) {
    message->begin(op, "attribute max_steps")
      << " is " << max_steps << ", but must be between 1 and " << kMostSteps << ".";
    return false;
  }
  if (!check_inputs(op, kAdvanceSpecs, kAdvanceInputs, inputs, message)) return false;
  const std::int64_t rows = inputs[kAdvanceRows].shape[0], fresh = inputs[kAdvanceFresh].shape[0];
  const std::int64_t places = inputs[kAdvanceSequences].shape[0], positions = inputs[kAdvanceTokens].shape[1];
  const struct {
    int input, axis;
    std::int64_t wanted;
    const char* meaning;
  } sizes[] = {
    {kAdvanceRows, 1, kRowColumns, "sequence, position, step, slot"},
    {kAdvanceSequences, 1, kSequenceColumns, "its columns"},
    {kAdvanceTokens, 0, places, "one per row of sequences"},
    {kAdvanceForced, 0, places, "one per row of sequences"},
    {kAdvanceForced, 1, positions, "the positions of tokens"},
    {kAdvanceSlots, 0, places, "one per row of sequences"},
    {kAdvanceSlots, 1, max_steps, "max_steps"},
    {kAdvanceSlots, 2, positions, "the positions of tokens"},
    {kAdvanceOrder, 0, places, "one per row of sequences"},
    {kAdvanceControl, 0, kControlEntries, "its entries"},
    {kAdvanceCounters, 0, kCounterEntries, "its entries"},
  };
  for (const auto& size : sizes)
    if (!check_size(op, kAdvanceSpecs, inputs, size.input, size.axis, size.wanted, size.meaning, message))
      return false;
  if (rules.fixed && fresh > 0) {
    message->begin(op, "fresh") << " has " << fresh << " tokens, but must have none in the fixed form, whose fresh rows "
                                << "run in the pass that starts them.";
    return false;
  }
  if (fresh > rows) {
    message->begin(op, "fresh") << " has " << fresh << " tokens, but there are only " << rows << " rows.";
    return false;
  }
  *call = {};
  call->rows = static_cast<const std::int32_t*>(inputs[kAdvanceRows].data);
  call->fresh = static_cast<const std::int32_t*>(inputs[kAdvanceFresh].data);
  call->tokens = static_cast<const std::int32_t*>(inputs[kAdvanceTokens].data);
  call->forced_depth = static_cast<const std::int32_t*>(inputs[kAdvanceForced].data);
  call->order = static_cast<const std::int32_t*>(inputs[kAdvanceOrder].data);
  call->control = static_cast<const std::int32_t*>(inputs[kAdvanceControl].data);
  call->sequences = static_cast<std::int32_t*>(inputs[kAdvanceSequences].data);
  call->slots = static_cast<std::int32_t*>(inputs[kAdvanceSlots].data);
  call->free_slots = static_cast<std::int32_t*>(inputs[kAdvanceFree].data);
  call->counters = static_cast<std::int64_t*>(inputs[kAdvanceCounters].data);
  call->row_count = rows;
  call->fresh_count = fresh;
  call->places = places;
  call->positions = positions;
  call->slot_count = inputs[kAdvanceFree].shape[0];
  call->max_steps = static_cast<std::int32_t>(max_steps);
  call->rules = rules;
  return true;
}

// Bytes of scratch that plan_advance wants, at an address aligned to 8; they live until write_advance.
inline std::size_t advance_bytes(const AdvanceCall& call) { return sizeof(AdvancePlace) * std::size_t(call.places); }

}  // namespace latentcot
