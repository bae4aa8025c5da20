// RaggedAdvance for TensorRT: without the inputs fresh, which is empty in the fixed form, and chosen, which is an edge that
// the aliased tables give here.
#pragma once

#include "plugin.hpp"

namespace latentcot::trt {

struct RaggedAdvance {
  static constexpr const char* kName = "RaggedAdvance";
  enum Input { kRows, kSequences, kTokens, kForced, kSlots, kFree, kOrder, kControl, kCounters, kInputCount };
  static constexpr InputDesc kInputs[kInputCount] = {
    {"rows", kInt, 2},  {"sequences", kInt, 2},  {"tokens", kInt, 2}, {"forced_depth", kInt, 2}, {"slots", kInt, 3},
    {"free_slots", kInt, 1}, {"order", kInt, 1}, {"control", kInt, 1}, {"counters", kLong, 1},
  };
  enum Output { kNextRows, kNextFresh, kAgain };
  static constexpr OutputDesc kOutputs[] = {
    made(DataType::kINT32, {kRows, 0}, {kNumber, kRowColumns}),
    made(DataType::kINT32, {kRows, 0}),
    made(DataType::kINT32, {kNumber, 1}),  // a plugin has no bool
    changed(kSequences),
    changed(kSlots),
    changed(kFree),
    changed(kCounters),
  };
  enum Field { kMaxSteps = kOwnFields, kRunsOn, kTokenMajor };
  static constexpr FieldSpec kFields[] = {
    kFixedField,
    kInputsField,
    {"max_steps", false, 1, kMostSteps},
    {"runs_on", false, 0, 1},
    {"token_major", false, 0, 1},
  };
  FieldValue values[std::size(kFields)];

  bool check(Message*) const { return true; }
  std::int64_t own_extent() const { return 0; }

  bool bind(const Tensor* in, AdvanceCall* call, Message* message) const {
    static constexpr int places[kInputCount] = {kAdvanceRows,  kAdvanceSequences, kAdvanceTokens,  kAdvanceForced, kAdvanceSlots,
                                                kAdvanceFree, kAdvanceOrder,     kAdvanceControl, kAdvanceCounters};
    Tensor tensors[kAdvanceInputs];
    for (int i = 0; i < kInputCount; ++i) tensors[places[i]] = in[i];
    for (const int absent : {kAdvanceFresh, kAdvanceChosen}) {
      tensors[absent].type = Type::kInt32;
      tensors[absent].rank = 1;
    }
    AdvanceRules rules{};
    rules.max_steps = values[kMaxSteps].integer;
    rules.runs_on = values[kRunsOn].integer != 0;
    rules.token_major = values[kTokenMajor].integer != 0;
    rules.fixed = true;
    return bind_advance(tensors, rules, call, message);
  }

  std::size_t workspace(const Tensor* in, Message* message) const {
    AdvanceCall call{};
    return bind(in, &call, message) ? advance_workspace(call) : 0;
  }

  int enqueue(const Tensor* in, void* const* out, void* workspace, void* stream, Message* message) const {
    AdvanceCall call{};
    if (!bind(in, &call, message)) return 1;
    return launch_advance(call, static_cast<std::int32_t*>(out[kNextRows]), static_cast<std::int32_t*>(out[kNextFresh]),
                          static_cast<std::int32_t*>(out[kAgain]), workspace, stream);
  }
};

}  // namespace latentcot::trt
