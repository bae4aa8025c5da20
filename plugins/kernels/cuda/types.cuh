// From the types of tensors to those of the kernels.
#pragma once

#include "../tables.hpp"
#include "element.cuh"

namespace latentcot::cuda {

// The type itself where kernels take it, else float32, which the checks then ask for.
constexpr Type float_type(Type given) {
  return given == Type::kFloat16 || given == Type::kBFloat16 ? given : Type::kFloat32;
}

constexpr Element element_of(Type type) {
  return type == Type::kFloat16    ? Element::kFloat16
         : type == Type::kBFloat16 ? Element::kBfloat16
                                   : Element::kFloat32;
}

}  // namespace latentcot::cuda
