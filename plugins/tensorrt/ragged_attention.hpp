// RaggedAttention for TensorRT. The cache is that of one layer, [2, slots, kv_heads, lanes]: a tensor for each layer, since
// one for all would have more elements than a 32-bit number counts long before a GPU is full.
#pragma once

#include "../kernels/attention_bind.hpp"
#include "plugin.hpp"

namespace latentcot::trt {

struct RaggedAttention {
  static constexpr const char* kName = "RaggedAttention";
  static constexpr InputDesc kInputs[kAttentionInputs] = {
    {"qkv", kWide, 2},  {"cos", kFloat, 2},  {"sin", kFloat, 2},
    {"rows", kInt, 2},  {"slots", kInt, 3},  {"cache", kWide, 4},
    {"weights", kFloat, 3, true}, {"q_norm", kFloat, 1, true}, {"k_norm", kFloat, 1, true},
    {"counters", kLong, 1, true},
  };
  static constexpr OutputDesc kOutputs[] = {
    made_like(kAttentionQkv, {kAttentionQkv, 0}, {kOfFields, 0}),
    changed(kAttentionCache),
    changed(kAttentionCounters),
  };
  enum Field { kLayer = kOwnFields, kHeads, kKvHeads, kHeadDim, kVisibility, kEpsilon, kDecodeRows };
  static constexpr FieldSpec kFields[] = {
    kFixedField,
    kInputsField,
    {"layer", false, 0, 65535},  // which one it is, for whoever reads a profile
    {"num_heads", false, 1, 65535},
    {"num_kv_heads", false, 1, 65535},
    {"head_dim", false, 2, kMostDims},
    {"visibility", false, 0, kVisibilities - 1},
    {"epsilon", true, 0, 1e30},
    {"decode_rows", false, 0, 1 << 20},  // up to so many rows a pass decodes, with more it reads prompts
  };
  FieldValue values[std::size(kFields)];

  std::int32_t of(Field field) const { return values[field].integer; }
  std::int64_t own_extent() const { return std::int64_t(of(kHeads)) * of(kHeadDim); }

  // The cache of a call is one layer's, so the layer is the first.
  AttentionRules rules() const {
    return {0, of(kHeads), of(kKvHeads), of(kHeadDim), of(kVisibility), values[kEpsilon].real, true};
  }

  bool check(Message* message) const { return check_rules(rules(), message); }

  // `rows` of the rows that the tensors have.
  bool bind(const Tensor* in, std::int64_t rows, Attention* attention, Message* message) const {
    Tensor tensors[kAttentionInputs];
    for (int i = 0; i < kAttentionInputs; ++i) tensors[i] = in[i];
    for (const int each : {kAttentionQkv, kAttentionCosine, kAttentionSine, kAttentionRows})
      if (tensors[each].shape[0] == in[kAttentionRows].shape[0]) tensors[each].shape[0] = rows;
    const Tensor& cache = in[kAttentionCache];
    const std::int64_t shape[5] = {1, cache.shape[0], cache.shape[1], cache.shape[2], cache.shape[3]};
    tensors[kAttentionCache].rank = 5;
    *attention = {};
    if (!bind_attention(tensors, shape, rules(), in[kAttentionQkv].type, cache.type, &attention->call, message)) return false;
    attention->activations = element_of(in[kAttentionQkv].type);
    attention->cache = element_of(cache.type);
    attention->places = std::int32_t(in[kAttentionSlots].shape[0]);
    attention->slot_count = std::int32_t(cache.shape[1]);
    attention->counters = static_cast<std::int64_t*>(in[kAttentionCounters].data);
    attention->prompt = rows > of(kDecodeRows);
    return true;
  }

  // For this many rows or fewer, of positions or fewer: a pass that decodes may want more than a larger one that reads
  // prompts, and a shorter table has more chunks where a longer one has chunks of twice the positions.
  std::size_t workspace(const Tensor* in, Message* message) const {
    std::size_t bytes = 0;
    const std::int64_t most = in[kAttentionRows].shape[0], decoding = of(kDecodeRows);
    for (const std::int64_t rows : {most, most < decoding ? most : decoding}) {
      Attention attention{};
      if (rows < 1 || !bind(in, rows, &attention, message)) continue;
      const std::size_t wanted = attention_workspace(attention);
      bytes = wanted > bytes ? wanted : bytes;
    }
    return bytes;
  }

  int enqueue(const Tensor* in, void* const* out, void* workspace, void* stream, Message* message) const {
    Attention attention{};
    if (!bind(in, in[kAttentionRows].shape[0], &attention, message)) return 1;
    attention.call.out = static_cast<float*>(out[0]);
    return launch_attention(attention, workspace, stream);
  }
};

}  // namespace latentcot::trt
