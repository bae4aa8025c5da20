// A bundle of `--target ort` on a CPU: one call of the graph, whose Loop runs until the last token has halted.
//
//   g++ -std=c++17 -O2 examples/cpp/01_onnxruntime.cpp -I ORT/include -L ORT/lib -lonnxruntime -o 01_onnxruntime
//   ./01_onnxruntime BUNDLE LIBRARY 32 1 5 9
//
// ORT: ONNX Runtime's headers and library, 1.24 or later. LIBRARY: liblatentcot_ops.so of the installed package. The bundle
// is taken as it is; `latentcot inspect BUNDLE` checks the hashes of its files.
#include <onnxruntime_cxx_api.h>

#include "ort.hpp"

using namespace latentcot::example;

int main(int count, char** words) try {
  const Options options = Options::of(count, words);
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "latentcot");
  Ort::SessionOptions settings;
  settings.RegisterCustomOpsLibrary(options.library.c_str());
  Ort::Session session(env, (options.model + "/model.onnx").c_str(), settings);

  const Sizes sizes = sizes_of(session, 1, options.length());
  Tables tables = make_tables(sizes);
  set_rows(tables, 64);
  admit(tables, 0, options.prompt, options.fresh);
  tables["max_passes"] = Tensor::of(Type::kInt64, {});
  *tables["max_passes"].as<std::int64_t>() = sizes.steps * sizes.length + 1;  // enough in any order
  // nothing is in flight yet
  tables["rows"] = Tensor::of(Type::kInt32, {0, 4});
  tables["fresh"] = Tensor::of(Type::kInt32, {0});
  tables["latent"] = tables["mix"] = Tensor::of(Type::kFloat32, {0, sizes.hidden});
  tables["reach"] = Tensor::of(Type::kFloat32, {0});

  // The ops change tables in place: what is bound is the memory that is read afterwards.
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::IoBinding binding(session);
  for (const std::string& name : session.GetInputNames())
    binding.BindInput(name.c_str(), value_of(memory, tables.at(name), tables.at(name).bytes.data()));
  for (const std::string& name : session.GetOutputNames()) binding.BindOutput(name.c_str(), memory);
  session.Run(Ort::RunOptions(), binding);
  print(tables, options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
