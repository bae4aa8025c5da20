// A plugin of TensorRT's V3 interfaces over one op, and its creator. The op says what it takes and gives (`kInputs`,
// `kOutputs`, `kFields`), checks its fields together (`check`), and starts its kernels (`workspace`, `enqueue`).
//
// Tables are inputs that change in place: each is an output too, aliased, so that the order of the nodes that read and
// write them stands in the graph. Everything is of the fixed form, see latentcot_export/ops/packed_tables.py.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <iterator>
#include <new>
#include <string>

#include "fields.hpp"
#include "launch.hpp"
#include "tensors.hpp"

namespace latentcot::trt {

constexpr const char* kNamespace = "latentcot";
constexpr const char* kVersion = "1";

// The first two fields of every op.
constexpr FieldSpec kFixedField = {"fixed", false, 1, 1};
constexpr FieldSpec kInputsField = {"inputs", false, 0, (1 << 30) - 1};
constexpr int kFixed = 0, kPresent = 1, kOwnFields = 2;

// Extents that are no dimension of an input.
constexpr int kNumber = -1, kOfFields = -2;

constexpr int kMostInputs = 16, kMostOutputs = 16;

// Tells TensorRT's logger, where it gave one, else whoever reads stderr.
void report(const Message& message) noexcept;

// Counts a table that was copied, since its changes were wanted elsewhere.
void copied() noexcept;

template <class Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
  static constexpr int kInputs = int(std::size(Op::kInputs)), kOutputs = int(std::size(Op::kOutputs));
  static constexpr int kFields = int(std::size(Op::kFields));
  static_assert(kInputs <= kMostInputs && kOutputs <= kMostOutputs);

