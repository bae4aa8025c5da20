// Working memory of a thread, kept between calls: a pass calls an op once per layer.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace latentcot::ort {

// Grows and never shrinks. Its contents do not survive the next call of `get`.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // At least `bytes` bytes, aligned to a cache line. Throws std::bad_alloc.
  void* get(std::size_t bytes) {
    if (bytes > size_ || memory_ == nullptr) {
      // a quarter more than asked, so that a growing context is not followed step by step
      const std::size_t size = (bytes + bytes / 4 + kLine) / kLine * kLine;
      std::free(memory_);
      size_ = 0;
      memory_ = std::aligned_alloc(kLine, size);
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return memory_;
  }

 private:
  static constexpr std::size_t kLine = 64;
  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace latentcot::ort
