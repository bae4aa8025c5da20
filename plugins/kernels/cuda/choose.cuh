// ChooseToken on a GPU: the contract is that of latentcot_export/ops/packed_choose.py with fixed = 1.
//
// One launch, one block for each row. A row's choice depends on its own logits alone: masses are sums of integers
// (choose_logits.cuh), which are the same in every order. A row with a fault in its values chooses nothing.
#pragma once

#include "choose_search.cuh"

namespace latentcot::cuda {

namespace choose_detail {

// How row i chooses; `good` is false where the table says something that cannot be.
struct Order {
  bool lives, chooses, good;
  Choice choice;
};

__device__ inline Order order_of(const ChooseCall& call, std::int64_t i) {
  const std::int32_t* row = call.rows + i * kRowColumns;
  Order order = {false, false, true, {}};
  if (call.fixed && is_dead(call.rows, i)) return order;
  order.good = row_fits(row, call.places, call.positions, kMostSteps, call.sequences);
  order.lives = order.good;
  // a live row behind a dead one is worked on, but the order was broken by somebody
  if (call.fixed && i > 0 && is_dead(call.rows, i - 1)) order.good = false;
  if (!order.lives || !chooses(call, i)) return order;
  const std::int64_t s = row[kRowSequence];
  const float temperature = call.sampling[s * kSamplingColumns + kTemperature];
  const float top_p = call.sampling[s * kSamplingColumns + kTopP];
  const float uniform = call.uniform[s * call.positions + row[kRowPosition] + 1];
  const std::int32_t top_k = call.sequences[s * kSequenceColumns + kTopK];
  order.choice = {temperature, top_p, uniform, top_k};
  const bool samples = temperature > 0 && temperature <= kLargest && top_p > 0 && top_p <= 1 && uniform >= 0 &&
                       uniform < 1 && top_k >= 0;
  order.chooses = temperature == 0 || samples;
  order.good = order.good && order.chooses;
  return order;
}

// Enters what row i chose in the tables, as write_choose.
__device__ inline void enter_token(const ChooseCall& call, const std::int32_t* row, std::int32_t token) {
  const std::int64_t s = row[kRowSequence], next = row[kRowPosition] + 1;
  std::int32_t* sequence = call.sequences + s * kSequenceColumns;
  call.tokens[s * call.positions + next] = token;
  sequence[kLength] = std::int32_t(next) + 1;
  for (std::int64_t j = 0; j < call.stops; ++j)
    if (call.stop_tokens[s * call.stops + j] == token) sequence[kStopped] = 1;
}

// Part: what one thread reads at a time, float or float4.
template <class Part, int kThreads>
__global__ void __launch_bounds__(kThreads) choose_rows(const ChooseCall call, std::int32_t* chosen) {
  LATENTCOT_SHARED(Scratch, scratch);
  const std::int64_t i = blockIdx.x;
  const std::int32_t* row = call.rows + i * kRowColumns;
  const Order order = order_of(call, i);
  std::int32_t token = -1;
  bool good = order.good;
  if (order.lives) {
    const std::int64_t s = row[kRowSequence], t = row[kRowPosition];
    float* const record = t < call.recorded ? call.record + (s * call.recorded + t) * call.vocabulary : nullptr;
    const Logits<Part> logits = {call.logits + i * call.vocabulary, std::int32_t(call.vocabulary)};
    if (record) copy(logits, record);
    if (order.chooses) {
      token = choose_one(logits, order.choice, *scratch);
      good = good && token >= 0;
    }
  }
  // every thread has read the sequence's row before one writes to it: choose_one ends with a barrier
  if (threadIdx.x > 0) return;
  chosen[i] = token;
  if (!good && call.counters) report_fault(call.counters, kChooseFault);
  if (token >= 0) enter_token(call, row, token);
}

constexpr std::int64_t kSmallVocabulary = 8192;  // up to it a small block reads 32 logits a thread
constexpr int kLeastBlock = 2 * kWarp;  // what `pick` looks at shrinks by the number of warps
constexpr int kSmallBlock = 256;
constexpr int kLargeBlock = 512;  // 1024 threads have 64 registers each, and the search spills (ptxas)

}  // namespace choose_detail

// Bytes of device memory that launch_choose works in: none, all of it is shared.
inline std::size_t choose_workspace(const ChooseCall&) { return 0; }

// chosen [row_count] in device memory. `counters` of the call, for the fault, may be null.
inline cudaError_t launch_choose(const ChooseCall& call, std::int32_t* chosen, void*, Stream stream) {
  using namespace choose_detail;
  if (call.row_count == 0) return cudaSuccess;
  // rows of the record and of the logits begin at multiples of 16 bytes together
  const bool wide = call.vocabulary % 4 == 0 && aligned_to_16(call.logits) && aligned_to_16(call.record);
  const bool small = call.vocabulary <= kSmallVocabulary;
  const std::int64_t reads = Greatest()(call.vocabulary / (wide ? 4 : 1), std::int64_t(kLeastBlock));
  const int threads = threads_for(reads, small ? kSmallBlock : kLargeBlock);
  const dim3 rows(unsigned(call.row_count));
  const auto start = [&](auto kernel) {
    return launch(kernel, rows, dim3(unsigned(threads)), sizeof(Scratch), stream, call, chosen);
  };
  if (small) return start(wide ? choose_rows<float4, kSmallBlock> : choose_rows<float, kSmallBlock>);
  return start(wide ? choose_rows<float4, kLargeBlock> : choose_rows<float, kLargeBlock>);
}

}  // namespace latentcot::cuda
