// The plugins' launches: a call in plain words becomes one of plugins/kernels/cuda.
#include "launch.hpp"

#include <cstring>

#include "../kernels/cuda/advance.cuh"
#include "../kernels/cuda/attention.cuh"
#include "../kernels/cuda/choose.cuh"
#include "../kernels/cuda/halt.cuh"

namespace latentcot::trt {
namespace {

cuda::Stream stream_of(void* stream) { return static_cast<cuda::Stream>(stream); }

cuda::Element element_of(Element type) {
  switch (type) {
    case Element::kFloat16: return cuda::Element::kFloat16;
    case Element::kBFloat16: return cuda::Element::kBfloat16;
    default: return cuda::Element::kFloat32;
  }
}

cuda::CudaAttentionCall call_of(const Attention& given) {
  cuda::CudaAttentionCall call{};
  static_cast<AttentionCall&>(call) = given.call;
  call.data = element_of(given.activations);
  call.stored = element_of(given.cache);
  call.places = given.places;
  call.slot_count = given.slot_count;
  call.counters = given.counters;
  call.prompt = given.prompt;
  return call;
}

int cleared(void* memory, std::size_t bytes, void* stream) {
#ifdef __CUDACC__
  return int(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
#else
  (void)stream;
  std::memset(memory, 0, bytes);
  return 0;
#endif
}

}  // namespace

std::size_t attention_workspace(const Attention& call) { return cuda::most_attention_workspace(call_of(call)); }
std::size_t halt_workspace(const HaltCall& call) { return cuda::halt_workspace(call); }
std::size_t advance_workspace(const AdvanceCall& call) { return cuda::advance_workspace(call); }
std::size_t choose_workspace(const ChooseCall& call) { return cuda::choose_workspace(call); }

int copy(void* to, const void* from, std::size_t bytes, void* stream) {
#ifdef __CUDACC__
  return int(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(stream)));
#else
  (void)stream;
  std::memcpy(to, from, bytes);
  return 0;
#endif
}

int launch_attention(const Attention& call, void* workspace, void* stream) {
  return int(cuda::launch_attention(call_of(call), workspace, stream_of(stream)));
}

int launch_halt(const HaltCall& call, const HaltOutputs& out, void* workspace, void* stream) {
  return int(cuda::launch_halt(call, out, workspace, stream_of(stream)));
}

int launch_advance(const AdvanceCall& call, std::int32_t* rows, std::int32_t* fresh, std::int32_t* again, void* workspace,
                   void* stream) {
  // the kernel writes a bool, the lowest byte of the number
  const int status = cleared(again, sizeof(*again), stream);
  if (status != 0) return status;
  const cuda::AdvanceOutputs out = {rows, fresh, reinterpret_cast<bool*>(again)};
  return int(cuda::launch_advance(call, out, workspace, stream_of(stream)));
}

int launch_choose(const ChooseCall& call, std::int32_t* chosen, void* workspace, void* stream) {
  return int(cuda::launch_choose(call, chosen, workspace, stream_of(stream)));
}

}  // namespace latentcot::trt
