// Fields of a plugin: what an ONNX attribute becomes, what an engine keeps of a plugin, and what makes the plugin again.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "../kernels/tables.hpp"

namespace latentcot::trt {

// One field: an int32 or a float32, alone.
struct FieldSpec {
  const char* name;
  bool real;
  double low, high;  // both allowed
};

union FieldValue {
  std::int32_t integer;
  float real;
};

// Takes the value of every field from what TensorRT gives, in any order, and refuses what is missing, double, unknown, of
// another type or out of range. False: `message` says which.
inline bool read_fields(const char* op, const FieldSpec* specs, int count, const nvinfer1::PluginFieldCollection& given,
                        FieldValue* values, Message* message) {
  std::uint64_t seen = 0;
  for (std::int32_t i = 0; i < given.nbFields; ++i) {
    const nvinfer1::PluginField& field = given.fields[i];
    int at = 0;
    while (at < count && (field.name == nullptr || std::strcmp(field.name, specs[at].name) != 0)) ++at;
    if (at == count) {
      message->begin(op, "field") << " " << (field.name ? field.name : "without a name")
                                  << " is none of this plugin's; build the engine with the plugin library of its exporter.";
      return false;
    }
    const FieldSpec& spec = specs[at];
    const auto wanted = spec.real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
    if (field.type != wanted || field.length != 1 || field.data == nullptr || (seen >> at & 1) != 0) {
      message->begin(op, "field") << " " << spec.name << " must be there once, as one " << (spec.real ? "float32" : "int32")
                                  << ".";
      return false;
    }
    std::memcpy(&values[at], field.data, 4);
    const double value = spec.real ? double(values[at].real) : double(values[at].integer);
    if (!(value >= spec.low && value <= spec.high)) {
      message->begin(op, "field") << " " << spec.name << " is ";
      if (spec.real)
        *message << value << ", but must be at least " << spec.low << " and finite.";
      else
        *message << values[at].integer << ", but must be from " << std::int64_t(spec.low) << " to "
                 << std::int64_t(spec.high) << ".";
      return false;
    }
    seen |= std::uint64_t(1) << at;
  }
  for (int at = 0; at < count; ++at) {
    if ((seen >> at & 1) != 0) continue;
    message->begin(op, "field") << " " << specs[at].name << " is missing; export the bundle again.";
    return false;
  }
  return true;
}

// Values as text, exactly: what tells two plugins of one kind apart in a timing cache.
inline std::string written_fields(const FieldSpec* specs, int count, const FieldValue* values) {
  std::string text;
  for (int at = 0; at < count; ++at) {
    if (at > 0) text += ',';
    text.append(specs[at].name).append(1, '=').append(std::to_string(values[at].integer));
  }
  return text;
}

}  // namespace latentcot::trt
