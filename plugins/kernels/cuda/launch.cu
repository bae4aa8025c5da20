// The kernels as C functions, for callers that have no C++: ctypes in benchmarks/gpu, with PyTorch's tensors and stream.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -shared -Xcompiler=-fPIC plugins/kernels/cuda/launch.cu -o liblatentcot_cuda.so
//   int latentcot_halt(const Array* inputs, const Array* outputs, const HaltAttributes* attributes, Launch* launch)
//
// and so on for advance, choose, attention, add_norm, gated_unit. Inputs and outputs are those of the op in its order
// (latentcot_export/ops/packed_*.py), all in the memory of the current device, in the fixed form; types and shapes are
// checked as everywhere. Where `workspace` is null nothing is launched and `workspace_bytes` becomes what the call wants;
// one that wants 0 bytes is launched with any other address.
// Returns 0, else `message` is one sentence: below 0 the arguments were refused, above 0 it is a cudaError_t.
// Nothing is allocated and nobody waits, so a call may be captured into a CUDA graph.
#include <iterator>

#include "../attention_bind.hpp"
#include "../row_calls.hpp"
#include "advance.cuh"
#include "attention.cuh"
#include "choose.cuh"
#include "halt.cuh"
#include "rows.cuh"
#include "types.cuh"

namespace latentcot::cuda {

// ctypes: c_void_p, c_int, c_int, c_int64 * 5. An input that is left out has type 0 (kNone) and nothing else.
struct Array {
  void* data;
  Type type;  // 0 none, 1 float32, 2 float16, 3 int32, 4 int64, 5 bfloat16, 6 bool
  int rank;
  std::int64_t shape[5];
};

// ctypes: c_void_p, c_size_t, c_void_p, c_char * 480.
struct Launch {
  void* workspace;  // aligned to 256 bytes
  std::size_t workspace_bytes;
  void* stream;  // a cudaStream_t
  char message[sizeof(Message::text)];
};

struct HaltAttributes {  // c_float, then c_int * 4
  float tau;
  std::int32_t max_steps, stop, readout, skip_halted;
};
struct AdvanceAttributes {  // c_int * 3
  std::int32_t max_steps, runs_on, token_major;
};
struct AttentionAttributes {  // c_int * 5, c_float, c_int
  std::int32_t layer, num_heads, num_kv_heads, head_dim, visibility;
  float epsilon;
  std::int32_t prompt;  // 1: rows of one sequence may share their reads; the results are the same bits
};
struct NormAttributes {  // c_float
  float epsilon;
};

namespace {

constexpr int kMostInputs = 16;

// One call: its arrays as the checks want them, and what becomes of it.
class Caller {
 public:
  Caller(const char* op, const Array* inputs, int count, const Array* outputs, Launch* launch)
    : op_(op), outputs_(outputs), launch_(launch) {
    for (int i = 0; i < count; ++i) {
      tensors_[i].data = inputs[i].data;
      tensors_[i].type = inputs[i].type;
      tensors_[i].rank = inputs[i].rank;
      for (int axis = 0; axis < 4; ++axis) tensors_[i].shape[axis] = inputs[i].shape[axis];
    }
  }

  Tensor* inputs() { return tensors_; }
  Message* message() { return &message_; }
  Stream stream() const { return static_cast<Stream>(launch_->stream); }

  // Whether output i is of that type and size.
  bool fits(int i, Type type, std::int64_t count) {
    std::int64_t found = 1;
    for (int axis = 0; axis < outputs_[i].rank; ++axis) found *= outputs_[i].shape[axis];
    if (outputs_[i].type == type && found == count) return true;
    message_.begin(op_, "output") << " " << i << " has " << found << " elements of type "
                                  << int(outputs_[i].type) << ", but must have " << count << " of type " << int(type) << ".";
    return false;
  }
  template <class T>
  T* output(int i) const {
    return static_cast<T*>(outputs_[i].data);
  }

  // The type of the first input, which then passes for float32 with the checks.
  Type first_as_float32() {
    const Type type = float_type(tensors_[0].type);
    if (tensors_[0].type == type) tensors_[0].type = Type::kFloat32;
    return type;
  }

  int refused() {
    copy();
    return -1;
  }
  // Runs `start` (workspace) -> cudaError_t, or says how much memory it wants.
  template <class Start>
  int run(std::size_t bytes, const Start& start) {
    if (!launch_->workspace) {
      launch_->workspace_bytes = bytes;
      return 0;
    }
    if (launch_->workspace_bytes < bytes) {
      message_.begin(op_, "workspace") << " has " << std::int64_t(launch_->workspace_bytes) << " bytes, but must have "
                                       << std::int64_t(bytes) << ".";
      return refused();
    }
    const cudaError_t error = start(launch_->workspace);
    if (error == cudaSuccess) return 0;
    message_.begin(op_, "CUDA refused the launch with '") << cudaGetErrorString(error) << "'.";
    copy();
    return int(error);
  }

 private:
  void copy() {
    for (int i = 0; i <= message_.length; ++i) launch_->message[i] = message_.text[i];
  }

  const char* op_;
  const Array* outputs_;
  Launch* launch_;
  Message message_;
  Tensor tensors_[kMostInputs];
};

}  // namespace
}  // namespace latentcot::cuda

using namespace latentcot;
using namespace latentcot::cuda;

#define LATENTCOT_C extern "C" __attribute__((visibility("default"))) int

