// The ops of domain `latentcot`, one file each.
#pragma once

#include "op.hpp"

namespace latentcot::ort {

const CustomOp* ragged_attention();
const CustomOp* ragged_halt();
const CustomOp* ragged_advance();
const CustomOp* choose_token();
const CustomOp* add_norm();
const CustomOp* gated_unit();

}  // namespace latentcot::ort
