// AddNorm and GatedUnit, the part that is the same for every instruction set: what a call holds and what it is checked for.
//
// Both stand between two products of a layer and work on each row by itself.
#pragma once

#include "tables.hpp"

namespace latentcot {

// total = x + residual, normed = total / sqrt(mean(total^2) + epsilon) * weight. `total` and `normed` overlap no input.
struct AddNormCall {
  const float* x;         // [rows, width]
  const float* residual;  // [rows, width]
  const float* weight;    // [width]
  float* normed;          // [rows, width]
  float* total;           // [rows, width]
  std::int64_t rows, width;
  float epsilon;
};

// out = silu(gate) * up, where a row of gate_up is its gate, then its up. `out` does not overlap gate_up.
struct GatedUnitCall {
  const float* gate_up;  // [rows, 2 * width]
  float* out;            // [rows, width]
  std::int64_t rows, width;
};

inline constexpr InputSpec kAddNormSpecs[] = {
  {"x", Type::kFloat32, 2, false},
  {"residual", Type::kFloat32, 2, false},
  {"weight", Type::kFloat32, 1, false},
};
inline constexpr InputSpec kGatedUnitSpecs[] = {{"gate_up", Type::kFloat32, 2, false}};

// Fills all but the outputs. False: message says what is wrong.
inline bool bind_add_norm(const Tensor* inputs, float epsilon, AddNormCall* call, Message* message) {
  constexpr const char* op = "AddNorm";
  if (!check_inputs(op, kAddNormSpecs, 3, inputs, message)) return false;
  const std::int64_t rows = inputs[0].shape[0], width = inputs[0].shape[1];
  if (!check_size(op, kAddNormSpecs, inputs, 1, 0, rows, "the rows of x", message) ||
      !check_size(op, kAddNormSpecs, inputs, 1, 1, width, "the width of x", message) ||
      !check_size(op, kAddNormSpecs, inputs, 2, 0, width, "the width of x", message))
    return false;
  if (width == 0) {
    message->begin(op, "x") << " has no columns, but a norm needs at least 1.";
    return false;
  }
  call->x = static_cast<const float*>(inputs[0].data);
  call->residual = static_cast<const float*>(inputs[1].data);
  call->weight = static_cast<const float*>(inputs[2].data);
  call->rows = rows;
  call->width = width;
  call->epsilon = epsilon;
  return true;
}

inline bool bind_gated_unit(const Tensor* inputs, GatedUnitCall* call, Message* message) {
  constexpr const char* op = "GatedUnit";
  if (!check_inputs(op, kGatedUnitSpecs, 1, inputs, message)) return false;
  const std::int64_t columns = inputs[0].shape[1];
  if (columns % 2 != 0) {
    message->begin(op, "gate_up") << " has " << columns << " columns, but must have an even number: gates, then ups.";
    return false;
  }
  call->gate_up = static_cast<const float*>(inputs[0].data);
  call->rows = inputs[0].shape[0];
  call->width = columns / 2;
  return true;
}

}  // namespace latentcot