 public:
  explicit Plugin(const Op& op) : op_(op), text_(written_fields(Op::kFields, kFields, op.values)) {
    for (int i = 0; i < kInputs; ++i)
      if (has(i)) inputs_[input_count_++] = i;
    for (int i = 0; i < kOutputs; ++i)
      if (Op::kOutputs[i].alias < 0 || has(Op::kOutputs[i].alias)) outputs_[output_count_++] = i;
    for (int i = 0; i < kFields; ++i) {
      const auto type = Op::kFields[i].real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
      fields_[i] = nvinfer1::PluginField(Op::kFields[i].name, &op_.values[i], type, 1);
    }
    collection_.nbFields = kFields;
    collection_.fields = fields_;
  }
  Plugin(const Plugin& other) : Plugin(other.op_) {}
  Plugin& operator=(const Plugin&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(*this); }

  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  std::int32_t getNbOutputs() const noexcept override { return output_count_; }
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, std::int32_t, const nvinfer1::DynamicPluginTensorDesc*,
                               std::int32_t) noexcept override {
    return 0;
  }

  std::int32_t getOutputDataTypes(DataType* types, std::int32_t outputs, const DataType* given,
                                  std::int32_t inputs) const noexcept override {
    if (!counted(inputs, outputs)) return 1;
    for (int i = 0; i < outputs; ++i) types[i] = output_type(outputs_[i], given);
    return 0;
  }

  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* given, std::int32_t inputs, const nvinfer1::DimsExprs*,
                               std::int32_t, nvinfer1::DimsExprs* shapes, std::int32_t outputs,
                               nvinfer1::IExprBuilder& builder) noexcept override {
    if (!counted(inputs, outputs)) return 1;
    for (int j = 0; j < inputs; ++j) {
      const InputDesc& input = Op::kInputs[inputs_[j]];
      if (given[j].nbDims != input.rank) return refuse(input.name, " has ", given[j].nbDims, input.rank);
    }
    for (int i = 0; i < outputs; ++i) {
      const OutputDesc& output = Op::kOutputs[outputs_[i]];
      if (output.alias >= 0) {
        shapes[i] = given[position(output.alias)];
        continue;
      }
      shapes[i].nbDims = output.rank;
      for (int axis = 0; axis < output.rank; ++axis) {
        const Extent& extent = output.extents[axis];
        shapes[i].d[axis] = extent.input == kOfFields ? builder.constant(op_.own_extent())
                            : extent.input == kNumber ? builder.constant(extent.axis)
                                                      : given[position(extent.input)].d[extent.axis];
      }
    }
    return 0;
  }

  bool supportsFormatCombination(std::int32_t at, const nvinfer1::DynamicPluginTensorDesc* all, std::int32_t inputs,
                                 std::int32_t outputs) noexcept override {
    if (!counted(inputs, outputs) || at < 0 || at >= inputs + outputs) return false;
    const nvinfer1::PluginTensorDesc& here = all[at].desc;
    if (here.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (at < inputs) return (type_bit(here.type) & Op::kInputs[inputs_[at]].types) != 0;
    DataType types[kMostInputs];
    for (int j = 0; j < inputs; ++j) types[j] = all[j].desc.type;
    return here.type == output_type(outputs_[at - inputs], types);
  }

  // Output i changes which input, -1 for a new tensor. TensorRT asks only where the preview feature for it is on.
  std::int32_t getAliasedInput(std::int32_t i) noexcept override {
    if (i < 0 || i >= output_count_) return -1;
    const int alias = Op::kOutputs[outputs_[i]].alias;
    return alias < 0 ? -1 : position(alias);
  }

  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* given, std::int32_t inputs,
                               const nvinfer1::DynamicPluginTensorDesc*, std::int32_t) const noexcept override {
    if (inputs != input_count_) return 0;
    Tensor all[kMostInputs];
    // there is no memory yet: addresses apart from each other stand for it, and nothing is read there
    std::uintptr_t address = 4096;
    for (int j = 0; j < inputs; ++j) {
      Tensor& one = all[inputs_[j]];
      one = tensor_of(given[j].max, given[j].desc.type, reinterpret_cast<void*>(address));
      address += (std::uintptr_t(elements(one) * type_bytes(one.type)) + 4096) & ~std::uintptr_t(255);
    }
    Message message;
    return op_.workspace(all, &message);
  }

  // The same plugin in the same state may take the timings of another build.
  const char* getTimingCacheID() noexcept override { return text_.c_str(); }
  const char* getMetadataString() noexcept override { return text_.c_str(); }

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, std::int32_t inputs, const nvinfer1::PluginTensorDesc*,
                             std::int32_t outputs) noexcept override {
    return counted(inputs, outputs) ? 0 : 1;
  }

  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override {
    Tensor all[kMostInputs];
    void* out[kMostOutputs] = {};
    for (int j = 0; j < input_count_; ++j)
      all[inputs_[j]] = tensor_of(input_descs[j].dims, input_descs[j].type, const_cast<void*>(inputs[j]));
    Message message;
    for (int i = 0; i < output_count_; ++i) {
      const int alias = Op::kOutputs[outputs_[i]].alias;
      out[outputs_[i]] = outputs[i];
      if (alias < 0 || outputs[i] == all[alias].data) continue;
      const std::size_t bytes = std::size_t(elements(all[alias]) * type_bytes(all[alias].type));
      if (bytes == 0) continue;
      // A builder that times a plugin may give it places of their own. An engine that does is right and slow, which the
      // host can ask for.
      if (copy(outputs[i], all[alias].data, bytes, stream) != 0) {
        message.begin(Op::kName, Op::kInputs[alias].name) << " cannot be copied to where its changes are wanted.";
        report(message);
        return 1;
      }
      all[alias].data = outputs[i];
      copied();
    }
    const int status = op_.enqueue(all, out, workspace, stream, &message);
    if (status != 0) {
      if (message.length == 0) message.begin(Op::kName, "launch") << " failed with CUDA error " << status << ".";
      report(message);
    }
    return status;
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  bool has(int input) const { return (op_.values[kPresent].integer >> input & 1) != 0; }

  int position(int input) const {
    int j = 0;
    while (inputs_[j] != input) ++j;
    return j;
  }

  DataType output_type(int output, const DataType* given) const {
    const OutputDesc& desc = Op::kOutputs[output];
    if (desc.alias >= 0) return given[position(desc.alias)];
    return desc.like >= 0 ? given[position(desc.like)] : desc.type;
  }

  bool counted(std::int32_t inputs, std::int32_t outputs) const {
    if (inputs == input_count_ && outputs == output_count_) return true;
    Message message;
    message.begin(Op::kName, "node") << " has " << inputs << " inputs and " << outputs << " outputs, but must have "
                                     << input_count_ << " and " << output_count_ << " by its field inputs.";
    report(message);
    return false;
  }

  std::int32_t refuse(const char* input, const char* verb, std::int64_t value, std::int64_t wanted) const {
    Message message;
    message.begin(Op::kName, input) << verb << value << " dimensions, but must have " << wanted << ".";
    report(message);
    return 1;
  }

  Op op_;
  std::string text_;
  int inputs_[kMostInputs] = {}, outputs_[kMostOutputs] = {};  // those that are there, by their place in the contract
  int input_count_ = 0, output_count_ = 0;
  nvinfer1::PluginField fields_[kFields];
  nvinfer1::PluginFieldCollection collection_;
};

template <class Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
  static constexpr int kFields = int(std::size(Op::kFields));

 public:
  Creator() {
    for (int i = 0; i < kFields; ++i) {
      const auto type = Op::kFields[i].real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
      names_[i] = nvinfer1::PluginField(Op::kFields[i].name, nullptr, type, 1);
    }
    collection_.nbFields = kFields;
    collection_.fields = names_;
  }

  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  // The same in both phases: what an engine keeps are the fields that made the plugin.
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    Message message;
    Op op{};
    const nvinfer1::PluginFieldCollection none{};
    if (read_fields(Op::kName, Op::kFields, kFields, given ? *given : none, op.values, &message) &&
        check_inputs_field(op.values[kPresent].integer, &message) && op.check(&message))
      return new (std::nothrow) Plugin<Op>(op);
    report(message);
    return nullptr;
  }

 private:
  static bool check_inputs_field(std::int32_t present, Message* message) {
    const int count = int(std::size(Op::kInputs));
    bool good = present >> count == 0;
    for (int i = 0; i < count; ++i) good = good && (Op::kInputs[i].optional || (present >> i & 1) != 0);
    if (!good) {
      message->begin(Op::kName, "field") << " inputs is " << present << ", but must have a bit for each of the "
                                         << count << " inputs that is given, and all that are not optional.";
    }
    return good;
  }

  nvinfer1::PluginField names_[kFields];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace latentcot::trt
