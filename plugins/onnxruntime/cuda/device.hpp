// What an op needs of a GPU: the stream of a call, memory until the call ends, and words for what CUDA refuses.
#pragma once

#include "../../kernels/cuda/device.cuh"
#include "../op.hpp"

namespace latentcot::ort {

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

// ONNX Runtime's memory of the GPU that a node runs on.
class DeviceMemory {
 public:
  explicit DeviceMemory(const NodeInfo& info) : api_(info.api()), allocator_(info.allocator()) {
    OrtStatus* refused = api_entry<entry::AllocatorGetInfo>(api_)(allocator_, &place_);
    if (refused == nullptr) return;
    api_entry<entry::ReleaseAllocator>(api_)(allocator_);
    throw Refused{refused};
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { api_entry<entry::ReleaseAllocator>(api_)(allocator_); }

  // Memory of the arena, in the order of the call's stream.
  void* take(const Call& call, std::size_t bytes) const {
    void* memory = nullptr;
    require(api_entry<entry::KernelContext_GetScratchBuffer>(api_)(call.context(), place_, bytes, &memory));
    return memory;
  }
  void give_back(void* memory) const noexcept {
    if (OrtStatus* refused = api_entry<entry::AllocatorFree>(api_)(allocator_, memory)) {
      api_entry<entry::ReleaseStatus>(api_)(refused);  // in a destructor there is nobody to tell
    }
  }

 private:
  const Api* api_;
  Allocator* allocator_;
  const MemoryInfo* place_ = nullptr;
};

// One call of an op on a GPU. All it does is put on the call's stream.
class DeviceCall {
 public:
  DeviceCall(Call& call, const DeviceMemory& memory) : call_(call), memory_(memory) {
    void* stream = nullptr;
    require(api_entry<entry::KernelContext_GetGPUComputeStream>(call.api())(call.context(), &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }
  DeviceCall(const DeviceCall&) = delete;
  DeviceCall& operator=(const DeviceCall&) = delete;
  // The kernels may still be running: the arena gives memory of this stream to later work of this stream.
  ~DeviceCall() {
    while (count_ > 0) memory_.give_back(taken_[--count_]);
  }

  cuda::Stream stream() const { return stream_; }

  // Memory until the call ends. Its contents are anything.
  void* scratch(std::size_t bytes) {
    if (count_ == kMostScratch) throw std::bad_alloc();
    void* memory = memory_.take(call_, bytes > 0 ? bytes : 1);  // for nothing ONNX Runtime gives no address
    taken_[count_++] = memory;
    return memory;
  }
  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(scratch(sizeof(T) * static_cast<std::size_t>(count)));
  }

  // Ends the call where CUDA refused something.
  void require_cuda(cudaError_t error) const {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // told here, not to whoever asks next
    Failure failure;
    failure.message.begin(call_.op(), "CUDA refused the work with '")
      << cudaGetErrorString(error) << "' (error " << static_cast<int64_t>(error) << "), but it must run on a GPU that the "
      << "op library was built for: compute capability 8.0, or 9.0 and later.";
    throw failure;
  }

  template <class T>
  void copy(T* to, const T* from, int64_t count, cudaMemcpyKind kind = cudaMemcpyDeviceToDevice) const {
    if (count == 0) return;
    require_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), kind, stream_));
  }
  void fill(void* memory, int byte, std::size_t bytes) const {
    if (bytes > 0) require_cuda(cudaMemsetAsync(memory, byte, bytes, stream_));
  }
  // Waits for all that was put on the stream. Not in the fixed form, where nothing waits.
  void wait() const { require_cuda(cudaStreamSynchronize(stream_)); }

 private:
  static constexpr int kMostScratch = 16;
  Call& call_;
  const DeviceMemory& memory_;
  cuda::Stream stream_ = nullptr;
  void* taken_[kMostScratch];
  int count_ = 0;
};

}  // namespace latentcot::ort
