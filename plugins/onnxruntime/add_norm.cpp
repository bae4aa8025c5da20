// AddNorm for ONNX Runtime.
#include "../kernels/kernel_table.hpp"
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

  explicit AddNorm(const NodeInfo& info) : epsilon_(info.real("epsilon")) {
    if (epsilon_ >= 0 && epsilon_ < 1e30f) return;
    Failure failure;
    failure.message.begin(kName, "attribute")
      << " epsilon is " << static_cast<double>(epsilon_) << ", but must be finite and at least 0.";
    throw failure;
  }

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
