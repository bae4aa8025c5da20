// The vector kernels, compiled once per instruction set and chosen when the library is loaded.
#pragma once

#include "attention_plan.hpp"
#include "choose_token.hpp"
#include "row_calls.hpp"

namespace latentcot {

// Entry points of one instruction set. `workspace` has as many bytes as the matching *_bytes asks for.
struct KernelTable {
  const char* name;
  std::size_t (*attention_bytes)(const AttentionCall&, const AttentionPlan&, int threads);
  void (*ragged_attention)(const AttentionCall&, const AttentionPlan&, void* workspace, const Parallel&);
  ChooseKernels choose;
  // rows [first, end)
  void (*add_norm)(const AddNormCall&, std::int64_t first, std::int64_t end);
  void (*gated_unit)(const GatedUnitCall&, std::int64_t first, std::int64_t end);
};

// Null where this build or this processor lacks the instruction set: "portable" is always there.
const KernelTable* kernels_named(const char* name);

// The widest that this processor has.
const KernelTable& best_kernels();

}  // namespace latentcot
