// GatedUnit for ONNX Runtime on a GPU.
#include "../../kernels/cuda/rows.cuh"

#include "device.hpp"
#include "elements.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

template <Type kType>
class CudaGatedUnit {
 public:
  static constexpr const char* kName = "GatedUnit";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr auto kInputs = with_type(kGatedUnitSpecs, kType, 1);
  static constexpr ElementType kOutputs[] = {element_type(kType)};

  explicit CudaGatedUnit(const NodeInfo& info) : memory_(info) {}

  void compute(Call& call) const {
    GatedUnitCall unit{};
    const auto inputs = first_as_float32<std::size(kGatedUnitSpecs)>(call.inputs());
    call.check(bind_gated_unit(inputs.data(), &unit, call.message()));
    unit.out = static_cast<float*>(call.output<void>(0, {unit.rows, unit.width}));
    if (unit.rows == 0 || unit.width == 0) return;
    const DeviceCall device(call, memory_);
    device.require_cuda(cuda::launch_gated_unit(unit, cuda::element_of(kType), device.stream()));
  }

 private:
  DeviceMemory memory_;
};

}  // namespace

const CustomOp* cuda_gated_unit(Type type) { return definition_of<CudaGatedUnit>(type); }

}  // namespace latentcot::ort
