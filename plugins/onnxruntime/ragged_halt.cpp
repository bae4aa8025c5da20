// RaggedHalt for ONNX Runtime.
#include "../kernels/ragged_halt_plan.hpp"

#include "attributes.hpp"
#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

// Floats one task copies at least: below, waking another thread costs more than it saves.
constexpr int64_t kTaskFloats = 1 << 16;

struct Vectors {
  const HaltCall& call;
  const HaltOutputs& out;
  int64_t rows_per_task;

  static void task(void* self, std::size_t index) {
    const Vectors& work = *static_cast<const Vectors*>(self);
    const int64_t first = static_cast<int64_t>(index) * work.rows_per_task;
    const int64_t end = first + work.rows_per_task < work.call.row_count ? first + work.rows_per_task
                                                                         : work.call.row_count;
    for (int64_t i = first; i < end; ++i) write_halt_vectors(work.call, work.out, i);
  }
};

class RaggedHalt {
 public:
  static constexpr const char* kName = "RaggedHalt";
  static constexpr const auto& kInputs = kHaltSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32,   ElementType::float32, ElementType::float32,
                                             ElementType::float32, ElementType::int32,   ElementType::float32,
                                             ElementType::int64};

  explicit RaggedHalt(const NodeInfo& info) : rules_(halt_rules(info)) {}

  void compute(Call& call) const {
    HaltCall halt{};
    call.check(bind_halt(call.inputs(), rules_, &halt, call.message()));
    thread_local Scratch memory;
    call.check(plan_halt(&halt, memory.get(halt_bytes(halt)), call.message()));
    const int64_t next = rules_.fixed ? halt.row_count : halt.going_on;
    const int64_t head = rules_.fixed ? halt.row_count : halt.head_count;
    HaltOutputs out{};
    out.rows = call.output<int32_t>(0, {next, kRowColumns});
    out.latent = call.output<float>(1, {next, halt.hidden});
    out.reach = call.output<float>(2, {next});
    out.mix = call.output<float>(3, {next, halt.hidden});
    out.head_rows = call.output<int32_t>(4, {head, kRowColumns});
    out.head_mix = call.output<float>(5, {head, halt.hidden});
    out.head_index = call.output<int64_t>(6, {head});
    write_halt(halt, out);
    if (halt.row_count == 0) return;
    const int64_t rows_per_task = kTaskFloats / (halt.hidden + 1) + 1;
    Vectors work{halt, out, rows_per_task};
    const int64_t tasks = (halt.row_count + rows_per_task - 1) / rows_per_task;
    const Parallel parallel = call.parallel();
    parallel.run(parallel.context, static_cast<std::size_t>(tasks), &Vectors::task, &work);
  }

 private:
  HaltRules rules_;
};

}  // namespace

const CustomOp* ragged_halt() { return Op<RaggedHalt>::definition(); }

}  // namespace latentcot::ort
