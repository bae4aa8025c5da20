// RaggedAdvance for ONNX Runtime.
#include "../kernels/ragged_advance_plan.hpp"

#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

class RaggedAdvance {
 public:
  static constexpr const char* kName = "RaggedAdvance";
  static constexpr const auto& kInputs = kAdvanceSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32, ElementType::int32, ElementType::boolean};

  explicit RaggedAdvance(const NodeInfo& info)
    : rules_{info.integer("max_steps", 1, 65535), info.integer("runs_on", 0, 1, 0) != 0,
             info.integer("token_major", 0, 1, 0) != 0} {
    rules_.jacobi = info.integer("jacobi", 0, 1, 0) != 0;
  }

  void compute(Call& call) const {
    AdvanceCall advance{};
    call.check(bind_advance(call.inputs(), rules_, &advance, call.message()));
    thread_local Scratch memory;
    call.check(plan_advance(&advance, memory.get(advance_bytes(advance)), call.message()));
    int32_t* rows = call.output<int32_t>(0, {advance.row_total, kRowColumns});
    int32_t* fresh = call.output<int32_t>(1, {advance.fresh_total});
    bool* again = call.output<bool>(2, {});
    write_advance(advance, rows, fresh, again);
  }

 private:
  AdvanceRules rules_;
};

}  // namespace

const CustomOp* ragged_advance() { return Op<RaggedAdvance>::definition(); }

}  // namespace latentcot::ort
