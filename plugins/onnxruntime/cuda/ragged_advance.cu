// RaggedAdvance for ONNX Runtime on a GPU.
//
// Dynamic form: how many rows there will be depends on values, and max_rows is one of them. The host waits twice: for
// max_rows, which bounds the rows, then for the rows that a kernel made in memory of that size.
#include "../../kernels/cuda/advance.cuh"

#include <algorithm>

#include "../attributes.hpp"
#include "../scratch.hpp"
#include "faults.hpp"
#include "ops.hpp"

namespace latentcot::ort {
namespace {

class CudaRaggedAdvance {
 public:
  static constexpr const char* kName = "RaggedAdvance";
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr const auto& kInputs = kAdvanceSpecs;
  static constexpr ElementType kOutputs[] = {ElementType::int32, ElementType::int32, ElementType::boolean};

  explicit CudaRaggedAdvance(const NodeInfo& info) : rules_(advance_rules(info)), memory_(info) {}

  void compute(Call& call) const {
    AdvanceCall advance{};
    call.check(bind_advance(call.inputs(), rules_, &advance, call.message()));
    DeviceCall device(call, memory_);
    cuda::AdvanceOutputs out{};
    out.again = call.output<bool>(2, {});
    if (!rules_.fixed) return compute_dynamic(call, device, advance, out);
    out.rows = call.output<int32_t>(0, {advance.row_count, kRowColumns});
    out.fresh = call.output<int32_t>(1, {advance.row_count});
    run(device, advance, out);
  }

 private:
  static void run(DeviceCall& device, const AdvanceCall& advance, const cuda::AdvanceOutputs& out) {
    void* const workspace = device.scratch(cuda::advance_workspace(advance));
    device.require_cuda(cuda::launch_advance(advance, out, workspace, device.stream()));
  }

  // Rows there may be afterwards: every sequence may start one token, and prompts start while there are fewer than
  // max_rows. Each that starts takes a slot.
  static int64_t most_rows(const DeviceCall& device, const AdvanceCall& advance) {
    int32_t max_rows = 0;
    device.copy<int32_t>(&max_rows, advance.control + kMaxRows, 1, cudaMemcpyDeviceToHost);
    device.wait();
    const int64_t most = std::max(advance.row_count + advance.places, static_cast<int64_t>(max_rows));
    return std::min(most, advance.row_count + advance.slot_count);
  }

  static void compute_dynamic(Call& call, DeviceCall& device, AdvanceCall advance, cuda::AdvanceOutputs full) {
    const int64_t rows = advance.row_count, fresh = advance.fresh_count, capacity = most_rows(device, advance);
    auto* const padded = device.scratch<int32_t>(capacity * kRowColumns);
    device.copy(padded, advance.rows, rows * kRowColumns);
    static_assert(kDead == -1);  // all its bits are set
    device.fill(padded + rows * kRowColumns, 0xff, sizeof(int32_t) * (capacity - rows) * kRowColumns);
    full.rows = device.scratch<int32_t>(capacity * kRowColumns);
    full.fresh = device.scratch<int32_t>(capacity);
    const int32_t* const tokens = advance.fresh;
    advance.rows = padded;
    advance.row_count = capacity;
    advance.rules.fixed = true;
    run(device, advance, full);

    thread_local Scratch memory;
    const int64_t columns = capacity * kRowColumns;
    auto* const stalled = static_cast<int64_t*>(memory.get(sizeof(int64_t) + sizeof(int32_t) * columns));
    auto* const host_rows = reinterpret_cast<int32_t*>(stalled + 1);
    device.copy<int64_t>(stalled, advance.counters + kStalled, 1, cudaMemcpyDeviceToHost);
    device.copy<int32_t>(host_rows, full.rows, columns, cudaMemcpyDeviceToHost);
    device.wait();
    require_no_fault(call, *stalled);
    const int64_t total = live_rows(host_rows, capacity), started = total - rows;
    auto* const out_rows = call.output<int32_t>(0, {total, kRowColumns});
    auto* const out_fresh = call.output<int32_t>(1, {fresh + started});
    device.copy(out_rows, full.rows, total * kRowColumns);
    device.copy(out_fresh, tokens, fresh);
    device.copy(out_fresh + fresh, full.fresh + rows, started);  // the fixed form has the token of row i at i
  }

  AdvanceRules rules_;
  DeviceMemory memory_;
};

}  // namespace

const CustomOp* cuda_ragged_advance() { return Op<CudaRaggedAdvance>::definition(); }

}  // namespace latentcot::ort
