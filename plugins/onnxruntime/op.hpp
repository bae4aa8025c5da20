// Turns a class with a table of inputs and a compute function into an op that ONNX Runtime can hold.
#pragma once

#include <cstdlib>
#include <new>
#include <thread>

#include "call.hpp"

namespace latentcot::ort {

// What the graph and the session say about a node, read when its kernel is made.
class NodeInfo {
 public:
  NodeInfo(const Api* api, const KernelInfo* info, const char* op) : api_(api), info_(info), op_(op) {}

  // An attribute within [least, most]. Throws Failure.
  int32_t integer(const char* name, int64_t least, int64_t most) const {
    int64_t value = 0;
    require(api_entry<entry::KernelInfoGetAttribute_int64>(api_)(info_, name, &value));
    Failure failure;
    if (!check_range(op_, "attribute", -1, name, value, least, most + 1, &failure.message)) throw failure;
    return static_cast<int32_t>(value);
  }

  // The same where the graph may leave it out.
  int32_t integer(const char* name, int64_t least, int64_t most, int32_t otherwise) const {
    int64_t value = 0;
    OrtStatus* status = api_entry<entry::KernelInfoGetAttribute_int64>(api_)(info_, name, &value);
    if (status == nullptr) return integer(name, least, most);
    api_entry<entry::ReleaseStatus>(api_)(status);
    return otherwise;
  }

  float real(const char* name) const {
    float value = 0;
    require(api_entry<entry::KernelInfoGetAttribute_float>(api_)(info_, name, &value));
    return value;
  }

  // The same where the graph may leave it out.
  float real(const char* name, float otherwise) const {
    float value = 0;
    OrtStatus* status = api_entry<entry::KernelInfoGetAttribute_float>(api_)(info_, name, &value);
    if (status == nullptr) return value;
    api_entry<entry::ReleaseStatus>(api_)(status);
    return otherwise;
  }

  // Memory of the device the node runs on; to be released.
  Allocator* allocator() const {
    Allocator* allocator = nullptr;
    require(api_entry<entry::KernelInfoGetAllocator>(api_)(info_, MemoryType::default_memory, &allocator));
    return allocator;
  }
  const Api* api() const { return api_; }

  // Threads of the session's pool. ONNX Runtime does not tell, so the host may: the session's config entry
  // `latentcot.threads`. Without it, the processors of this process. Only the split of work depends on it, no result.
  int threads() const {
    KeyValuePairs* entries = nullptr;
    require(api_entry<entry::KernelInfo_GetConfigEntries>(api_)(info_, &entries));
    const char* text = api_entry<entry::GetKeyValue>(api_)(entries, "latentcot.threads");
    const long told = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
    api_entry<entry::ReleaseKeyValuePairs>(api_)(entries);
    const long found = told > 0 ? told : static_cast<long>(std::thread::hardware_concurrency());
    return static_cast<int>(found < 1 ? 1 : found > kMaxThreads ? kMaxThreads : found);
  }

 private:
  static constexpr long kMaxThreads = 1024;
  const Api* api_;
  const KernelInfo* info_;
  const char* op_;
};

// The status for whatever `work` throws, null when it throws nothing.
template <class Work>
inline OrtStatus* guarded(const Api* api, const char* op, Work work) noexcept {
  const auto create = api_entry<entry::CreateStatus>(api);
  Message message;
  try {
    work();
    return nullptr;
  } catch (const Refused& refused) {
    return refused.status;
  } catch (const Failure& failure) {
    return create(ErrorCode::invalid_argument, failure.message.text);
  } catch (const std::bad_alloc&) {
    message.begin(op, "there is no memory left, use fewer sequences or shorter prompts.");
  } catch (...) {
    message.begin(op, "an exception that nobody foresaw, please report it.");
  }
  return create(ErrorCode::fail, message.text);
}

// Body needs: kName; kInputs, an array of InputSpec; kOutputs, an array of ElementType; a constructor from NodeInfo;
// `void compute(Call&) const`, which may run on several threads at once. kProvider says where it runs, if not on the CPU.
template <class Body>
class Op {
 public:
  static const CustomOp* definition() {
    static const CustomOp op = make();
    return &op;
  }

 private:
  struct Kernel {
    Kernel(const Api* table, const NodeInfo& info) : api(table), body(info), threads(info.threads()) {}
    const Api* api;
    Body body;
    int threads;
  };

  static OrtStatus* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) noexcept {
    *kernel = nullptr;
    return guarded(api, Body::kName, [&] { *kernel = new Kernel(api, NodeInfo(api, info, Body::kName)); });
  }

  static OrtStatus* compute(void* kernel, KernelContext* context) noexcept {
    const Kernel& self = *static_cast<const Kernel*>(kernel);
    return guarded(self.api, Body::kName, [&] {
      Call call(self.api, context, Body::kName, static_cast<int>(std::size(Body::kInputs)), self.threads);
      self.body.compute(call);
      call.finish();
    });
  }

  static CustomOp make() {
    static_assert(std::size(Body::kInputs) <= Call::kMaxInputs);
    const auto none = [](const CustomOp*) { return 0; };
    CustomOp op{};
    op.version = kApiVersion;
    op.GetName = [](const CustomOp*) { return Body::kName; };
    op.GetExecutionProviderType = [](const CustomOp*) {
      if constexpr (requires { Body::kProvider; }) return Body::kProvider;
      return "CPUExecutionProvider";
    };
    op.GetInputType = [](const CustomOp*, std::size_t i) { return element_type(Body::kInputs[i].type); };
    op.GetInputTypeCount = [](const CustomOp*) { return std::size(Body::kInputs); };
    op.GetOutputType = [](const CustomOp*, std::size_t i) { return Body::kOutputs[i]; };
    op.GetOutputTypeCount = [](const CustomOp*) { return std::size(Body::kOutputs); };
    op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.GetInputCharacteristic = [](const CustomOp*, std::size_t i) {
      return Body::kInputs[i].optional ? Characteristic::optional : Characteristic::required;
    };
    op.GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return Characteristic::required; };
    op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return MemoryType::default_memory; };
    op.GetVariadicInputMinArity = none;
    op.GetVariadicInputHomogeneity = none;
    op.GetVariadicOutputMinArity = none;
    op.GetVariadicOutputHomogeneity = none;
    op.CreateKernelV2 = &create;
    op.KernelComputeV2 = &compute;
    op.GetStartVersion = [](const CustomOp*) { return 1; };
    op.GetEndVersion = [](const CustomOp*) { return INT_MAX; };
    return op;
  }
};

}  // namespace latentcot::ort
