// The engine of a `--target tensorrt` bundle, replayed: every pass is one launch of a captured graph, and the host looks at
// the end of a burst alone.
//
//   nvcc -std=c++17 -O2 -DLATENTCOT_CUDA -x cu examples/cpp/03_tensorrt.cpp -I TENSORRT/include -L TENSORRT/lib -lnvinfer -o 03_tensorrt
//   ./03_tensorrt BUNDLE.engines/NAME.engine liblatentcot_trt.so 32 1 5 9
//
// The engine is what `python -m latentcot_export.runtime.tensorrt_build BUNDLE` wrote for this TensorRT and this GPU; the
// `.json` beside it has its sha256, which a service compares before it gives a byte of it to TensorRT.
#include <NvInfer.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "device.hpp"
#include "options.hpp"

using namespace latentcot::example;
using nvinfer1::DataType;

namespace {

constexpr std::int64_t kRows = 1;  // of a pass: one for each sequence, so that profile 0 has them
constexpr int kBurst = 16;         // passes between two looks of the host
const std::vector<std::string> kCarried = {"rows", "latent", "reach", "mix"};

class Log : public nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", text);
  }
};

void require(bool good, const char* what) {
  if (!good) throw std::runtime_error(std::string("TensorRT refuses ") + what);
}

Type type_of(DataType type) {
  switch (type) {
    case DataType::kINT32: return Type::kInt32;
    case DataType::kINT64: return Type::kInt64;
    case DataType::kHALF: return Type::kFloat16;
    case DataType::kBF16: return Type::kBfloat16;
    default: return Type::kFloat32;
  }
}

nvinfer1::Dims dims_of(const Tensor& tensor) {
  nvinfer1::Dims dims{};
  dims.nbDims = int(tensor.shape.size());
  for (int i = 0; i < dims.nbDims; ++i) dims.d[i] = tensor.shape[std::size_t(i)];
  return dims;
}

Sizes sizes_of(const nvinfer1::ICudaEngine& engine, std::int64_t length) {
  const auto shape = [&](const char* name) { return engine.getTensorShape(name); };
  Sizes sizes{};
  sizes.steps = shape("slots").d[1];
  sizes.kv_heads = shape("cache_0").d[2];
  sizes.lanes = shape("cache_0").d[3];
  sizes.vocabulary = shape("logits").d[2];
  sizes.hidden = shape("latent").d[1];
  sizes.cache = type_of(engine.getTensorDataType("cache_0"));
  sizes.places = 1;
  sizes.length = length;
  sizes.slots = length * sizes.steps;
  for (int i = 0; i < engine.getNbIOTensors(); ++i)
    sizes.layers += std::string(engine.getIOTensorName(i)).rfind("cache_", 0) == 0 ? 1 : 0;
  sizes.layers /= 2;  // each is an output too
  return sizes;
}

}  // namespace

int main(int count, char** words) try {
  const Options options = Options::of(count, words, "ENGINE");
  Log log;
  std::ifstream file(options.model, std::ios::binary);
  const std::vector<char> plan{std::istreambuf_iterator<char>(file), {}};
  getPluginRegistry()->loadLibrary(options.library.c_str());
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
  require(runtime != nullptr, "TensorRT's runtime; see what it says above");
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  require(engine != nullptr, "the engine; it is for another version or GPU, or the plugins are not loaded");

  const Sizes sizes = sizes_of(*engine, options.length());
  Tables tables = make_tables(sizes);
  set_rows(tables, std::int32_t(kRows));
  for (std::int64_t i = 0; i < sizes.layers; ++i)  // one table a layer
    tables["cache_" + std::to_string(i)] = Tensor::of(sizes.cache, {2, sizes.slots, sizes.kv_heads, sizes.lanes});
  tables.erase("cache");
  Tables carried;
  carried["rows"] = Tensor::of(Type::kInt32, {kRows, 4}, 0xff);  // dead ones: -1
  carried["latent"] = carried["mix"] = Tensor::of(Type::kFloat32, {kRows, sizes.hidden});
  carried["reach"] = Tensor::of(Type::kFloat32, {kRows});
  Tensor again = Tensor::of(Type::kInt32, {1});

  std::map<std::string, std::unique_ptr<OnDevice>> held, sets[2];
  for (const auto& [name, table] : tables) held[name] = std::make_unique<OnDevice>(table);
  for (auto& set : sets)
    for (const std::string& name : kCarried) set[name] = std::make_unique<OnDevice>(carried.at(name));
  OnDevice more(again);

  cudaStream_t stream;
  latentcot::example::require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> contexts;  // one a capture: to change it would spoil that
  cudaGraphExec_t passes[2];
  for (int read = 0; read < 2; ++read) {
    contexts.emplace_back(engine->createExecutionContext());
    require(contexts.back() != nullptr, "a context; there may be too little memory on the GPU");
    nvinfer1::IExecutionContext& context = *contexts.back();
    require(context.setOptimizationProfileAsync(0, stream), "the profile of passes that decode");
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
      const std::string name = engine->getIOTensorName(i);
      const bool input = engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      const std::string own = input ? name : name.substr(0, name.size() - 4);  // an output is NAME_out, but for `again`
      const bool row = carried.count(own) > 0;
      void* const place = name == "again" ? more.data()
                          : row           ? sets[input ? read : 1 - read].at(own)->data()
                                          : held.at(own)->data();  // a table and its output are one place
      require(context.setTensorAddress(name.c_str(), place), name.c_str());
      if (input) require(context.setInputShape(name.c_str(), dims_of(row ? carried.at(own) : tables.at(own))), name.c_str());
    }
    // it runs once before it is captured, while no place holds a sequence
    require(context.enqueueV3(stream), "a pass");
    latentcot::example::require(cudaStreamSynchronize(stream));
    cudaGraph_t graph;
    latentcot::example::require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    require(context.enqueueV3(stream), "a pass that is captured");
    latentcot::example::require(cudaStreamEndCapture(stream, &graph));
    latentcot::example::require(cudaGraphInstantiate(&passes[read], graph, 0));
    latentcot::example::require(cudaGraphDestroy(graph));
  }
  admit(tables, 0, options.prompt, options.fresh);
  for (const char* name : {"control", "order", "sequences", "sampling", "tokens", "counters"}) held[name]->put(tables[name]);

  int at = 0;
  do {
    for (int left = kBurst; left-- > 0; at = 1 - at) latentcot::example::require(cudaGraphLaunch(passes[at], stream));
    more.get(again);
    held["counters"]->get(tables["counters"]);
    if (const std::int64_t fault = tables["counters"].as<std::int64_t>()[5]; fault < 0)
      throw std::runtime_error("a kernel found values that do not fit together, fault " + std::to_string(fault));
  } while (*again.as<std::int32_t>() != 0);
  for (const char* name : {"tokens", "depths"}) held[name]->get(tables[name]);
  print(tables, options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
