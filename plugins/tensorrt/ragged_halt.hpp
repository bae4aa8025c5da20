// RaggedHalt for TensorRT.
#pragma once

#include "plugin.hpp"

namespace latentcot::trt {

struct RaggedHalt {
  static constexpr const char* kName = "RaggedHalt";
  static constexpr InputDesc kInputs[kHaltInputs] = {
    {"z", kFloat, 2},          {"gate_logits", kFloat, 2, true}, {"rows", kInt, 2},
    {"reach", kFloat, 1},      {"mix", kFloat, 2},               {"sequences", kInt, 2},
    {"depths", kInt, 2},       {"forced_depth", kInt, 2},        {"logits", kFloat, 3},
    {"counters", kLong, 1},    {"next_input", kFloat, 2, true},  {"x", kFloat, 2, true},
    {"weights", kFloat, 3, true},
  };
  enum Output { kRows, kLatent, kReach, kMix, kHeadRows, kHeadMix, kHeadIndex };
  static constexpr OutputDesc kOutputs[] = {
    made(DataType::kINT32, {kHaltRows, 0}, {kNumber, kRowColumns}),
    made(DataType::kFLOAT, {kHaltRows, 0}, {kHaltZ, 1}),
    made(DataType::kFLOAT, {kHaltRows, 0}),
    made(DataType::kFLOAT, {kHaltRows, 0}, {kHaltZ, 1}),
    made(DataType::kINT32, {kHaltRows, 0}, {kNumber, kRowColumns}),
    made(DataType::kFLOAT, {kHaltRows, 0}, {kHaltZ, 1}),
    made(DataType::kINT64, {kHaltRows, 0}),
    changed(kHaltSequences),
    changed(kHaltDepths),
    changed(kHaltCounters),
    changed(kHaltWeights),
  };
  enum Field { kTau = kOwnFields, kMaxSteps, kStop, kReadout, kSkipHalted };
  static constexpr FieldSpec kFields[] = {
    kFixedField,
    kInputsField,
    {"tau", true, 0, 3.4e38},
    {"max_steps", false, 1, kMostSteps},
    {"stop", false, 0, kStopRules - 1},
    {"readout", false, 0, kReadouts - 1},
    {"skip_halted", false, 0, 1},
  };
  FieldValue values[std::size(kFields)];

  bool check(Message*) const { return true; }
  std::int64_t own_extent() const { return 0; }

  bool bind(const Tensor* in, HaltCall* call, Message* message) const {
    HaltRules rules{};
    rules.tau = values[kTau].real;
    rules.max_steps = values[kMaxSteps].integer;
    rules.stop = values[kStop].integer;
    rules.readout = values[trt::RaggedHalt::kReadout].integer;
    rules.skip_halted = values[kSkipHalted].integer != 0;
    rules.fixed = true;
    return bind_halt(in, rules, call, message);
  }

  std::size_t workspace(const Tensor* in, Message* message) const {
    HaltCall call{};
    return bind(in, &call, message) ? halt_workspace(call) : 0;
  }

  int enqueue(const Tensor* in, void* const* out, void* workspace, void* stream, Message* message) const {
    HaltCall call{};
    if (!bind(in, &call, message)) return 1;
    HaltOutputs made{};
    made.rows = static_cast<std::int32_t*>(out[kRows]);
    made.latent = static_cast<float*>(out[kLatent]);
    made.reach = static_cast<float*>(out[kReach]);
    made.mix = static_cast<float*>(out[kMix]);
    made.head_rows = static_cast<std::int32_t*>(out[kHeadRows]);
    made.head_mix = static_cast<float*>(out[kHeadMix]);
    made.head_index = static_cast<std::int64_t*>(out[kHeadIndex]);
    return launch_halt(call, made, workspace, stream);
  }
};

}  // namespace latentcot::trt
