// ChooseToken for ONNX Runtime.
#include "../kernels/choose_token.hpp"

#include "../kernels/kernel_table.hpp"
#include "attributes.hpp"
#include "ops.hpp"
#include "scratch.hpp"

namespace latentcot::ort {
namespace {

// Workers take every n-th row: rows of one call cost much the same.
struct Choosing {
  const ChooseCall& call;
  const ChooseKernels& kernels;
  unsigned char* workspaces;
  std::size_t bytes;
  int64_t workers;
  int32_t* chosen;

  static void task(void* self, std::size_t worker) {
    const Choosing& work = *static_cast<const Choosing*>(self);
    unsigned char* const workspace = work.workspaces + worker * work.bytes;
    for (int64_t i = static_cast<int64_t>(worker); i < work.call.row_count; i += work.workers) {
      work.chosen[i] = choose_one(work.call, work.kernels, i, workspace);
    }
  }
};

class ChooseToken {
 public:
  static constexpr const char* kName = "ChooseToken";
  static constexpr const auto& kInputs = kChooseSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32};

  explicit ChooseToken(const NodeInfo& info) : fixed_(is_fixed(info)) {}

  void compute(Call& call) const {
    ChooseCall choose{};
    call.check(bind_choose(call.inputs(), &choose, call.message(), fixed_));
    call.check(plan_choose(&choose, call.message()));
    int32_t* chosen = call.output<int32_t>(0, {choose.row_count});
    if (choose.row_count == 0) return;
    const ChooseKernels& kernels = best_kernels().choose;
    const int64_t workers = choose.row_count < call.threads() ? choose.row_count : call.threads();
    const std::size_t bytes = (kernels.bytes(choose.vocabulary, choose.greedy) + 63) / 64 * 64;
    thread_local Scratch memory;
    auto* workspaces = static_cast<unsigned char*>(memory.get(bytes * static_cast<std::size_t>(workers)));
    Choosing work{choose, kernels, workspaces, bytes, workers, chosen};
    const Parallel parallel = call.parallel();
    parallel.run(parallel.context, static_cast<std::size_t>(workers), &Choosing::task, &work);
    call.finish();
    call.check(write_choose(choose, chosen, call.message()));
  }

 private:
  bool fixed_;
};

}  // namespace

const CustomOp* choose_token() { return Op<ChooseToken>::definition(); }

}  // namespace latentcot::ort
