// TensorRT's side of a plugin, for tests without TensorRT: creates plugins of a library and asks what a builder and an
// execution context would ask. Dimensions at or above 0 are known, those below are names of unknown ones.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <string>

using namespace nvinfer1;

namespace {

constexpr int kMostRank = Dims::MAX_DIMS;

struct Value final : apiv::VDimensionExpr {
  std::int64_t value = 0;
  bool isConstant() const override { return value >= 0; }
  std::int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
};

struct Expression final : IDimensionExpr {
  Value value;
  explicit Expression(std::int64_t number) {
    value.value = number;
    mImpl = &value;
  }
  ~Expression() noexcept override = default;
};

struct Expressions final : apiv::VExprBuilder {
  std::deque<Expression> made;
  const IDimensionExpr* constant(std::int64_t number) override { return &made.emplace_back(number); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override { return nullptr; }
  const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&, const IDimensionExpr&) override { return nullptr; }
};

struct Builder final : IExprBuilder {
  explicit Builder(Expressions* expressions) { mImpl = expressions; }
  ~Builder() noexcept override = default;
};

struct Log final : ILogger {
  std::string last;
  void log(Severity, const char* message) noexcept override { last = message; }
} messages;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &messages; }
  ~Finder() override = default;
} finder;

IPluginCreatorInterface* const* creators = nullptr;
std::int32_t creator_count = 0;

template <class Capability>
Capability* of(void* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneBuildV2* build_of(void* plugin) { return of<IPluginV3OneBuildV2>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime_of(void* plugin) { return of<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }
IPluginV3OneCore* core_of(void* plugin) { return of<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }

PluginTensorDesc desc_of(int rank, const std::int64_t* dims, int type) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = rank;
  for (int axis = 0; axis < rank; ++axis) desc.dims.d[axis] = dims[axis];
  desc.type = static_cast<DataType>(type);
  desc.format = TensorFormat::kLINEAR;
  return desc;
}

}  // namespace

extern "C" {

const char* last_message() { return messages.last.c_str(); }
void forget_message() { messages.last.clear(); }

// The number of creators, -1 where the library does not load.
int open_library(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    messages.last = dlerror();
    return -1;
  }
  auto* const give = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
  auto* const log = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  if (!give || !log) return -1;
  log(&finder);
  creators = give(creator_count);
  return creator_count;
}

// "kind major.minor name version namespace field,field,..." of creator i.
const char* creator(int i) {
  static std::string text;
  auto* const made = static_cast<IPluginCreatorV3One*>(creators[i]);
  const InterfaceInfo info = made->getInterfaceInfo();
  text = std::string(info.kind) + "|" + std::to_string(info.major) + "." + std::to_string(info.minor) + "|" +
         made->getPluginName() + "|" + made->getPluginVersion() + "|" + made->getPluginNamespace() + "|";
  const PluginFieldCollection* const fields = made->getFieldNames();
  for (int field = 0; field < fields->nbFields; ++field)
    text += std::string(field ? "," : "") + fields->fields[field].name + ":" +
            std::to_string(static_cast<int>(fields->fields[field].type));
  return text.c_str();
}

void* create(const char* name, int count, const PluginField* fields, int phase) {
  PluginFieldCollection collection{};
  collection.nbFields = count;
  collection.fields = fields;
  for (int i = 0; i < creator_count; ++i) {
    auto* const made = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(made->getPluginName(), name) == 0)
      return made->createPlugin("node", &collection, static_cast<TensorRTPhase>(phase));
  }
  return nullptr;
}

void destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }
void* clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* attach(void* plugin) { return runtime_of(plugin)->attachToContext(nullptr); }

// "name|version|namespace|core kind|build kind and version|runtime kind|timing id"
const char* describe(void* plugin) {
  static std::string text;
  const auto kind = [](IPluginCapability* each) {
    const InterfaceInfo info = each->getInterfaceInfo();
    return std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor);
  };
  auto* const core = core_of(plugin);
  text = std::string(core->getPluginName()) + "|" + core->getPluginVersion() + "|" + core->getPluginNamespace() + "|" +
         kind(core) + "|" + kind(build_of(plugin)) + "|" + kind(runtime_of(plugin)) + "|" + build_of(plugin)->getTimingCacheID();
  return text.c_str();
}

const PluginFieldCollection* fields(void* plugin) { return runtime_of(plugin)->getFieldsToSerialize(); }
int output_count(void* plugin) { return build_of(plugin)->getNbOutputs(); }
int alias(void* plugin, int output) { return build_of(plugin)->getAliasedInput(output); }

int output_types(void* plugin, int inputs, const int* types, int outputs, int* made) {
  return build_of(plugin)->getOutputDataTypes(reinterpret_cast<DataType*>(made), outputs,
                                              reinterpret_cast<const DataType*>(types), inputs);
}

// Ranks and dims [.., 8] in and out.
int output_shapes(void* plugin, int inputs, const int* ranks, const std::int64_t* dims, int outputs, int* made_ranks,
                  std::int64_t* made_dims) {
  Expressions expressions;
  Builder builder(&expressions);
  DimsExprs in[16], out[16];
  for (int i = 0; i < inputs; ++i) {
    in[i].nbDims = ranks[i];
    for (int axis = 0; axis < ranks[i]; ++axis) in[i].d[axis] = expressions.constant(dims[i * kMostRank + axis]);
  }
  const int status = build_of(plugin)->getOutputShapes(in, inputs, nullptr, 0, out, outputs, builder);
  for (int i = 0; status == 0 && i < outputs; ++i) {
    made_ranks[i] = out[i].nbDims;
    for (int axis = 0; axis < out[i].nbDims; ++axis) made_dims[i * kMostRank + axis] = out[i].d[axis]->getConstantValue();
  }
  return status;
}

int supports(void* plugin, int at, int inputs, int outputs, const int* types, int format) {
  DynamicPluginTensorDesc all[32]{};
  for (int i = 0; i < inputs + outputs; ++i) {
    all[i].desc.type = static_cast<DataType>(types[i]);
    all[i].desc.format = TensorFormat::kLINEAR;
  }
  all[at].desc.format = static_cast<TensorFormat>(format);
  return build_of(plugin)->supportsFormatCombination(at, all, inputs, outputs);
}

std::size_t workspace_size(void* plugin, int inputs, const int* ranks, const std::int64_t* dims, const int* types) {
  DynamicPluginTensorDesc in[16]{};
  for (int i = 0; i < inputs; ++i) {
    in[i].desc = desc_of(ranks[i], dims + i * kMostRank, types[i]);
    in[i].min = in[i].opt = in[i].max = in[i].desc.dims;
  }
  return build_of(plugin)->getWorkspaceSize(in, inputs, nullptr, build_of(plugin)->getNbOutputs());
}

int enqueue(void* plugin, int inputs, const int* ranks, const std::int64_t* dims, const int* types, void** in, void** out,
            void* workspace) {
  PluginTensorDesc descs[16]{}, outs[16]{};
  for (int i = 0; i < inputs; ++i) descs[i] = desc_of(ranks[i], dims + i * kMostRank, types[i]);
  const int outputs = build_of(plugin)->getNbOutputs();
  const int shaped = runtime_of(plugin)->onShapeChange(descs, inputs, outs, outputs);
  return shaped ? shaped : runtime_of(plugin)->enqueue(descs, outs, in, out, workspace, nullptr);
}

}  // extern "C"
