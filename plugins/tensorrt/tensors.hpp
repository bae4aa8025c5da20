// What the plugins say of their inputs and outputs, and TensorRT's descriptions of them in the kernels' words.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>

#include "../kernels/tables.hpp"
#include "launch.hpp"

namespace latentcot::trt {

using DataType = nvinfer1::DataType;

// Sets of element types, as bits.
enum Types : unsigned {
  kFloat = 1,
  kHalf = 2,
  kBrain = 4,  // bfloat16
  kInt = 8,
  kLong = 16,
  kWide = kFloat | kHalf | kBrain,
};

inline unsigned type_bit(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return kFloat;
    case DataType::kHALF: return kHalf;
    case DataType::kBF16: return kBrain;
    case DataType::kINT32: return kInt;
    case DataType::kINT64: return kLong;
    default: return 0;
  }
}

// An input by its place in the op's contract. Those that are optional may be left out: the field `inputs` has the bits of
// those that are there.
struct InputDesc {
  const char* name;
  unsigned types;
  int rank;
  bool optional = false;
};

// One dimension of an output: that of an input, or, for an input below 0, a number.
struct Extent {
  int input;
  std::int64_t axis;
};

// An output. A new one has the type `type` (of input `like`, where that is 0 or more) and `rank` extents; an aliased one
// (`alias` >= 0) is that input, changed in place, and is left out where the input is.
struct OutputDesc {
  int alias;
  DataType type;
  int like;
  int rank;
  Extent extents[2];
};

constexpr OutputDesc changed(int input) { return {input, DataType::kFLOAT, -1, 0, {}}; }
constexpr OutputDesc made(DataType type, Extent first) { return {-1, type, -1, 1, {first, {}}}; }
constexpr OutputDesc made(DataType type, Extent first, Extent second) { return {-1, type, -1, 2, {first, second}}; }
constexpr OutputDesc made_like(int input, Extent first, Extent second) {
  return {-1, DataType::kFLOAT, input, 2, {first, second}};
}

inline Type type_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return Type::kFloat32;
    case DataType::kHALF: return Type::kFloat16;
    case DataType::kBF16: return Type::kBFloat16;
    case DataType::kINT32: return Type::kInt32;
    case DataType::kINT64: return Type::kInt64;
    default: return Type::kOther;
  }
}

// A tensor of a call in the kernels' words. One that is absent has type kNone.
inline Tensor tensor_of(const nvinfer1::Dims& dims, DataType type, void* data) {
  Tensor out;
  out.data = data;
  out.type = type_of(type);
  out.rank = dims.nbDims;
  for (int axis = 0; axis < dims.nbDims && axis < 4; ++axis) out.shape[axis] = dims.d[axis];
  return out;
}

inline Element element_of(Type type) {
  return type == Type::kFloat16    ? Element::kFloat16
         : type == Type::kBFloat16 ? Element::kBFloat16
                                   : Element::kFloat32;
}

}  // namespace latentcot::trt
