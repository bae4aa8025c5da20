// The one function that ONNX Runtime looks for when it loads the library, and one that says what is in it.
#include <mutex>
#include <vector>

#include "ops.hpp"
#ifdef LATENTCOT_WITH_CUDA
#include "cuda/ops.hpp"
#endif

namespace latentcot::ort {
namespace {

constexpr const char* kDomain = "latentcot";

std::vector<const CustomOp*> all_ops() {
  std::vector<const CustomOp*> ops = {ragged_attention(), ragged_halt(), ragged_advance(),
                                      choose_token(),     add_norm(),    gated_unit()};
#ifdef LATENTCOT_WITH_CUDA
  // beside those of the CPU and under their names; of kernels whose types fit ONNX Runtime asks the first for its outputs
  ops.insert(ops.end(), {cuda_ragged_halt(), cuda_ragged_advance(), cuda_choose_token()});
  for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kBFloat16})
    ops.insert(ops.end(), {cuda_ragged_attention(type), cuda_add_norm(type), cuda_gated_unit(type)});
  for (const Type type : {Type::kFloat16, Type::kBFloat16}) ops.push_back(refused_ragged_attention(type));
#endif
  return ops;
}

// One domain for each ONNX Runtime in the process, kept for good: sessions refer to it as long as they live, and only
// ONNX Runtime knows when the last one has gone.
struct Registered {
  const Api* api;
  CustomOpDomain* domain;
};

CustomOpDomain* domain_of(const Api* api) {
  static std::mutex mutex;
  static auto& registered = *new std::vector<Registered>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Registered& each : registered) {
    if (each.api == api) return each.domain;
  }
  registered.reserve(registered.size() + 1);
  CustomOpDomain* domain = nullptr;
  require(api_entry<entry::CreateCustomOpDomain>(api)(kDomain, &domain));
  for (const CustomOp* op : all_ops()) {
    if (OrtStatus* refused = api_entry<entry::CustomOpDomain_Add>(api)(domain, op)) {
      api_entry<entry::ReleaseCustomOpDomain>(api)(domain);
      throw Refused{refused};
    }
  }
  registered.push_back({api, domain});
  return domain;
}

}  // namespace
}  // namespace latentcot::ort

// Null for success. Before release 1.24 the table lacks what we call, and older ones have no status for it either: the
// entry that makes one has stood at position 0 since the first release.
extern "C" [[gnu::visibility("default")]] OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                      const latentcot::ort::ApiBase* base) {
  using namespace latentcot::ort;
  const Api* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    return api_entry<entry::CreateStatus>(base->GetApi(1))(
        ErrorCode::fail, "latentcot: the op library needs ONNX Runtime 1.24 or later, please install a newer one.");
  }
  return guarded(api, "latentcot", [&] {
    require(api_entry<entry::AddCustomOpDomain>(api)(options, domain_of(api)));
  });
}

// Where the ops of this library run: "cpu", or "cpu cuda". ONNX Runtime would run one that lacks a kernel for its device on
// the CPU, on copies of the tables.
extern "C" [[gnu::visibility("default")]] const char* latentcot_devices() {
#ifdef LATENTCOT_WITH_CUDA
  return "cpu cuda";
#else
  return "cpu";
#endif
}
