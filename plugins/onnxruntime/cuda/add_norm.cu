// AddNorm for ONNX Runtime on a GPU.
#include "../../kernels/cuda/rows.cuh"

#include "../attributes.hpp"
#include "device.hpp"
#include "elements.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

template <Type kType>
class CudaAddNorm {
 public:
  static constexpr const char* kName = "AddNorm";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr auto kInputs = with_type(kAddNormSpecs, kType, 1);
  static constexpr ElementType kOutputs[] = {element_type(kType), ElementType::float32};

  explicit CudaAddNorm(const NodeInfo& info) : epsilon_(norm_epsilon(info, kName)), memory_(info) {}

  void compute(Call& call) const {
    AddNormCall norm{};
    const auto inputs = first_as_float32<std::size(kAddNormSpecs)>(call.inputs());
    call.check(bind_add_norm(inputs.data(), epsilon_, &norm, call.message()));
    norm.normed = static_cast<float*>(call.output<void>(0, {norm.rows, norm.width}));
    norm.total = call.output<float>(1, {norm.rows, norm.width});
    if (norm.rows == 0) return;
    const DeviceCall device(call, memory_);
    device.require_cuda(cuda::launch_add_norm(norm, cuda::element_of(kType), device.stream()));
  }

 private:
  float epsilon_;
  DeviceMemory memory_;
};

}  // namespace

const CustomOp* cuda_add_norm(Type type) { return definition_of<CudaAddNorm>(type); }

}  // namespace latentcot::ort
