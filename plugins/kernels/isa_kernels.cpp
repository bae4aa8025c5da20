// The vector kernels of one instruction set: compiled once per set with LATENTCOT_ISA naming it and the matching flags.
#include "kernel_table.hpp"

#include "attention_tasks.hpp"
#include "choose_row.hpp"
#include "row_kernels.hpp"

#define LATENTCOT_TEXT_OF(name) #name
#define LATENTCOT_TEXT(name) LATENTCOT_TEXT_OF(name)

namespace latentcot::LATENTCOT_ISA {

extern const KernelTable table;
const KernelTable table = {
  LATENTCOT_TEXT(LATENTCOT_ISA), attention_bytes, ragged_attention, choose_kernels, add_norm, gated_unit};

}  // namespace latentcot::LATENTCOT_ISA
