// What the plugins ask of the CUDA kernels: plain functions, so that only launch.cu knows plugins/kernels/cuda.
//
// launch.cu is compiled by nvcc, or, for the tests of a machine without a GPU, by a C++ compiler against the emulation
// in plugins/tests; nothing here names a type of either. Every launch is asynchronous on `stream` (a cudaStream_t),
// allocates nothing and returns 0 or a cudaError_t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels/attention_plan.hpp"
#include "../kernels/choose_token.hpp"
#include "../kernels/ragged_advance.hpp"
#include "../kernels/ragged_halt.hpp"

namespace latentcot::trt {

// Element types of queries, keys and values; numbers of our own.
enum class Element : int { kFloat32, kFloat16, kBFloat16 };

// AttentionCall with what a GPU needs beside it. `call.keys` and `call.values` are of the type `cache`, `call.qkv` and
// `call.out` of the type `activations`, whatever their pointers say.
struct Attention {
  AttentionCall call;
  Element activations, cache;
  std::int32_t places, slot_count;
  std::int64_t* counters;  // for the fault; or null
  bool prompt;  // rows of one sequence may share what they read
};

// What any call of as many rows or fewer, of one kind, on tables of this length or a shorter one works in.
std::size_t attention_workspace(const Attention& call);
std::size_t halt_workspace(const HaltCall& call);
std::size_t advance_workspace(const AdvanceCall& call);
std::size_t choose_workspace(const ChooseCall& call);

// Between two places of the device.
int copy(void* to, const void* from, std::size_t bytes, void* stream);
int launch_attention(const Attention& call, void* workspace, void* stream);
int launch_halt(const HaltCall& call, const HaltOutputs& out, void* workspace, void* stream);
// `again` is one int32: 0 or 1.
int launch_advance(const AdvanceCall& call, std::int32_t* rows, std::int32_t* fresh, std::int32_t* again, void* workspace,
                   void* stream);
int launch_choose(const ChooseCall& call, std::int32_t* chosen, void* workspace, void* stream);

}  // namespace latentcot::trt
