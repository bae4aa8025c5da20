// C entry points to the CUDA kernels of RaggedAttention, AddNorm and GatedUnit on the CPU, for tests/cuda.
#include "../kernels/cuda/attention.cuh"
#include "../kernels/cuda/rows.cuh"

namespace latentcot::cuda {
namespace {

// In the order of NUMBERS of tests/cuda/attention.py.
struct Numbers {
  std::int64_t rows, heads, kv_heads, head_dim, head_stride, steps, length, turned, visibility, places, slots, data, stored,
    prompt;
};

CudaAttentionCall call_of(const Numbers& n) {
  CudaAttentionCall call{};
  call.row_count = std::int32_t(n.rows);
  call.heads = std::int32_t(n.heads);
  call.kv_heads = std::int32_t(n.kv_heads);
  call.head_dim = std::int32_t(n.head_dim);
  call.head_stride = std::int32_t(n.head_stride);
  call.steps = std::int32_t(n.steps);
  call.length = std::int32_t(n.length);
  call.turned = std::int32_t(n.turned);
  call.visibility = std::int32_t(n.visibility);
  call.places = std::int32_t(n.places);
  call.slot_count = std::int32_t(n.slots);
  call.data = Element(n.data);
  call.stored = Element(n.stored);
  call.prompt = n.prompt != 0;
  return call;
}

// One product of the tensor cores by one warp: the fragments of each lane, a [32, 4], b [32, count, 2], c [32, count, 4].
template <class T>
__global__ void one_product(const std::uint32_t* a, const std::uint32_t* b, float* c) {
  const unsigned lane = threadIdx.x;
  std::uint32_t mine[4], theirs[3][2];
  float sums[3][4];
  for (int i = 0; i < 4; ++i) mine[i] = a[lane * 4 + i];
  for (int i = 0; i < 6; ++i) theirs[i / 2][i % 2] = b[lane * 6 + i];
  for (int i = 0; i < 12; ++i) sums[i / 4][i % 4] = c[lane * 12 + i];
  mma16816<T, 3>(sums, mine, theirs);
  for (int i = 0; i < 12; ++i) c[lane * 12 + i] = sums[i / 4][i % 4];
}

}  // namespace
}  // namespace latentcot::cuda

#define LATENTCOT_ENTRY extern "C" __attribute__((visibility("default"))) int
using namespace latentcot::cuda;

LATENTCOT_ENTRY latentcot_cuda_attention_workspace(const Numbers* numbers, float* weights, std::int64_t* bytes) {
  CudaAttentionCall call = call_of(*numbers);
  call.weights = weights;
  *bytes = std::int64_t(attention_workspace(call));
  return 0;
}

// inputs: qkv, cos, sin, rows, slots, weights, q_norm, k_norm; cache: keys, then values of one layer.
LATENTCOT_ENTRY latentcot_cuda_attention(const Numbers* numbers, const float* epsilon, float* qkv, float* cosine, float* sine,
                                         std::int32_t* rows, std::int32_t* slots, float* weights, float* query_norm,
                                         float* key_norm, void* cache, std::int64_t* counters, float* out,
                                         void* workspace) {
  CudaAttentionCall call = call_of(*numbers);
  call.epsilon = *epsilon;
  call.qkv = qkv;
  call.cosine = cosine;
  call.sine = sine;
  call.rows = rows;
  call.slots = slots;
  call.weights = weights;
  call.query_norm = query_norm;
  call.key_norm = key_norm;
  call.keys = cache;
  call.values = static_cast<unsigned char*>(cache) +
                std::size_t(call.slot_count) * call.kv_heads * call.head_stride * element_bytes(call.stored);
  call.counters = counters;
  call.out = out;
  return launch_attention(call, workspace, nullptr);
}

LATENTCOT_ENTRY latentcot_cuda_mma(const std::uint32_t* a, const std::uint32_t* b, float* c, const std::int64_t* type) {
  if (Element(*type) == Element::kFloat16) return launch(one_product<__half>, 1, 32, 0, nullptr, a, b, c);
  return launch(one_product<__nv_bfloat16>, 1, 32, 0, nullptr, a, b, c);
}

// sizes: rows, width, element type
LATENTCOT_ENTRY latentcot_cuda_add_norm(const std::int64_t* sizes, const float* epsilon, float* x, float* residual,
                                        float* weight, float* normed, float* total) {
  const latentcot::AddNormCall call{x, residual, weight, normed, total, sizes[0], sizes[1], *epsilon};
  return launch_add_norm(call, Element(sizes[2]), nullptr);
}

LATENTCOT_ENTRY latentcot_cuda_gated_unit(const std::int64_t* sizes, float* gate_up, float* out) {
  const latentcot::GatedUnitCall call{gate_up, out, sizes[0], sizes[1]};
  return launch_gated_unit(call, Element(sizes[2]), nullptr);
}
