// Written by make_ort_api.py, do not edit. What we use of ONNX Runtime's C API, bound by position.
//
// The table of functions only grows at its end, so these positions hold for 1.24 and every later release.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtValue;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKeyValuePairs;
struct OrtAllocator;
struct OrtMemoryInfo;

namespace latentcot::ort {

constexpr std::uint32_t kApiVersion = 24;

using Status = OrtStatus;
using Value = OrtValue;
using KernelContext = OrtKernelContext;
using KernelInfo = OrtKernelInfo;
using SessionOptions = OrtSessionOptions;
using CustomOpDomain = OrtCustomOpDomain;
using KeyValuePairs = OrtKeyValuePairs;
using Allocator = OrtAllocator;
using MemoryInfo = OrtMemoryInfo;
struct Api;  // the table itself: an array of function pointers
struct CustomOp;
struct ShapeInferContext;

enum class ErrorCode : int { fail = 1, invalid_argument = 2 };
enum class ElementType : int { any = 0, float32 = 1, int32 = 6, int64 = 7, boolean = 9, float16 = 10, bfloat16 = 16 };
enum class Characteristic : int { required = 0, optional = 1 };
enum class MemoryType : int { default_memory = 0 };

// What RegisterCustomOps is given to find the table.
struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

// What ONNX Runtime reads of an op.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, std::size_t index);
  std::size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, std::size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, std::size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, std::size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInferContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
  std::size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  std::size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

// Position and type of every function we call.
namespace entry {

struct CreateStatus {
  static constexpr std::size_t position = 0;
  using Type = Status* (*)(ErrorCode code, const char* message);
};
struct GetErrorCode {
  static constexpr std::size_t position = 1;
  using Type = ErrorCode (*)(const Status* status);
};
struct GetErrorMessage {
  static constexpr std::size_t position = 2;
  using Type = const char* (*)(const Status* status);
};
struct CreateCustomOpDomain {
  static constexpr std::size_t position = 26;
  using Type = Status* (*)(const char* name, CustomOpDomain** domain);
};
struct CustomOpDomain_Add {
  static constexpr std::size_t position = 27;
  using Type = Status* (*)(CustomOpDomain* domain, const CustomOp* op);
};
struct AddCustomOpDomain {
  static constexpr std::size_t position = 28;
  using Type = Status* (*)(SessionOptions* options, CustomOpDomain* domain);
};
struct GetTensorMutableData {
  static constexpr std::size_t position = 51;
  using Type = Status* (*)(Value* value, void** data);
};
struct AllocatorFree {
  static constexpr std::size_t position = 76;
  using Type = Status* (*)(Allocator* allocator, void* memory);
};
struct AllocatorGetInfo {
  static constexpr std::size_t position = 77;
  using Type = Status* (*)(const Allocator* allocator, const MemoryInfo** place);
};
struct KernelInfoGetAttribute_float {
  static constexpr std::size_t position = 85;
  using Type = Status* (*)(const KernelInfo* info, const char* name, float* value);
};
struct KernelInfoGetAttribute_int64 {
  static constexpr std::size_t position = 86;
  using Type = Status* (*)(const KernelInfo* info, const char* name, std::int64_t* value);
};
struct KernelContext_GetInputCount {
  static constexpr std::size_t position = 88;
  using Type = Status* (*)(const KernelContext* context, std::size_t* count);
};
struct KernelContext_GetOutputCount {
  static constexpr std::size_t position = 89;
  using Type = Status* (*)(const KernelContext* context, std::size_t* count);
};
struct KernelContext_GetInput {
  static constexpr std::size_t position = 90;
  using Type = Status* (*)(const KernelContext* context, std::size_t index, const Value** value);
};
struct KernelContext_GetOutput {
  static constexpr std::size_t position = 91;
  using Type = Status* (*)(KernelContext* context, std::size_t index, const std::int64_t* shape, std::size_t rank,
      Value** value);
};
struct ReleaseStatus {
  static constexpr std::size_t position = 93;
  using Type = void (*)(Status* status);
};
struct ReleaseCustomOpDomain {
  static constexpr std::size_t position = 101;
  using Type = void (*)(CustomOpDomain* domain);
};
struct ReleaseAllocator {
  static constexpr std::size_t position = 132;
  using Type = void (*)(Allocator* allocator);
};
struct KernelContext_GetGPUComputeStream {
  static constexpr std::size_t position = 193;
  using Type = Status* (*)(const KernelContext* context, void** stream);
};
struct KernelContext_ParallelFor {
  static constexpr std::size_t position = 274;
  using Type = Status* (*)(const KernelContext* context, void (*task)(void* argument, std::size_t index),
      std::size_t tasks, std::size_t batches, void* argument);
};
struct KernelContext_GetScratchBuffer {
  static constexpr std::size_t position = 277;
  using Type = Status* (*)(const KernelContext* context, const MemoryInfo* place, std::size_t bytes, void** memory);
};
struct KernelInfoGetAllocator {
  static constexpr std::size_t position = 278;
  using Type = Status* (*)(const KernelInfo* info, MemoryType type, Allocator** allocator);
};
struct GetKeyValue {
  static constexpr std::size_t position = 297;
  using Type = const char* (*)(const KeyValuePairs* entries, const char* key);
};
struct ReleaseKeyValuePairs {
  static constexpr std::size_t position = 300;
  using Type = void (*)(KeyValuePairs* entries);
};
struct KernelInfo_GetConfigEntries {
  static constexpr std::size_t position = 391;
  using Type = Status* (*)(const KernelInfo* info, KeyValuePairs** entries);
};
struct GetTensorElementTypeAndShapeDataReference {
  static constexpr std::size_t position = 414;
  using Type = Status* (*)(const Value* value, ElementType* type, const std::int64_t** shape, std::size_t* rank);
};

}  // namespace entry

// api_entry<entry::CreateStatus>(api)(code, text) calls the function of that name.
template <class Entry>
inline typename Entry::Type api_entry(const Api* api) {
  return reinterpret_cast<const typename Entry::Type*>(api)[Entry::position];
}

}  // namespace latentcot::ort
