// RaggedAttention for ONNX Runtime.
#include <algorithm>

#include "../kernels/kernel_table.hpp"
#include "attributes.hpp"
#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

class RaggedAttention {
 public:
  static constexpr const char* kName = "RaggedAttention";
  static constexpr const auto& kInputs = kAttentionSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::float32};

  explicit RaggedAttention(const NodeInfo& info) : rules_(attention_rules(info)) {}

  void compute(Call& call) const {
    AttentionCall attention{};
    const Type cache = float_type(call.inputs()[kAttentionCache].type);
    call.check(bind_attention(call.inputs(), call.shape(kAttentionCache), rules_, Type::kFloat32, cache, &attention,
                              call.message()));
    const int64_t width = int64_t{rules_.heads} * rules_.head_dim;
    attention.out = call.output<float>(0, {attention.row_count, width});
    int64_t live = 0;
    call.check(count_live(kName, attention.rows, attention.row_count, rules_.fixed, &live, call.message()));
    std::fill(attention.out + live * width, attention.out + attention.row_count * width, 0.f);
    attention.row_count = static_cast<int32_t>(live);  // nothing of a dead row is read from here on
    if (live == 0) return;
    const int32_t slot_count = static_cast<int32_t>(call.shape(kAttentionCache)[2]);
    call.check(check_rows(attention, call.inputs(), slot_count, call.message()));
    // one thread runs one pass at a time, so its memory can be kept from layer to layer
    thread_local Scratch plan_memory, workspace;
    const AttentionPlan plan = make_plan(attention, plan_memory.get(plan_bytes(attention)), call.threads());
    call.check(check_lists(plan, slot_count, call.message()));
    const KernelTable& kernels = best_kernels();
    void* memory = workspace.get(kernels.attention_bytes(attention, plan, call.threads()));
    kernels.ragged_attention(attention, plan, memory, call.parallel());
  }

 private:
  // Every row stands in the tables, at the slot the table gives it.
  static bool check_rows(const AttentionCall& call, const Tensor* inputs, int32_t slot_count, Message* message) {
    const int64_t places = inputs[kAttentionSlots].shape[0];
    for (int64_t i = 0; i < call.row_count; ++i) {
      const int32_t* row = call.rows + i * kRowColumns;
      if (!check_range(kName, "rows", i, "sequence", row[kRowSequence], 0, places, message) ||
          !check_range(kName, "rows", i, "position", row[kRowPosition], 0, call.length, message) ||
          !check_range(kName, "rows", i, "step", row[kRowStep], 1, int64_t{call.steps} + 1, message) ||
          !check_range(kName, "rows", i, "slot", row[kRowSlot], kReadsOnly, slot_count, message)) {
        return false;
      }
      const int64_t plane = int64_t{row[kRowSequence]} * call.steps + row[kRowStep] - 1;
      const int32_t entered = call.slots[plane * call.length + row[kRowPosition]];
      if (row[kRowSlot] == kReadsOnly ? entered != kNoSlot : row[kRowSlot] < 0 || entered != row[kRowSlot]) {
        message->begin(kName, "rows", i) << " slot is " << row[kRowSlot] << ", but slots has " << entered
                                         << " for its sequence, step and position.";
        return false;
      }
    }
    return true;
  }

  // Every slot that is read is one of the cache.
  static bool check_lists(const AttentionPlan& plan, int32_t slot_count, Message* message) {
    for (int32_t i = 0; i < plan.run_count; ++i) {
      const Run& run = plan.runs[i];
      const int32_t count = plan.counts[run.starts + static_cast<std::size_t>(run.planes)];
      int32_t largest = 0;
      for (int32_t j = 0; j < count; ++j) {
        const int32_t slot = plan.lists[run.list + static_cast<std::size_t>(j)];
        largest = slot > largest ? slot : largest;
        if (plan.biases != nullptr && !(plan.biases[run.list + static_cast<std::size_t>(j)] <= 0)) {
          message->begin(kName, "weights") << " of a key that is read is not a number from 0 to 1.";
          return false;
        }
      }
      if (!check_range(kName, "slots", -1, "entry", largest, 0, slot_count, message)) return false;
    }
    return true;
  }

  AttentionRules rules_;
};

}  // namespace

const CustomOp* ragged_attention() { return Op<RaggedAttention>::definition(); }

}  // namespace latentcot::ort
