// RaggedAttention for ONNX Runtime on a GPU. Its output has as many rows as its input, so neither form waits.
#include "../../kernels/cuda/attention.cuh"

#include "../attributes.hpp"
#include "device.hpp"
#include "elements.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

template <Type kType>
class CudaRaggedAttention {
 public:
  static constexpr const char* kName = "RaggedAttention";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr auto kInputs = with_type(kAttentionSpecs, kType, 1);
  static constexpr ElementType kOutputs[] = {element_type(kType)};

  explicit CudaRaggedAttention(const NodeInfo& info) : rules_(attention_rules(info)), memory_(info) {}

  void compute(Call& call) const {
    const Tensor* inputs = call.inputs();
    const Type cache = float_type(inputs[kAttentionCache].type);
    const int64_t* cache_shape = call.shape(kAttentionCache);
    cuda::CudaAttentionCall attention{};
    call.check(bind_attention(inputs, cache_shape, rules_, kType, cache, &attention, call.message()));
    void* const out = call.output<void>(0, {attention.row_count, int64_t{rules_.heads} * rules_.head_dim});
    if (attention.row_count == 0) return;
    attention.out = static_cast<float*>(out);
    attention.data = cuda::element_of(kType);
    attention.stored = cuda::element_of(cache);
    attention.places = static_cast<int32_t>(inputs[kAttentionSlots].shape[0]);
    attention.slot_count = static_cast<int32_t>(cache_shape[2]);
    attention.counters = static_cast<int64_t*>(inputs[kAttentionCounters].data);
    // more rows than sequences: some have several, which may share tiles. The results are the same bits
    attention.prompt = attention.row_count > attention.places;
    DeviceCall device(call, memory_);
    void* const workspace = device.scratch(cuda::attention_workspace(attention));
    device.require_cuda(cuda::launch_attention(attention, workspace, device.stream()));
  }

 private:
  AttentionRules rules_;
  DeviceMemory memory_;
};

// What stands on the CPU for the types that only a GPU has. Without it ONNX Runtime would convert all inputs of those types
// to float32, a cache among them, and what is written there would be lost.
template <Type kType>
class RefusedRaggedAttention {
 public:
  static constexpr const char* kName = "RaggedAttention";
  static constexpr auto kInputs = with_type(kAttentionSpecs, kType, 1);
  static constexpr ElementType kOutputs[] = {element_type(kType)};

  explicit RefusedRaggedAttention(const NodeInfo&) {
    Failure failure;
    failure.message.begin(kName, "qkv") << " is " << type_name(kType) << ", but must be float32 on the CPU.";
    throw failure;
  }

  void compute(Call&) const {}
};

}  // namespace

const CustomOp* refused_ragged_attention(Type type) { return definition_of<RefusedRaggedAttention>(type); }

const CustomOp* cuda_ragged_attention(Type type) { return definition_of<CudaRaggedAttention>(type); }

}  // namespace latentcot::ort
