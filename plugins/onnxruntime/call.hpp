// One call of an op: its tensors as the kernels see them, its outputs, and the threads it may use.
//
// What is wrong is thrown as Failure with the one sentence the user reads; op.hpp turns it into a status, so that no
// exception leaves the library.
#pragma once

#include <climits>
#include <initializer_list>
#include <iterator>

#include "../kernels/parallel.hpp"
#include "../kernels/tables.hpp"
#include "ort_api.hpp"

namespace latentcot::ort {

// The sentence that ends a call.
struct Failure {
  Message message;
};

// A status of ONNX Runtime that is not ours to explain.
struct Refused {
  OrtStatus* status;
};

inline void require(OrtStatus* status) {
  if (status != nullptr) throw Refused{status};
}

inline Type type_of(ElementType type) {
  switch (type) {
    case ElementType::float32: return Type::kFloat32;
    case ElementType::float16: return Type::kFloat16;
    case ElementType::int32: return Type::kInt32;
    case ElementType::int64: return Type::kInt64;
    case ElementType::bfloat16: return Type::kBFloat16;
    default: return Type::kOther;
  }
}

constexpr ElementType element_type(Type type) {
  switch (type) {
    case Type::kFloat32: return ElementType::float32;
    case Type::kFloat16: return ElementType::float16;
    case Type::kInt32: return ElementType::int32;
    case Type::kInt64: return ElementType::int64;
    case Type::kBFloat16: return ElementType::bfloat16;
    default: return ElementType::any;
  }
}

class Call {
 public:
  static constexpr int kMaxInputs = 16;

  // Fetches the inputs; the kernels' own checks say what is wrong with them.
  Call(const Api* api, KernelContext* context, const char* op, int inputs, int threads)
    : api_(api), context_(context), op_(op), threads_(threads) {
    for (int i = 0; i < inputs; ++i) fetch(i);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (refused_ != nullptr) api_entry<entry::ReleaseStatus>(api_)(refused_);
  }

  const Api* api() const { return api_; }
  KernelContext* context() const { return context_; }
  const char* op() const { return op_; }
  const Tensor* inputs() const { return tensors_; }
  // All dimensions of an input, also of one with more than a Tensor holds.
  const int64_t* shape(int input) const { return shapes_[input]; }

  // Where the checks put their sentence; `check(false)` ends the call with it.
  Message* message() { return &failure_.message; }
  void check(bool good) const {
    if (!good) throw failure_;
  }

  // Memory of an output of this shape. ONNX Runtime owns it.
  template <class T>
  T* output(int index, std::initializer_list<int64_t> shape) const {
    OrtValue* value = nullptr;
    const auto get = api_entry<entry::KernelContext_GetOutput>(api_);
    require(get(context_, static_cast<std::size_t>(index), shape.begin(), shape.size(), &value));
    void* data = nullptr;
    require(api_entry<entry::GetTensorMutableData>(api_)(value, &data));
    return static_cast<T*>(data);
  }

  int threads() const { return threads_; }
  // ONNX Runtime's own threads; finish() tells whether it ran everything.
  Parallel parallel() { return {this, threads_, &Call::run}; }

  // To be called when the kernel is done. Throws what ONNX Runtime refused a parallel run with.
  void finish() {
    OrtStatus* refused = refused_;
    refused_ = nullptr;
    require(refused);
  }

 private:
  void fetch(int i) {
    const OrtValue* value = nullptr;
    require(api_entry<entry::KernelContext_GetInput>(api_)(context_, static_cast<std::size_t>(i), &value));
    if (value == nullptr) return;  // left out: Type::kNone
    Tensor& tensor = tensors_[i];
    ElementType type{};
    std::size_t rank = 0;
    require(api_entry<entry::GetTensorElementTypeAndShapeDataReference>(api_)(value, &type, &shapes_[i], &rank));
    const int64_t* shape = shapes_[i];
    tensor.type = type_of(type);
    tensor.rank = static_cast<int>(rank);
    for (std::size_t axis = 0; axis < rank; ++axis) {
      // kernels count in 32 bits; the product of the dimensions is what memory allows, so 64 bits hold it
      if (shape[axis] < 0 || shape[axis] > INT_MAX) {
        failure_.message.begin(op_, "input ") << i << " has size " << shape[axis] << " along axis "
                                              << static_cast<int>(axis) << ", but may have at most " << INT_MAX << ".";
        throw failure_;
      }
      if (axis < std::size(tensor.shape)) tensor.shape[axis] = shape[axis];
    }
    // inputs are constant to ONNX Runtime; the tables among them are ours to change, which it cannot know
    require(api_entry<entry::GetTensorMutableData>(api_)(const_cast<OrtValue*>(value), &tensor.data));
  }

  static void run(void* self, std::size_t tasks, void (*task)(void*, std::size_t), void* argument) {
    Call& call = *static_cast<Call*>(self);
    if (tasks <= 1 || call.threads_ <= 1) {
      for (std::size_t i = 0; i < tasks; ++i) task(argument, i);
      return;
    }
    const auto parallel_for = api_entry<entry::KernelContext_ParallelFor>(call.api_);
    OrtStatus* status = parallel_for(call.context_, task, tasks, 0, argument);
    if (status == nullptr) return;
    // the first refusal is told
    if (call.refused_ == nullptr) {
      call.refused_ = status;
    } else {
      api_entry<entry::ReleaseStatus>(call.api_)(status);
    }
  }

  const Api* api_;
  KernelContext* context_;
  const char* op_;
  int threads_;
  OrtStatus* refused_ = nullptr;
  Failure failure_;
  Tensor tensors_[kMaxInputs];
  const int64_t* shapes_[kMaxInputs] = {};
};

}  // namespace latentcot::ort