LATENTCOT_C latentcot_halt(const Array* inputs, const Array* outputs, const HaltAttributes* given, Launch* launch) {
  Caller caller("RaggedHalt", inputs, kHaltInputs, outputs, launch);
  const HaltRules rules = {given->tau, given->max_steps, given->stop, given->readout, given->skip_halted != 0, true};
  HaltCall call{};
  if (!bind_halt(caller.inputs(), rules, &call, caller.message())) return caller.refused();
  const std::int64_t rows = call.row_count, floats = rows * call.hidden;
  if (!caller.fits(0, Type::kInt32, rows * kRowColumns) || !caller.fits(1, Type::kFloat32, floats) ||
      !caller.fits(2, Type::kFloat32, rows) || !caller.fits(3, Type::kFloat32, floats) ||
      !caller.fits(4, Type::kInt32, rows * kRowColumns) || !caller.fits(5, Type::kFloat32, floats) ||
      !caller.fits(6, Type::kInt64, rows))
    return caller.refused();
  const HaltOutputs out = {caller.output<std::int32_t>(0), caller.output<float>(1),        caller.output<float>(2),
                           caller.output<float>(3),        caller.output<std::int32_t>(4), caller.output<float>(5),
                           caller.output<std::int64_t>(6)};
  return caller.run(halt_workspace(call), [&](void* workspace) {
    return launch_halt(call, out, workspace, caller.stream());
  });
}

LATENTCOT_C latentcot_advance(const Array* inputs, const Array* outputs, const AdvanceAttributes* given,
                              Launch* launch) {
  Caller caller("RaggedAdvance", inputs, kAdvanceInputs, outputs, launch);
  const AdvanceRules rules = {given->max_steps, given->runs_on != 0, given->token_major != 0, true};
  AdvanceCall call{};
  if (!bind_advance(caller.inputs(), rules, &call, caller.message())) return caller.refused();
  if (!caller.fits(0, Type::kInt32, call.row_count * kRowColumns) || !caller.fits(1, Type::kInt32, call.row_count) ||
      !caller.fits(2, Type::kOther, 1))
    return caller.refused();
  const AdvanceOutputs out = {caller.output<std::int32_t>(0), caller.output<std::int32_t>(1), caller.output<bool>(2)};
  return caller.run(advance_workspace(call), [&](void* workspace) {
    return launch_advance(call, out, workspace, caller.stream());
  });
}

LATENTCOT_C latentcot_choose(const Array* inputs, const Array* outputs, const void*, Launch* launch) {
  Caller caller("ChooseToken", inputs, kChooseInputs, outputs, launch);
  ChooseCall call{};
  if (!bind_choose(caller.inputs(), &call, caller.message(), true) || !caller.fits(0, Type::kInt32, call.row_count))
    return caller.refused();
  return caller.run(choose_workspace(call), [&](void* workspace) {
    return launch_choose(call, caller.output<std::int32_t>(0), workspace, caller.stream());
  });
}

LATENTCOT_C latentcot_attention(const Array* inputs, const Array* outputs, const AttentionAttributes* given,
                                Launch* launch) {
  Caller caller("RaggedAttention", inputs, kAttentionInputs, outputs, launch);
  const AttentionRules rules = {given->layer,      given->num_heads, given->num_kv_heads, given->head_dim,
                                given->visibility, given->epsilon,   true};
  const Array& cache = inputs[kAttentionCache];
  CudaAttentionCall call{};
  const Type data = float_type(inputs[kAttentionQkv].type), stored = float_type(cache.type);
  if (!check_rules(rules, caller.message()) ||
      !bind_attention(caller.inputs(), cache.shape, rules, data, stored, &call, caller.message()) ||
      !caller.fits(0, data, std::int64_t(call.row_count) * call.heads * call.head_dim))
    return caller.refused();
  call.out = caller.output<float>(0);
  call.data = element_of(data);
  call.stored = element_of(stored);
  call.places = std::int32_t(inputs[kAttentionSlots].shape[0]);
  call.slot_count = std::int32_t(cache.shape[2]);
  call.counters = static_cast<std::int64_t*>(inputs[kAttentionCounters].data);
  call.prompt = given->prompt != 0;
  return caller.run(attention_workspace(call), [&](void* workspace) {
    return launch_attention(call, workspace, caller.stream());
  });
}

LATENTCOT_C latentcot_add_norm(const Array* inputs, const Array* outputs, const NormAttributes* given, Launch* launch) {
  Caller caller("AddNorm", inputs, int(std::size(kAddNormSpecs)), outputs, launch);
  AddNormCall call{};
  const Type data = caller.first_as_float32();
  if (!bind_add_norm(caller.inputs(), given->epsilon, &call, caller.message()) ||
      !caller.fits(0, data, call.rows * call.width) || !caller.fits(1, Type::kFloat32, call.rows * call.width))
    return caller.refused();
  call.normed = caller.output<float>(0);
  call.total = caller.output<float>(1);
  return caller.run(0, [&](void*) { return launch_add_norm(call, element_of(data), caller.stream()); });
}

LATENTCOT_C latentcot_gated_unit(const Array* inputs, const Array* outputs, const void*, Launch* launch) {
  Caller caller("GatedUnit", inputs, int(std::size(kGatedUnitSpecs)), outputs, launch);
  GatedUnitCall call{};
  const Type data = caller.first_as_float32();
  if (!bind_gated_unit(caller.inputs(), &call, caller.message()) ||
      !caller.fits(0, data, call.rows * call.width))
    return caller.refused();
  call.out = caller.output<float>(0);
  return caller.run(0, [&](void*) { return launch_gated_unit(call, element_of(data), caller.stream()); });
}
