// RaggedAdvance for ONNX Runtime.
#include "../kernels/ragged_advance_plan.hpp"

#include "attributes.hpp"
#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

class RaggedAdvance {
 public:
  static constexpr const char* kName = "RaggedAdvance";
  static constexpr const auto& kInputs = kAdvanceSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32, ElementType::int32, ElementType::boolean};

  explicit RaggedAdvance(const NodeInfo& info) : rules_(advance_rules(info)) {}

  void compute(Call& call) const {
    AdvanceCall advance{};
    call.check(bind_advance(call.inputs(), rules_, &advance, call.message()));
    thread_local Scratch memory;
    call.check(plan_advance(&advance, memory.get(advance_bytes(advance)), call.message()));
    const int64_t capacity = advance.row_count;
    int32_t* rows = call.output<int32_t>(0, {rules_.fixed ? capacity : advance.row_total, kRowColumns});
    int32_t* fresh = call.output<int32_t>(1, {rules_.fixed ? capacity : advance.fresh_total});
    bool* again = call.output<bool>(2, {});
    write_advance(advance, rows, fresh, again);
  }

 private:
  AdvanceRules rules_;
};

}  // namespace

const CustomOp* ragged_advance() { return Op<RaggedAdvance>::definition(); }

}  // namespace latentcot::ort
