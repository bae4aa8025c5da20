// The stand-in for the CUDA driver of tests/rtx, and captured graphs: a graph is the list of numbers that `record` was given
// while the stream was captured, and its launch calls back for each.
#include "../rtx/driver.cpp"

#include <vector>

namespace {
bool capturing = false;
std::vector<int> recorded;
std::map<void*, std::vector<int>> graphs;
void (*play)(int) = nullptr;
int launches = 0;
}  // namespace

extern "C" {
void stand_in_player(void (*player)(int)) { play = player; }
int stand_in_capturing() { return capturing; }
void stand_in_record(int number) { recorded.push_back(number); }
int stand_in_launches() { return launches; }
int stand_in_graphs() { return static_cast<int>(graphs.size()); }

int cuMemsetD8Async(std::uint64_t to, unsigned char byte, std::size_t size, void* stream) {
  std::lock_guard lock(guard);
  if (!current || stream != &stream_of_all || !inside(to, size)) return kInvalid;
  return std::memset(reinterpret_cast<void*>(to), byte, size), 0;
}
int cuStreamBeginCapture_v2(void* stream, int mode) {
  if (stream != &stream_of_all || mode != 1 || capturing) return kInvalid;
  recorded.clear();
  return capturing = true, 0;
}
int cuStreamEndCapture(void* stream, void** graph) {
  if (stream != &stream_of_all || !capturing) return kInvalid;
  return capturing = false, *graph = new int(0), 0;
}
int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long flags) {
  if (!graph || flags) return kInvalid;
  *made = new int(1);
  return graphs[*made] = recorded, 0;
}
int cuGraphDestroy(void* graph) { return delete static_cast<int*>(graph), 0; }
int cuGraphLaunch(void* made, void* stream) {
  const auto found = graphs.find(made);
  if (stream != &stream_of_all || found == graphs.end() || capturing) return kInvalid;
  ++launches;
  for (const int number : found->second) play(number);
  return 0;
}
int cuGraphExecDestroy(void* made) {
  if (!graphs.erase(made)) return kInvalid;
  return delete static_cast<int*>(made), 0;
}
}
