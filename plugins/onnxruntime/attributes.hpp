// What the ops read of a node, the same on the CPU and on a GPU.
#pragma once

#include "../kernels/attention_bind.hpp"
#include "../kernels/choose_token.hpp"
#include "../kernels/ragged_advance.hpp"
#include "../kernels/ragged_halt.hpp"
#include "op.hpp"

namespace latentcot::ort {

// The fixed form, see "dead row" in latentcot_export/ops/packed_tables.py.
inline bool is_fixed(const NodeInfo& info) { return info.integer("fixed", 0, 1, 0) != 0; }

inline HaltRules halt_rules(const NodeInfo& info) {
  return {info.real("tau"),
          info.integer("max_steps", 1, 65535),
          info.integer("stop", 0, kStopRules - 1, kStopReach),
          info.integer("readout", 0, kReadouts - 1, kMixture),
          info.integer("skip_halted", 0, 1, 1) != 0,
          is_fixed(info)};
}

inline AdvanceRules advance_rules(const NodeInfo& info) {
  return {info.integer("max_steps", 1, 65535), info.integer("runs_on", 0, 1, 0) != 0,
          info.integer("token_major", 0, 1, 0) != 0, is_fixed(info),
          info.integer("jacobi", 0, 1, 0) != 0};
}

inline AttentionRules attention_rules(const NodeInfo& info) {
  constexpr int64_t most = INT_MAX;  // their ranges are check_rules' to know
  const AttentionRules rules = {info.integer("layer", 0, most),
                                info.integer("num_heads", 0, most),
                                info.integer("num_kv_heads", 0, most),
                                info.integer("head_dim", 0, most),
                                info.integer("visibility", 0, most, kDuo),
                                info.real("epsilon", 0.f),
                                is_fixed(info)};
  Failure failure;
  if (!check_rules(rules, &failure.message)) throw failure;
  return rules;
}

inline float norm_epsilon(const NodeInfo& info, const char* op) {
  const float epsilon = info.real("epsilon");
  if (epsilon >= 0 && epsilon < 1e30f) return epsilon;
  Failure failure;
  failure.message.begin(op, "attribute")
    << " epsilon is " << static_cast<double>(epsilon) << ", but must be finite and at least 0.";
  throw failure;
}

}  // namespace latentcot::ort
