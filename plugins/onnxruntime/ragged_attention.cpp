// RaggedAttention for ONNX Runtime.
#include "../kernels/kernel_table.hpp"
#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

enum Input : int { kQkv, kCosine, kSine, kRows, kSlots, kCache, kWeights, kQueryNorm, kKeyNorm };

class RaggedAttention {
 public:
  static constexpr const char* kName = "RaggedAttention";
  // The cache is [layers, 2, slots, kv heads, lanes]; to the checks its first two axes are one. Both its element types
  // are ours, which to ONNX Runtime is any type.
  static constexpr InputSpec kInputs[] = {
    {"qkv", Type::kFloat32, 2, false},  {"cos", Type::kFloat32, 2, false},  {"sin", Type::kFloat32, 2, false},
    {"rows", Type::kInt32, 2, false},   {"slots", Type::kInt32, 3, false},  {"cache", Type::kOther, 4, true},
    {"weights", Type::kFloat32, 3, false, true},
    {"q_norm", Type::kFloat32, 1, false, true}, {"k_norm", Type::kFloat32, 1, false, true},
  };
  static constexpr ElementType kOutputs[] = {ElementType::float32};

  explicit RaggedAttention(const NodeInfo& info)
    : layer_(info.integer("layer", 0, 65535)),
      heads_(info.integer("num_heads", 1, 65535)),
      kv_heads_(info.integer("num_kv_heads", 1, heads_)),
      head_dim_(info.integer("head_dim", 2, kMostDims)),
      visibility_(info.integer("visibility", 0, kVisibilities - 1, kDuo)),
      epsilon_(info.real("epsilon", 0.f)) {
    Failure failure;
    if (!(epsilon_ >= 0 && epsilon_ < 1e30f)) {
      failure.message.begin(kName, "attribute")
        << " epsilon is " << static_cast<double>(epsilon_) << ", but must be finite and at least 0.";
      throw failure;
    }
    if (heads_ % kv_heads_ != 0) {
      failure.message.begin(kName, "attribute")
        << " num_heads is " << heads_ << ", but must be a multiple of num_kv_heads, " << kv_heads_ << ".";
      throw failure;
    }
    if (head_dim_ % 2 != 0) {
      failure.message.begin(kName, "attribute") << " head_dim is " << head_dim_ << ", but must be even.";
      throw failure;
    }
  }

