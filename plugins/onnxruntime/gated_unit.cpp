// GatedUnit for ONNX Runtime.
#include "../kernels/kernel_table.hpp"
#include "by_rows.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

constexpr int64_t kTaskFloats = 1 << 14;  // some 5 us of work

class GatedUnit {
 public:
  static constexpr const char* kName = "GatedUnit";
  static constexpr const auto& kInputs = kGatedUnitSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::float32};

  explicit GatedUnit(const NodeInfo&) {}

  void compute(Call& call) const {
    GatedUnitCall unit{};
    call.check(bind_gated_unit(call.inputs(), &unit, call.message()));
    unit.out = call.output<float>(0, {unit.rows, unit.width});
    by_rows(call, unit, best_kernels().gated_unit, unit.rows, unit.width, kTaskFloats);
  }
};

}  // namespace

const CustomOp* gated_unit() { return Op<GatedUnit>::definition(); }

}  // namespace latentcot::ort
