// The ops of domain `latentcot` on a GPU, one file each. The same names as on the CPU: ONNX Runtime takes those of the
// provider that it gives a node to, and where there is no such provider it never makes them.
#pragma once

#include "../op.hpp"

namespace latentcot::ort {

const CustomOp* cuda_ragged_halt();
const CustomOp* cuda_ragged_advance();
const CustomOp* cuda_choose_token();
// Of float32, float16 and bfloat16: the type of qkv, of x, of gate_up.
const CustomOp* cuda_ragged_attention(Type type);
const CustomOp* cuda_add_norm(Type type);
const CustomOp* cuda_gated_unit(Type type);

// On the CPU, of float16 and bfloat16: a kernel that refuses to be made.
const CustomOp* refused_ragged_attention(Type type);

}  // namespace latentcot::ort
