// The part of ONNX Runtime that the CUDA adapters call, over plain memory: they run against the kernels on the CPU
// (cuda_on_cpu.hpp), which no ONNX Runtime with a GPU is needed for. Memory begins as bytes that are no result.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../onnxruntime/ort_api.hpp"
#include "cuda_on_cpu.hpp"

// Of the CUDA runtime, what adapters call beside the kernels.
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
namespace latentcot::fake {
inline int waits;  // of the host for the stream, since the last call began
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++latentcot::fake::waits;
  return cudaSuccess;
}

namespace latentcot::fake {
constexpr int kPoison = 0xfb;
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory poisoned(std::size_t bytes) {
  const std::size_t size = (bytes / 256 + 1) * 256;
  Memory memory(std::aligned_alloc(256, size));
  std::memset(memory.get(), kPoison, size);
  return memory;
}
}  // namespace latentcot::fake

struct OrtStatus {
  std::string message;
};
struct OrtValue {
  latentcot::ort::ElementType type;
  std::vector<std::int64_t> shape;
  void* data;
  latentcot::fake::Memory memory;  // of an output
};
struct OrtKernelContext {
  std::vector<OrtValue> inputs;  // of type `any` where one is left out
  std::vector<OrtValue> outputs;
  const latentcot::ort::CustomOp* op;
};
struct OrtKernelInfo {
  std::map<std::string, double> attributes;
};
struct OrtMemoryInfo {};
struct OrtAllocator {
  std::map<void*, latentcot::fake::Memory> taken;
  OrtMemoryInfo info;
};
struct OrtKeyValuePairs {};

namespace latentcot::fake {

using namespace latentcot::ort;

inline OrtAllocator allocator;
inline int allocators_held;  // not given back

inline std::size_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::int64: return 8;
    case ElementType::boolean: return 1;
    case ElementType::float16:
    case ElementType::bfloat16: return 2;
    default: return 4;
  }
}

inline OrtStatus* fault(const char* message) { return new OrtStatus{message}; }

template <class T>
OrtStatus* attribute(const OrtKernelInfo* info, const char* name, T* value) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end()) return fault("there is no such attribute");
  *value = static_cast<T>(found->second);
  return nullptr;
}

inline OrtStatus* output(OrtKernelContext* context, std::size_t i, const std::int64_t* shape, std::size_t rank,
                         OrtValue** value) {
  OrtValue& made = context->outputs.at(i);
  made.type = context->op->GetOutputType(context->op, i);
  made.shape.assign(shape, shape + rank);
  std::size_t bytes = bytes_of(made.type);
  for (const std::int64_t size : made.shape) bytes *= static_cast<std::size_t>(size);
  made.memory = poisoned(bytes);
  made.data = made.memory.get();
  *value = &made;
  return nullptr;
}

// The table, with what is not here null.
inline const Api* api() {
  static std::vector<void*> table(512);
  const auto set = [&]<class Entry>(Entry, typename Entry::Type function) {
    table[Entry::position] = reinterpret_cast<void*>(function);
  };
  set(entry::CreateStatus{}, [](ErrorCode, const char* message) { return fault(message); });
  set(entry::ReleaseStatus{}, [](OrtStatus* status) { delete status; });
  set(entry::KernelInfoGetAttribute_float{},
      [](const OrtKernelInfo* info, const char* name, float* value) { return attribute(info, name, value); });
  set(entry::KernelInfoGetAttribute_int64{},
      [](const OrtKernelInfo* info, const char* name, std::int64_t* value) { return attribute(info, name, value); });
  set(entry::KernelInfo_GetConfigEntries{}, [](const OrtKernelInfo*, OrtKeyValuePairs** entries) -> OrtStatus* {
    static OrtKeyValuePairs none;
    *entries = &none;
    return nullptr;
  });
  set(entry::GetKeyValue{}, [](const OrtKeyValuePairs*, const char*) -> const char* { return nullptr; });
  set(entry::ReleaseKeyValuePairs{}, [](OrtKeyValuePairs*) {});
  set(entry::KernelInfoGetAllocator{}, [](const OrtKernelInfo*, MemoryType, OrtAllocator** made) -> OrtStatus* {
    ++allocators_held;
    *made = &allocator;
    return nullptr;
  });
  set(entry::ReleaseAllocator{}, [](OrtAllocator*) { --allocators_held; });
  set(entry::AllocatorGetInfo{}, [](const OrtAllocator* given, const OrtMemoryInfo** info) -> OrtStatus* {
    *info = &given->info;
    return nullptr;
  });
  set(entry::KernelContext_GetScratchBuffer{},
      [](const OrtKernelContext*, const OrtMemoryInfo*, std::size_t bytes, void** memory) -> OrtStatus* {
        Memory made = poisoned(bytes);
        *memory = made.get();
        allocator.taken.emplace(*memory, std::move(made));
        return nullptr;
      });
  set(entry::AllocatorFree{}, [](OrtAllocator* given, void* memory) -> OrtStatus* {
    return given->taken.erase(memory) == 1 ? nullptr : fault("this memory was not taken");
  });
  set(entry::KernelContext_GetGPUComputeStream{}, [](const OrtKernelContext*, void** stream) -> OrtStatus* {
    *stream = nullptr;
    return nullptr;
  });
  set(entry::KernelContext_GetInput{},
      [](const OrtKernelContext* context, std::size_t i, const OrtValue** value) -> OrtStatus* {
        const bool there = i < context->inputs.size() && context->inputs[i].type != ElementType::any;
        *value = there ? &context->inputs[i] : nullptr;
        return nullptr;
      });
  set(entry::KernelContext_GetOutput{}, &output);
  set(entry::GetTensorMutableData{}, [](OrtValue* value, void** data) -> OrtStatus* {
    *data = value->data;
    return nullptr;
  });
  set(entry::GetTensorElementTypeAndShapeDataReference{},
      [](const OrtValue* value, ElementType* type, const std::int64_t** shape, std::size_t* rank) -> OrtStatus* {
        *type = value->type;
        *shape = value->shape.data();
        *rank = value->shape.size();
        return nullptr;
      });
  return reinterpret_cast<const Api*>(table.data());
}

}  // namespace latentcot::fake
