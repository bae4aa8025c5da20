// RaggedAttention: its inputs, its rules, and the checks of types, shapes and overlaps that CPU and GPU share.
//
// Contract and reference: latentcot_export/ops/packed_attention.py. Nothing here reads a tensor.
#pragma once

#include <initializer_list>

#include "attention_plan.hpp"
#include "tables.hpp"

namespace latentcot {

enum AttentionInput : int {
  kAttentionQkv,        // [r, (heads + 2 kv heads) * head_dim]; on a GPU also float16 and bfloat16
  kAttentionCosine,     // float32 [r, turned / 2]
  kAttentionSine,       // float32 [r, turned / 2]
  kAttentionRows,       // int32 [r, 4]
  kAttentionSlots,      // int32 [B, K, T]
  kAttentionCache,      // [layers, 2, N, kv heads, lanes] float32, float16 or bfloat16; written
  kAttentionWeights,    // float32 [B, T, K]: for the stop rule tail alone
  kAttentionQueryNorm,  // float32 [head_dim]
  kAttentionKeyNorm,    // float32 [head_dim]: there where the other norm is
  kAttentionCounters,   // int64 [8], written: where a GPU leaves kAttentionFault; the CPU throws and needs none
  kAttentionInputs,
};

// To the checks the first two axes of the cache are one: a Tensor holds four. Its types are ours, so any is taken here.
inline constexpr InputSpec kAttentionSpecs[kAttentionInputs] = {
  {"qkv", Type::kFloat32, 2, false},           {"cos", Type::kFloat32, 2, false},
  {"sin", Type::kFloat32, 2, false},           {"rows", Type::kInt32, 2, false},
  {"slots", Type::kInt32, 3, false},           {"cache", Type::kOther, 4, true},
  {"weights", Type::kFloat32, 3, false, true}, {"q_norm", Type::kFloat32, 1, false, true},
  {"k_norm", Type::kFloat32, 1, false, true},  {"counters", Type::kInt64, 1, true, true},
};

struct AttentionRules {
  std::int32_t layer, heads, kv_heads, head_dim, visibility;
  float epsilon;  // of the norms of query and key heads
  bool fixed;     // the fixed form: dead rows behind the live ones
};

inline bool check_rules(const AttentionRules& rules, Message* message) {
  const char* op = "RaggedAttention";
  constexpr std::int64_t many = 65536;
  if (!check_range(op, "attribute", -1, "layer", rules.layer, 0, many, message) ||
      !check_range(op, "attribute", -1, "num_heads", rules.heads, 1, many, message) ||
      !check_range(op, "attribute", -1, "num_kv_heads", rules.kv_heads, 1, std::int64_t(rules.heads) + 1, message) ||
      !check_range(op, "attribute", -1, "head_dim", rules.head_dim, 2, std::int64_t(kMostDims) + 1, message) ||
      !check_range(op, "attribute", -1, "visibility", rules.visibility, 0, kVisibilities, message))
    return false;
  if (!(rules.epsilon >= 0 && rules.epsilon < 1e30f)) {
    message->begin(op, "attribute") << " epsilon is " << double(rules.epsilon)
                                    << ", but must be finite and at least 0.";
    return false;
  }
  if (rules.heads % rules.kv_heads != 0) {
    message->begin(op, "attribute") << " num_heads is " << rules.heads << ", but must be a multiple of num_kv_heads, "
                                    << rules.kv_heads << ".";
    return false;
  }
  if (rules.head_dim % 2 != 0) {
    message->begin(op, "attribute") << " head_dim is " << rules.head_dim << ", but must be even.";
    return false;
  }
  return true;
}

namespace attention_detail {

inline bool check_sizes(const InputSpec* specs, const Tensor* inputs, const AttentionRules& rules, Message* message) {
  const char* op = "RaggedAttention";
  const std::int64_t rows = inputs[kAttentionRows].shape[0], half = inputs[kAttentionCosine].shape[1];
  const std::int64_t heads = std::int64_t(rules.heads) + 2 * std::int64_t(rules.kv_heads);
  const auto size = [&](int input, int axis, std::int64_t wanted, const char* meaning) {
    return check_size(op, specs, inputs, input, axis, wanted, meaning, message);
  };
  if (!size(kAttentionRows, 1, kRowColumns, "the columns of a row") ||
      !size(kAttentionQkv, 0, rows, "one for each row") ||
      !size(kAttentionQkv, 1, heads * rules.head_dim, "(num_heads + 2 num_kv_heads) head_dim") ||
      !size(kAttentionCosine, 0, rows, "one for each row"))
    return false;
  if (half < 1 || half > rules.head_dim / 2) {
    message->begin(op, "cos") << " has size " << half << " along axis 1, but must have from 1 to "
                              << rules.head_dim / 2 << " (half of head_dim).";
    return false;
  }
  if (!size(kAttentionSine, 0, rows, "one for each row") || !size(kAttentionSine, 1, half, "as cos")) return false;
  for (const int norm : {kAttentionQueryNorm, kAttentionKeyNorm})
    if (inputs[norm].type != Type::kNone && !size(norm, 0, rules.head_dim, "head_dim")) return false;
  const bool query_norm = inputs[kAttentionQueryNorm].type != Type::kNone;
  if (query_norm != (inputs[kAttentionKeyNorm].type != Type::kNone)) {
    message->begin(op, query_norm ? "k_norm" : "q_norm") << " is missing, but must be there where the other norm is.";
    return false;
  }
  if (inputs[kAttentionWeights].type != Type::kNone)
    for (int axis = 0; axis < 3; ++axis)
      if (!size(kAttentionWeights, axis, inputs[kAttentionSlots].shape[axis == 0 ? 0 : 3 - axis],
                "as slots, its last axes exchanged"))
        return false;
  if (inputs[kAttentionCounters].type != Type::kNone && !size(kAttentionCounters, 0, kCounterEntries, "its entries"))
    return false;
  return size(kAttentionCache, 2, rules.kv_heads, "num_kv_heads") &&
         size(kAttentionCache, 3, (std::int64_t(rules.head_dim) + 15) / 16 * 16, "head_dim rounded up to 16");
}

}  // namespace attention_detail

// Checks inputs [kAttentionInputs] and fills all of the call but `out`. `cache_shape` has the five dimensions of the
// cache; `qkv` is the type of qkv, `cache` the one the cache must have. False: message says what is wrong.
inline bool bind_attention(const Tensor* given, const std::int64_t* cache_shape, const AttentionRules& rules, Type qkv,
                           Type cache, AttentionCall* call, Message* message) {
  const char* op = "RaggedAttention";
  Tensor inputs[kAttentionInputs];
  InputSpec specs[kAttentionInputs];
  for (int i = 0; i < kAttentionInputs; ++i) {
    inputs[i] = given[i];
    specs[i] = kAttentionSpecs[i];
  }
  Tensor& pool = inputs[kAttentionCache];
  if (pool.rank != 5) {
    message->begin(op, "cache") << " has " << pool.rank << " dimensions, but must have 5.";
    return false;
  }
  pool.rank = 4;
  pool.shape[0] = cache_shape[0] * cache_shape[1];
  for (int axis = 1; axis < 4; ++axis) pool.shape[axis] = cache_shape[axis + 1];
  specs[kAttentionQkv].type = qkv;
  specs[kAttentionCache].type = cache;
  if (!check_inputs(op, specs, kAttentionInputs, inputs, message) ||
      !attention_detail::check_sizes(specs, inputs, rules, message))
    return false;
  if (cache_shape[1] != 2 || cache_shape[0] <= rules.layer) {
    message->begin(op, "cache") << " has shape [" << cache_shape[0] << ", " << cache_shape[1]
                                << ", ...], but must have more layers than " << rules.layer << " and 2 planes.";
    return false;
  }
  const std::int64_t lanes = pool.shape[3], layer_bytes = pool.shape[1] * rules.kv_heads * lanes * type_bytes(cache);
  auto* const keys = static_cast<unsigned char*>(pool.data) + 2 * rules.layer * layer_bytes;
  *call = {};
  call->qkv = static_cast<const float*>(inputs[kAttentionQkv].data);
  call->cosine = static_cast<const float*>(inputs[kAttentionCosine].data);
  call->sine = static_cast<const float*>(inputs[kAttentionSine].data);
  call->rows = static_cast<const std::int32_t*>(inputs[kAttentionRows].data);
  call->slots = static_cast<const std::int32_t*>(inputs[kAttentionSlots].data);
  call->weights = static_cast<const float*>(inputs[kAttentionWeights].data);
  call->query_norm = static_cast<const float*>(inputs[kAttentionQueryNorm].data);
  call->key_norm = static_cast<const float*>(inputs[kAttentionKeyNorm].data);
  call->turned = std::int32_t(2 * inputs[kAttentionCosine].shape[1]);
  call->visibility = rules.visibility;
  call->epsilon = rules.epsilon;
  call->keys = keys;
  call->values = keys + layer_bytes;
  call->kept = cache;
  call->row_count = std::int32_t(inputs[kAttentionRows].shape[0]);
  call->heads = rules.heads;
  call->kv_heads = rules.kv_heads;
  call->head_dim = rules.head_dim;
  call->head_stride = std::int32_t(lanes);
  call->steps = std::int32_t(inputs[kAttentionSlots].shape[1]);
  call->length = std::int32_t(inputs[kAttentionSlots].shape[2]);
  return true;
}

}  // namespace latentcot
