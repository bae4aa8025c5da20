// RaggedAdvance on a GPU: the contract is that of latentcot_export/ops/packed_advance.py with fixed = 1.
//
// One launch of one block, for its decisions hang together: advance_plan.cuh and advance_starts.cuh decide,
// advance_write.cuh writes. A fault leaves every table as it is and no row alive. Beyond the contract, `fresh` may hold the
// tokens of the last live rows, as in the dynamic form: they run step 1 and keep the slot they have.
#pragma once

#include "advance_write.cuh"

namespace latentcot::cuda {

namespace advance_detail {

template <int kThreads>
__global__ void __launch_bounds__(kThreads) advance_rows(const AdvanceCall given, const AdvanceOutputs out,
                                                         unsigned char* const workspace) {
  LATENTCOT_SHARED(unsigned char, shared);
  Plan plan = plan_of(given, shared, workspace);
  if (check_tables(plan) && check_rows(plan) && decide_finish(plan) && decide_starts(plan)) {
    write_finished(plan);
    write_rows(plan, out);
    write_tables(plan, out);
  } else {
    write_fault(given, out);
  }
}

constexpr int kSmallBlock = 256, kLargeBlock = 1024;
constexpr std::int64_t kCellsPerThread = 32;  // of a sequence that finishes: it does so once, rows come every pass

}  // namespace advance_detail

// Bytes of device memory that launch_advance works in, aligned to 8.
inline std::size_t advance_workspace(const AdvanceCall& call) {
  const std::size_t bytes = advance_detail::table_bytes(call.places);
  return bytes <= advance_detail::kSharedTables ? 0 : bytes;
}

// Outputs of `row_count` rows in device memory, none of it an input of the call.
inline cudaError_t launch_advance(const AdvanceCall& call, const AdvanceOutputs& out, void* workspace, Stream stream) {
  using namespace advance_detail;
  const std::size_t tables = table_bytes(call.places);
  const bool shared = tables <= kSharedTables;
  const std::int64_t cells = call.max_steps * call.positions / kCellsPerThread;
  const std::int64_t work = Greatest()(Greatest()(call.row_count, call.places), cells);
  const bool large = work > kSmallBlock;  // where there is no work for all of them, the barriers of many threads cost more
  return launch(large ? advance_rows<kLargeBlock> : advance_rows<kSmallBlock>, dim3(1),
                dim3(unsigned(threads_for(work, large ? kLargeBlock : kSmallBlock))),
                sizeof(Scratch) + (shared ? tables : 0), stream, call, out,
                shared ? nullptr : static_cast<unsigned char*>(workspace));
}

}  // namespace latentcot::cuda