  void compute(Call& call) const {
    const AttentionCall attention = bind(call);
    if (attention.row_count == 0) return;
    const int32_t slot_count = static_cast<int32_t>(call.shape(kCache)[2]);
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
  // Shapes agree with each other and with the attributes; the output is made.
  AttentionCall bind(Call& call) const {
    Tensor inputs[std::size(kInputs)];
    InputSpec specs[std::size(kInputs)];
    for (std::size_t i = 0; i < std::size(kInputs); ++i) {
      inputs[i] = call.inputs()[i];
      specs[i] = kInputs[i];
    }
    Message& message = *call.message();
    Tensor& cache = inputs[kCache];
    if (cache.rank != 5) {
      message.begin(kName, "cache") << " has " << cache.rank << " dimensions, but must have 5.";
      call.check(false);
    }
    const int64_t* shape = call.shape(kCache);
    cache.rank = 4;
    cache.shape[0] = shape[0] * shape[1];
    for (int axis = 1; axis < 4; ++axis) cache.shape[axis] = shape[axis + 1];
    const bool half_cache = cache.type == Type::kFloat16;
    specs[kCache].type = half_cache ? Type::kFloat16 : Type::kFloat32;
    call.check(check_inputs(kName, specs, static_cast<int>(std::size(kInputs)), inputs, &message));

    const int64_t rows = inputs[kRows].shape[0];
    const int64_t stride = (int64_t{head_dim_} + 15) / 16 * 16;
    const auto size = [&](int input, int axis, int64_t wanted, const char* meaning) {
      call.check(check_size(kName, specs, inputs, input, axis, wanted, meaning, &message));
    };
    size(kRows, 1, kRowColumns, "the columns of a row");
    size(kQkv, 0, rows, "one for each row");
    size(kQkv, 1, (int64_t{heads_} + 2 * int64_t{kv_heads_}) * head_dim_, "(num_heads + 2 num_kv_heads) head_dim");
    size(kCosine, 0, rows, "one for each row");
    const int64_t half = inputs[kCosine].shape[1];
    if (half < 1 || half > head_dim_ / 2) {
      message.begin(kName, "cos") << " has size " << half << " along axis 1, but must have from 1 to " << head_dim_ / 2
                                  << " (half of head_dim).";
      call.check(false);
    }
    size(kSine, 0, rows, "one for each row");
    size(kSine, 1, half, "as cos");
    for (const int norm : {kQueryNorm, kKeyNorm})
      if (inputs[norm].type != Type::kNone) size(norm, 0, head_dim_, "head_dim");
    if ((inputs[kQueryNorm].type == Type::kNone) != (inputs[kKeyNorm].type == Type::kNone)) {
      message.begin(kName, inputs[kQueryNorm].type == Type::kNone ? "q_norm" : "k_norm")
        << " is missing, but must be there where the other norm is.";
      call.check(false);
    }
    if (inputs[kWeights].type != Type::kNone)
      for (int axis = 0; axis < 3; ++axis)
        size(kWeights, axis, inputs[kSlots].shape[axis == 0 ? 0 : 3 - axis], "as slots, its last axes exchanged");
    size(kCache, 2, kv_heads_, "num_kv_heads");
    size(kCache, 3, stride, "head_dim rounded up to 16");
    if (shape[1] != 2 || shape[0] <= layer_) {
      message.begin(kName, "cache") << " has shape [" << shape[0] << ", " << shape[1]
                                    << ", ...], but must have more layers than " << layer_ << " and 2 planes.";
      call.check(false);
    }

    const int64_t layer_values = shape[2] * kv_heads_ * stride;
    auto* const keys = static_cast<unsigned char*>(cache.data) + 2 * layer_ * layer_values * type_bytes(cache.type);
    AttentionCall out{};
    out.qkv = static_cast<const float*>(inputs[kQkv].data);
    out.cosine = static_cast<const float*>(inputs[kCosine].data);
    out.sine = static_cast<const float*>(inputs[kSine].data);
    out.rows = static_cast<const int32_t*>(inputs[kRows].data);
    out.slots = static_cast<const int32_t*>(inputs[kSlots].data);
    out.weights = static_cast<const float*>(inputs[kWeights].data);
    out.query_norm = static_cast<const float*>(inputs[kQueryNorm].data);
    out.key_norm = static_cast<const float*>(inputs[kKeyNorm].data);
    out.turned = static_cast<int32_t>(2 * half);
    out.visibility = visibility_;
    out.epsilon = epsilon_;
    out.keys = keys;
    out.values = keys + layer_values * type_bytes(cache.type);
    out.half = half_cache;
    out.row_count = static_cast<int32_t>(rows);
    out.heads = heads_;
    out.kv_heads = kv_heads_;
    out.head_dim = head_dim_;
    out.head_stride = static_cast<int32_t>(stride);
    out.steps = static_cast<int32_t>(inputs[kSlots].shape[1]);
    out.length = static_cast<int32_t>(inputs[kSlots].shape[2]);
    out.out = call.output<float>(0, {rows, int64_t{heads_} * head_dim_});
    return out;
  }

  // Every row stands in the tables, at the slot the table gives it.
  static bool check_rows(const AttentionCall& call, const Tensor* inputs, int32_t slot_count, Message* message) {
    const int64_t places = inputs[kSlots].shape[0];
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

  int32_t layer_, heads_, kv_heads_, head_dim_, visibility_;
  float epsilon_;
};

}  // namespace

const CustomOp* ragged_attention() { return Op<RaggedAttention>::definition(); }

}  // namespace latentcot::ort
