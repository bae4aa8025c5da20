// Memory that a pass runs on: a GPU's where the program is compiled with LATENTCOT_CUDA, else the host's own.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tables.hpp"

#ifdef LATENTCOT_CUDA
#include <cuda_runtime_api.h>
#endif

namespace latentcot::example {

#ifdef LATENTCOT_CUDA
inline void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "error: CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
#endif

// A tensor's place on the device. An empty one has an address too, which a binding asks for.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& like) : size_(like.bytes.size()) {
#ifdef LATENTCOT_CUDA
    require(cudaMalloc(&data_, size_ + 1));
#else
    data_ = std::aligned_alloc(64, (size_ / 64 + 1) * 64);
#endif
    put(like);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
#ifdef LATENTCOT_CUDA
    cudaFree(data_);
#else
    std::free(data_);
#endif
  }

  void* data() const { return data_; }

  // Both wait until it is done, and for what the device was doing.
  void put(const Tensor& from) {
#ifdef LATENTCOT_CUDA
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(data_, from.bytes.data(), size_, cudaMemcpyHostToDevice));
    require(cudaDeviceSynchronize());  // a copy of pageable memory may return before it is done, and no stream waits
#else
    if (size_ > 0) std::memcpy(data_, from.bytes.data(), size_);
#endif
  }
  void get(Tensor& to) const {
#ifdef LATENTCOT_CUDA
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(to.bytes.data(), data_, size_, cudaMemcpyDeviceToHost));
#else
    if (size_ > 0) std::memcpy(to.bytes.data(), data_, size_);
#endif
  }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

}  // namespace latentcot::example
