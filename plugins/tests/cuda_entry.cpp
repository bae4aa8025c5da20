// C entry points to the CUDA kernels of the state ops on the CPU, for tests/cuda: inputs as the op has them, R rows come out.
#include "../kernels/cuda/advance.cuh"
#include "../kernels/cuda/choose.cuh"
#include "../kernels/cuda/halt.cuh"

#define LATENTCOT_ENTRY extern "C" __attribute__((visibility("default")))

namespace latentcot::cuda {
namespace {

constexpr int kRefused = -1;  // the call itself: fault() says why

int refused(const Message& message) {
  on_cpu::machine().fault = message.text;
  return kRefused;
}

// Memory of exactly so many bytes; false once somebody wrote behind it.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : bytes_(bytes), words_(bytes / 8 + 9, kPattern) {}
  void* data() { return words_.data(); }

  int checked(cudaError_t error) const {
    const auto* behind = reinterpret_cast<const unsigned char*>(words_.data());
    for (std::size_t at = bytes_; at < words_.size() * 8; ++at)
      if (behind[at] != on_cpu::kPoison) {
        Message message;
        message << "byte " << std::int64_t(at) << " of a workspace of " << std::int64_t(bytes_) << " was written.";
        return refused(message);
      }
    return error;
  }

 private:
  static constexpr std::uint64_t kPattern = 0x0101010101010101ull * on_cpu::kPoison;
  std::size_t bytes_;
  std::vector<std::uint64_t> words_;
};

}  // namespace
}  // namespace latentcot::cuda

using namespace latentcot;
using namespace latentcot::cuda;

// In which order threads and blocks run from now on: see cuda_on_cpu.hpp.
LATENTCOT_ENTRY void latentcot_cuda_order(std::uint64_t seed) { on_cpu::order(seed); }

// What the last launch that failed found.
LATENTCOT_ENTRY const char* latentcot_cuda_fault() { return on_cpu::fault().c_str(); }

// attributes: tau, max_steps, stop, readout, skip_halted, fixed. counts int64 [2]: rows that go on, rows of the head.
LATENTCOT_ENTRY int latentcot_cuda_RaggedHalt(const Tensor* inputs, const double* attributes, void* const* outputs,
                                              std::int64_t* counts) {
  const HaltRules rules = {float(attributes[0]), std::int64_t(attributes[1]), std::int32_t(attributes[2]),
                           std::int32_t(attributes[3]), attributes[4] != 0, attributes[5] != 0};
  HaltCall call{};
  Message message;
  if (!bind_halt(inputs, rules, &call, &message)) return refused(message);
  const HaltOutputs out = {static_cast<std::int32_t*>(outputs[0]), static_cast<float*>(outputs[1]),
                           static_cast<float*>(outputs[2]),        static_cast<float*>(outputs[3]),
                           static_cast<std::int32_t*>(outputs[4]), static_cast<float*>(outputs[5]),
                           static_cast<std::int64_t*>(outputs[6])};
  Workspace workspace(halt_workspace(call));
  const int error = workspace.checked(launch_halt(call, out, workspace.data(), nullptr));
  const HaltCounts* found = static_cast<const HaltCounts*>(workspace.data());
  counts[0] = found->going_on;
  counts[1] = found->head_count;
  return error;
}

// attributes: max_steps, runs_on, token_major, jacobi. Rows have the capacity that the outputs have; `fresh` may hold tokens.
LATENTCOT_ENTRY int latentcot_cuda_RaggedAdvance(const Tensor* inputs, const double* attributes, void* const* outputs,
                                                 std::int64_t*) {
  const AdvanceRules rules = {std::int64_t(attributes[0]), attributes[1] != 0, attributes[2] != 0, false,
                              attributes[3] != 0};
  AdvanceCall call{};
  Message message;
  if (!bind_advance(inputs, rules, &call, &message)) return refused(message);
  const AdvanceOutputs out = {static_cast<std::int32_t*>(outputs[0]), static_cast<std::int32_t*>(outputs[1]),
                              static_cast<bool*>(outputs[2])};
  Workspace workspace(advance_workspace(call));
  return workspace.checked(launch_advance(call, out, workspace.data(), nullptr));
}

// attributes: fixed.
LATENTCOT_ENTRY int latentcot_cuda_ChooseToken(const Tensor* inputs, const double* attributes, void* const* outputs,
                                               std::int64_t*) {
  ChooseCall call{};
  Message message;
  if (!bind_choose(inputs, &call, &message, attributes[0] != 0)) return refused(message);
  Workspace workspace(choose_workspace(call));
  return workspace.checked(launch_choose(call, static_cast<std::int32_t*>(outputs[0]), workspace.data(), nullptr));
}
