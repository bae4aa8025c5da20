// A stand-in for the CUDA driver: the functions that runtime/cuda_driver.py calls, over the host's memory. It refuses what
// a driver would: calls without a context, memory that is not its own, a stream that it did not make.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {
constexpr int kInvalid = 1, kOutOfMemory = 2, kNoContext = 201;
std::mutex guard;
std::map<std::uint64_t, std::size_t> held;
thread_local void* current = nullptr;
int context_of_all, stream_of_all;
int devices = 1, major = 8, minor = 9;
std::size_t room = std::size_t(1) << 40;

bool inside(std::uint64_t address, std::size_t size) {
  auto after = held.upper_bound(address);
  if (after == held.begin()) return false;
  --after;
  return address + size <= after->first + after->second;
}
}  // namespace

extern "C" {
void stand_in_machine(int count, int high, int low) { devices = count, major = high, minor = low; }
void stand_in_room(std::size_t bytes) { room = bytes; }
std::size_t stand_in_held() { return held.size(); }

int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = devices, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal < devices ? 0 : 101; }
int cuDeviceGetAttribute(int* value, int which, int) {
  if (which != 75 && which != 76) return kInvalid;
  return *value = which == 75 ? major : minor, 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &context_of_all, 0; }
int cuCtxSetCurrent(void* context) { return current = context, context == &context_of_all ? 0 : kNoContext; }
int cuStreamCreate(void** stream, unsigned flags) {
  if (!current || flags != 1) return kInvalid;
  return *stream = &stream_of_all, 0;
}
int cuStreamSynchronize(void* stream) { return stream == &stream_of_all ? 0 : kInvalid; }
int cuMemAllocAsync(std::uint64_t* address, std::size_t size, void* stream) {
  if (!current || stream != &stream_of_all || !size) return kInvalid;
  if (size > room) return kOutOfMemory;
  void* made = std::malloc(size);
  std::memset(made, 0xA5, size);  // what a GPU leaves there is no zero
  std::lock_guard lock(guard);
  held[*address = reinterpret_cast<std::uint64_t>(made)] = size;
  return 0;
}
int cuMemFreeAsync(std::uint64_t address, void* stream) {
  std::lock_guard lock(guard);
  if (!current || stream != &stream_of_all || !held.erase(address)) return kInvalid;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t size, void* stream) {
  std::lock_guard lock(guard);
  if (!current || stream != &stream_of_all || !inside(to, size)) return kInvalid;
  return std::memcpy(reinterpret_cast<void*>(to), from, size), 0;
}
int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t size, void* stream) {
  std::lock_guard lock(guard);
  if (!current || stream != &stream_of_all || !inside(from, size)) return kInvalid;
  return std::memcpy(to, reinterpret_cast<const void*>(from), size), 0;
}
}
