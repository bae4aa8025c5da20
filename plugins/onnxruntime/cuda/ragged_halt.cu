// RaggedHalt for ONNX Runtime on a GPU.
//
// Dynamic form: shapes that ONNX Runtime must know depend on values. The kernel fills memory for every row, the host waits
// for its counts, and what lives is copied into outputs of that size: one wait and up to nine copies a pass that the fixed
// form does not have.
#include "../../kernels/cuda/halt.cuh"

#include "../attributes.hpp"
#include "faults.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

class CudaRaggedHalt {
 public:
  static constexpr const char* kName = "RaggedHalt";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr const auto& kInputs = kHaltSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32,   ElementType::float32, ElementType::float32,
                                             ElementType::float32, ElementType::int32,   ElementType::float32,
                                             ElementType::int64};

  explicit CudaRaggedHalt(const NodeInfo& info) : rules_(halt_rules(info)), memory_(info) {}

  void compute(Call& call) const {
    HaltCall halt{};
    call.check(bind_halt(call.inputs(), rules_, &halt, call.message()));
    DeviceCall device(call, memory_);
    if (rules_.fixed) {
      run(device, halt, outputs(call, halt, halt.row_count, halt.row_count));
    } else {
      compute_dynamic(call, device, halt);
    }
  }

 private:
  static HaltOutputs outputs(Call& call, const HaltCall& halt, int64_t next, int64_t head) {
    HaltOutputs out{};
    out.rows = call.output<int32_t>(0, {next, kRowColumns});
    out.latent = call.output<float>(1, {next, halt.hidden});
    out.reach = call.output<float>(2, {next});
    out.mix = call.output<float>(3, {next, halt.hidden});
    out.head_rows = call.output<int32_t>(4, {head, kRowColumns});
    out.head_mix = call.output<float>(5, {head, halt.hidden});
    out.head_index = call.output<int64_t>(6, {head});
    return out;
  }

  // Returns where the counts will stand.
  static const cuda::HaltCounts* run(DeviceCall& device, const HaltCall& halt, const HaltOutputs& out) {
    void* const workspace = device.scratch(cuda::halt_workspace(halt));
    device.require_cuda(cuda::launch_halt(halt, out, workspace, device.stream()));
    return static_cast<const cuda::HaltCounts*>(workspace);
  }

  static void compute_dynamic(Call& call, DeviceCall& device, const HaltCall& halt) {
    const int64_t rows = halt.row_count, columns = rows * kRowColumns, floats = rows * halt.hidden;
    HaltOutputs full{};
    full.rows = device.scratch<int32_t>(columns);
    full.latent = device.scratch<float>(floats);
    full.reach = device.scratch<float>(rows);
    full.mix = device.scratch<float>(floats);
    full.head_rows = device.scratch<int32_t>(columns);
    full.head_mix = device.scratch<float>(floats);
    full.head_index = device.scratch<int64_t>(rows);
    const cuda::HaltCounts* const counted = run(device, halt, full);
    int64_t stalled = 0;
    cuda::HaltCounts counts{};
    device.copy<int64_t>(&stalled, halt.counters + kStalled, 1, cudaMemcpyDeviceToHost);
    device.copy<cuda::HaltCounts>(&counts, counted, 1, cudaMemcpyDeviceToHost);
    device.wait();
    require_no_fault(call, stalled);
    const int64_t next = counts.going_on, head = counts.head_count;
    const HaltOutputs out = outputs(call, halt, next, head);
    device.copy(out.rows, full.rows, next * kRowColumns);
    device.copy(out.latent, full.latent, next * halt.hidden);
    device.copy(out.reach, full.reach, next);
    device.copy(out.mix, full.mix, next * halt.hidden);
    device.copy(out.head_rows, full.head_rows, head * kRowColumns);
    device.copy(out.head_mix, full.head_mix, head * halt.hidden);
    device.copy(out.head_index, full.head_index, head);
  }

  HaltRules rules_;
  DeviceMemory memory_;
};

}  // namespace

const CustomOp* cuda_ragged_halt() { return Op<CudaRaggedHalt>::definition(); }

}  // namespace latentcot::ort
