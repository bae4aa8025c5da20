// The ONNX Runtime adapters of the CUDA kernels, for ctypes: one call of one op over fake_ort.hpp.
#include "fake_ort.hpp"

#include "../onnxruntime/cuda/add_norm.cu"
#include "../onnxruntime/cuda/choose_token.cu"
#include "../onnxruntime/cuda/gated_unit.cu"
#include "../onnxruntime/cuda/ragged_advance.cu"
#include "../onnxruntime/cuda/ragged_attention.cu"
#include "../onnxruntime/cuda/ragged_halt.cu"

namespace latentcot::fake {
namespace {

// ctypes: c_void_p, c_int, c_int, c_int64 * 8. `type` is ONNX's number, 0 for an input that is left out.
struct Array {
  void* data;
  ElementType type;
  int rank;
  std::int64_t shape[8];
};

const CustomOp* find(const std::string& name, Type type) {
  if (name == "RaggedHalt") return cuda_ragged_halt();
  if (name == "RaggedAdvance") return cuda_ragged_advance();
  if (name == "ChooseToken") return cuda_choose_token();
  if (name == "RaggedAttention") return cuda_ragged_attention(type);
  return name == "AddNorm" ? cuda_add_norm(type) : cuda_gated_unit(type);
}

OrtStatus* run(const CustomOp* op, const OrtKernelInfo& info, OrtKernelContext& context) {
  void* kernel = nullptr;
  if (OrtStatus* refused = op->CreateKernelV2(op, api(), &info, &kernel)) return refused;
  OrtStatus* const status = op->KernelComputeV2(kernel, &context);
  op->KernelDestroy(kernel);
  return status;
}

}  // namespace
}  // namespace latentcot::fake

// Returns how often the host waited, or -1 with a sentence of at most 480 bytes. The outputs live until the next call.
extern "C" __attribute__((visibility("default"))) int latentcot_ort_run(
  const char* name, const char* const* attributes, const double* values, int attribute_count,
  const latentcot::fake::Array* inputs, int input_count, latentcot::fake::Array* outputs, char* message) {
  using namespace latentcot::fake;
  static OrtKernelContext context;
  OrtKernelInfo info;
  for (int i = 0; i < attribute_count; ++i) info.attributes[attributes[i]] = values[i];
  context.inputs.clear();
  for (int i = 0; i < input_count; ++i)
    context.inputs.push_back({inputs[i].type, {inputs[i].shape, inputs[i].shape + inputs[i].rank}, inputs[i].data, {}});
  context.op = find(name, type_of(inputs[0].type));
  context.outputs.clear();
  context.outputs.resize(context.op->GetOutputTypeCount(context.op));
  waits = 0;
  OrtStatus* const status = run(context.op, info, context);
  if (allocators_held != 0 || !allocator.taken.empty()) std::abort();  // memory was kept
  if (status) {
    std::strncpy(message, status->message.c_str(), 479);
    delete status;
    return -1;
  }
  for (std::size_t i = 0; i < context.outputs.size(); ++i) {
    const OrtValue& made = context.outputs[i];
    outputs[i].data = made.data;
    outputs[i].type = made.type;
    outputs[i].rank = static_cast<int>(made.shape.size());
    for (std::size_t axis = 0; axis < made.shape.size(); ++axis) outputs[i].shape[axis] = made.shape[axis];
  }
  return waits;
}
