// A bundle of `--target ort` pass by pass, as a GPU runs it: two sets of rows, each read by one pass and written by the
// other. On a GPU both passes are captured while nothing runs, then replayed; the host looks at the end of a burst alone.
//
//   g++ -std=c++17 -O2 examples/cpp/02_replay.cpp -I ORT/include -L ORT/lib -lonnxruntime -o 02_replay
//   nvcc -x cu -std=c++17 -O2 -DLATENTCOT_CUDA examples/cpp/02_replay.cpp -I ORT/include -L ORT/lib -lonnxruntime -o 02_replay
//   ./02_replay BUNDLE LIBRARY 32 1 5 9
//
// With LATENTCOT_CUDA: onnxruntime-gpu, and the op library built with CUDA kernels; a bundle in any dtype. Without: one in
// float32, quantised or not.
#include <onnxruntime_cxx_api.h>

#include <memory>

#include "device.hpp"
#include "ort.hpp"

using namespace latentcot::example;

namespace {

constexpr std::int64_t kRows = 8;   // of a pass: a prompt's tokens, later one for each sequence
constexpr int kBurst = 16;          // passes between two looks of the host
const std::vector<std::string> kCarried = {"rows", "latent", "reach", "mix"};

Ort::SessionOptions settings_with(const std::string& library) {
  Ort::SessionOptions settings;
  settings.RegisterCustomOpsLibrary(library.c_str());
#ifdef LATENTCOT_CUDA
  settings.DisableMemPattern();  // a captured pass keeps the addresses it was captured with
  Ort::CUDAProviderOptions cuda;
  cuda.Update({{"enable_cuda_graph", "1"}, {"use_tf32", "0"}});
  settings.AppendExecutionProvider_CUDA_V2(*cuda);
#endif
  return settings;
}

Ort::MemoryInfo device_memory() {
#ifdef LATENTCOT_CUDA
  return Ort::MemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault);
#else
  return Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
#endif
}

// Of the pass that reads set `read`. Only the last pass of a burst waits for the device.
Ort::RunOptions options_of(int read, bool last) {
  Ort::RunOptions options;
#ifdef LATENTCOT_CUDA
  options.AddConfigEntry("gpu_graph_id", std::to_string(read + 1).c_str());
  if (!last) options.AddConfigEntry("disable_synchronize_execution_providers", "1");
#else
  (void)read, (void)last;
#endif
  return options;
}

}  // namespace

int main(int count, char** words) try {
  const Options options = Options::of(count, words);
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "latentcot");
  Ort::Session session(env, (options.model + "/pass.onnx").c_str(), settings_with(options.library));

  const Sizes sizes = sizes_of(session, 1, options.length());
  Tables tables = make_tables(sizes);
  set_rows(tables, kRows);
  Tables carried;
  carried["rows"] = Tensor::of(Type::kInt32, {kRows, 4}, 0xff);  // dead ones: -1
  carried["latent"] = carried["mix"] = Tensor::of(Type::kFloat32, {kRows, sizes.hidden});
  carried["reach"] = Tensor::of(Type::kFloat32, {kRows});
  Tensor again = Tensor::of(Type::kBool, {});

  std::map<std::string, std::unique_ptr<OnDevice>> held;
  for (const auto& [name, table] : tables) held[name] = std::make_unique<OnDevice>(table);
  std::map<std::string, std::unique_ptr<OnDevice>> sets[2];
  for (auto& set : sets)
    for (const std::string& name : kCarried) set[name] = std::make_unique<OnDevice>(carried.at(name));
  OnDevice more(again);

  const Ort::MemoryInfo memory = device_memory();
  std::vector<Ort::IoBinding> bindings;
  for (int read = 0; read < 2; ++read) {
    Ort::IoBinding binding(session);
    for (const std::string& name : session.GetInputNames()) {
      const bool row = carried.count(name) > 0;
      const Tensor& like = row ? carried.at(name) : tables.at(name);
      binding.BindInput(name.c_str(), value_of(memory, like, (row ? *sets[read].at(name) : *held.at(name)).data()));
    }
    for (const std::string& name : kCarried)
      binding.BindOutput((name + "_out").c_str(), value_of(memory, carried.at(name), sets[1 - read].at(name)->data()));
    binding.BindOutput("again", value_of(memory, again, more.data()));
    bindings.push_back(std::move(binding));
  }
  const Ort::RunOptions waits[2] = {options_of(0, true), options_of(1, true)};
  const Ort::RunOptions goes_on[2] = {options_of(0, false), options_of(1, false)};

  // ONNX Runtime captures by running a pass several times over, so nothing may run yet: no place holds a sequence.
  for (int read = 0; read < 2; ++read) session.Run(waits[read], bindings[read]);
  admit(tables, 0, options.prompt, options.fresh);
  for (const char* name : {"control", "order", "sequences", "sampling", "tokens", "counters"}) held[name]->put(tables[name]);

  int at = 0;
  do {
    for (int left = kBurst; left-- > 0; at = 1 - at) session.Run(left ? goes_on[at] : waits[at], bindings[at]);
    more.get(again);
    held["counters"]->get(tables["counters"]);
    if (const std::int64_t fault = tables["counters"].as<std::int64_t>()[5]; fault < 0) {
      std::fprintf(stderr, "error: a kernel found values that do not fit together (fault %lld)\n", (long long)fault);
      return 1;
    }
  } while (*again.as<bool>());
  for (const char* name : {"tokens", "depths"}) held[name]->get(tables[name]);
  print(tables, options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
