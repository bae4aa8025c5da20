// Between ONNX Runtime's tensors and those of tables.hpp.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <stdexcept>

#include "options.hpp"

namespace latentcot::example {

// What the graph says of its model, and room for `places` sequences of `length` positions at full depth.
inline Sizes sizes_of(const Ort::Session& session, std::int64_t places, std::int64_t length) {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  Sizes sizes{};
  const auto names = session.GetInputNames();
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Ort::TypeInfo info = session.GetInputTypeInfo(i);
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    shapes[names[i]] = tensor.GetShape();
    if (names[i] == "cache") sizes.cache = Type(tensor.GetElementType());
  }
  if (shapes.count("cache") == 0) throw std::runtime_error("this graph has no input `cache`; export it with --target ort");
  const auto& cache = shapes.at("cache");
  sizes.steps = shapes.at("slots")[1];
  sizes.layers = cache[0];
  sizes.kv_heads = cache[3];
  sizes.lanes = cache[4];
  sizes.vocabulary = shapes.at("logits")[2];
  sizes.hidden = shapes.at("latent")[1];
  sizes.places = places;
  sizes.length = length;
  sizes.slots = places * length * sizes.steps;
  return sizes;
}

// A tensor of ONNX Runtime over memory that the caller keeps.
inline Ort::Value value_of(const Ort::MemoryInfo& memory, const Tensor& like, void* data) {
  return Ort::Value::CreateTensor(memory, data, like.bytes.size(), like.shape.data(), like.shape.size(),
                                  ONNXTensorElementDataType(like.type));
}

}  // namespace latentcot::example
