// AddNorm for ONNX Runtime.
#include "../kernels/kernel_table.hpp"
#include "attributes.hpp"
#include "by_rows.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

constexpr int64_t kTaskFloats = 1 << 15;  // some 5 us of work

class AddNorm {
 public:
  static constexpr const char* kName = "AddNorm";
  static constexpr const auto& kInputs = kAddNormSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::float32, ElementType::float32};

  explicit AddNorm(const NodeInfo& info) : epsilon_(norm_epsilon(info, kName)) {}

  void compute(Call& call) const {
    AddNormCall norm{};
    call.check(bind_add_norm(call.inputs(), epsilon_, &norm, call.message()));
    norm.normed = call.output<float>(0, {norm.rows, norm.width});
    norm.total = call.output<float>(1, {norm.rows, norm.width});
    by_rows(call, norm, best_kernels().add_norm, norm.rows, norm.width, kTaskFloats);
  }

 private:
  float epsilon_;
};

}  // namespace

const CustomOp* add_norm() { return Op<AddNorm>::definition(); }

}  // namespace latentcot::ort
