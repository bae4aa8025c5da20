// The dynamic form on a GPU waits for its counts anyway, so there a fault in values can be told as a sentence.
#pragma once

#include "device.hpp"

namespace latentcot::ort {

// Rows before the first dead one, of rows [count, 4] on the host.
inline int64_t live_rows(const int32_t* rows, int64_t count) {
  int64_t live = 0;
  while (live < count && !is_dead(rows, live)) ++live;
  return live;
}

// Ends the call where counters[kStalled], as it was read, is a Fault.
inline void require_no_fault(const Call& call, int64_t stalled) {
  if (stalled >= 0) return;
  const char* const ops[] = {"RaggedHalt", "RaggedAdvance", "ChooseToken", "RaggedAttention"};
  Failure failure;
  failure.message.begin(call.op(), "counters", kStalled)
    << " is " << stalled << ": a value given to " << (stalled >= kAttentionFault ? ops[-1 - stalled] : "an op")
    << " was at fault, and a GPU cannot say which; run the same on the CPU, which does.";
  throw failure;
}

}  // namespace latentcot::ort
