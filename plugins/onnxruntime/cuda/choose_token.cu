// ChooseToken for ONNX Runtime on a GPU. Its output has as many rows as its input, so neither form waits.
#include "../../kernels/cuda/choose.cuh"

#include "../attributes.hpp"
#include "device.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

class CudaChooseToken {
 public:
  static constexpr const char* kName = "ChooseToken";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr const auto& kInputs = kChooseSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32};

  explicit CudaChooseToken(const NodeInfo& info) : fixed_(is_fixed(info)), memory_(info) {}

  void compute(Call& call) const {
    ChooseCall choose{};
    call.check(bind_choose(call.inputs(), &choose, call.message(), fixed_));
    int32_t* const chosen = call.output<int32_t>(0, {choose.row_count});
    if (choose.row_count == 0) return;
    DeviceCall device(call, memory_);
    void* const workspace = device.scratch(cuda::choose_workspace(choose));
    device.require_cuda(cuda::launch_choose(choose, chosen, workspace, device.stream()));
  }

 private:
  bool fixed_;
  DeviceMemory memory_;
};

}  // namespace

const CustomOp* cuda_choose_token() { return Op<CudaChooseToken>::definition(); }

}  // namespace latentcot::ort
