// Ops that a GPU has in three element types are three ops of one name to ONNX Runtime, which chooses by the graph's types.
#pragma once

#include <array>

#include "../../kernels/cuda/types.cuh"
#include "../op.hpp"

namespace latentcot::ort {

// The inputs of an op, the first `count` of them of another type.
template <std::size_t kCount>
constexpr std::array<InputSpec, kCount> with_type(const InputSpec (&specs)[kCount], Type type, std::size_t count) {
  std::array<InputSpec, kCount> changed{};
  for (std::size_t i = 0; i < kCount; ++i) {
    changed[i] = specs[i];
    if (i < count) changed[i].type = type;
  }
  return changed;
}

// Inputs as the checks of float32 want them: ONNX Runtime has seen to the type of the first.
template <std::size_t kCount>
std::array<Tensor, kCount> first_as_float32(const Tensor* inputs) {
  std::array<Tensor, kCount> changed;
  for (std::size_t i = 0; i < kCount; ++i) changed[i] = inputs[i];
  changed[0].type = Type::kFloat32;
  return changed;
}

// Op<Body<type>>::definition() of the three types.
template <template <Type> class Body>
const CustomOp* definition_of(Type type) {
  if (type == Type::kFloat16) return Op<Body<Type::kFloat16>>::definition();
  if (type == Type::kBFloat16) return Op<Body<Type::kBFloat16>>::definition();
  return Op<Body<Type::kFloat32>>::definition();
}

}  // namespace latentcot::ort
