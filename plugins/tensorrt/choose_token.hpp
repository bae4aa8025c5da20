// ChooseToken for TensorRT.
#pragma once

#include "plugin.hpp"

namespace latentcot::trt {

struct ChooseToken {
  static constexpr const char* kName = "ChooseToken";
  static constexpr InputDesc kInputs[kChooseInputs] = {
    {"logits", kFloat, 2}, {"rows", kInt, 2},      {"sequences", kInt, 2},   {"sampling", kFloat, 2},
    {"tokens", kInt, 2},   {"uniform", kFloat, 2}, {"stop_tokens", kInt, 2}, {"record", kFloat, 3},
    {"counters", kLong, 1, true},
  };
  static constexpr OutputDesc kOutputs[] = {
    made(DataType::kINT32, {kChooseRows, 0}),
    changed(kChooseSequences),
    changed(kChooseTokens),
    changed(kChooseRecord),
    changed(kChooseCounters),
  };
  static constexpr FieldSpec kFields[] = {kFixedField, kInputsField};
  FieldValue values[std::size(kFields)];

  bool check(Message*) const { return true; }
  std::int64_t own_extent() const { return 0; }

  bool bind(const Tensor* in, ChooseCall* call, Message* message) const {
    return bind_choose(in, call, message, true);
  }

  std::size_t workspace(const Tensor* in, Message* message) const {
    ChooseCall call{};
    return bind(in, &call, message) ? choose_workspace(call) : 0;
  }

  int enqueue(const Tensor* in, void* const* out, void* workspace, void* stream, Message* message) const {
    ChooseCall call{};
    if (!bind(in, &call, message)) return 1;
    return launch_choose(call, static_cast<std::int32_t*>(out[0]), workspace, stream);
  }
};

}  // namespace latentcot::trt
