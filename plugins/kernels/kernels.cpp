// Which instruction sets were built in, and which of them this processor has.
#include "kernel_table.hpp"

#include <cstring>

namespace latentcot {

namespace portable {
extern const KernelTable table;
}
#ifdef LATENTCOT_X86_64
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

const KernelTable* kernels_named(const char* name) {
#ifdef LATENTCOT_X86_64
  // __builtin_cpu_supports asks the operating system too: the registers must be saved across switches
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
             ? &avx512::table
             : nullptr;
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
             ? &avx2::table
             : nullptr;
#endif
  return std::strcmp(name, "portable") ? nullptr : &portable::table;
}

const KernelTable& best_kernels() {
  static const KernelTable& best = []() -> const KernelTable& {
    if (const KernelTable* widest = kernels_named("avx512")) return *widest;
    if (const KernelTable* wide = kernels_named("avx2")) return *wide;
    return *kernels_named("portable");
  }();
  return best;
}

}  // namespace latentcot
