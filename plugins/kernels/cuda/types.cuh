// From the types of tensors to those of the kernels.
#pragma once

#include "../tables.hpp"
#include "element.cuh"

namespace latentcot::cuda {

constexpr Element element_of(Type type) {
  return type == Type::kFloat16    ? Element::kFloat16
         : type == Type::kBFloat16 ? Element::kBfloat16
                                   : Element::kFloat32;
}

}  // namespace latentcot::cuda
