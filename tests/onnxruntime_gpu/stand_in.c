// A CUDA runtime without a GPU: memory is the host's, streams and events are addresses, kernels do nothing, and a captured
// graph is an address too. What else onnxruntime-gpu asks for is made by conftest.py and answers 0, which is success.
//
// stand_in_log(1): from here on every call that waits, copies, allocates, captures or replays is a line on stderr.
#include <driver_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int logged = 0;
void stand_in_log(int on) { logged = on; }
static int told(const char* call) {
  if (logged) fprintf(stderr, "cuda: %s\n", call);
  return 0;
}

int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaGetDevice(int* device) { return *device = 0; }
int cudaRuntimeGetVersion(int* version) { return *version = 13000, 0; }
int cudaDriverGetVersion(int* version) { return *version = 13000, 0; }
const char* cudaGetErrorString(int error) { return error ? "an error of the stand-in" : "no error"; }
const char* cudaGetErrorName(int error) { return cudaGetErrorString(error); }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  // compute capability 9.0; any other attribute is a count or a size, for which 132 will do
  return *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
                  : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                                   : 132,
         0;
}
int cudaGetDeviceProperties(struct cudaDeviceProp* of, int device) {
  (void)device;
  memset(of, 0, sizeof *of);
  strcpy(of->name, "a stand-in");
  of->major = 9;
  of->multiProcessorCount = 132;
  of->totalGlobalMem = (size_t)8 << 30;
  of->warpSize = 32;
  of->maxThreadsPerBlock = 1024;
  of->maxThreadsPerMultiProcessor = 2048;
  of->sharedMemPerBlock = 48 << 10;
  of->sharedMemPerBlockOptin = 227 << 10;
  of->regsPerBlock = 65536;
  of->maxGridSize[0] = 0x7fffffff;
  of->maxGridSize[1] = of->maxGridSize[2] = 65535;
  return 0;
}
int cudaMemGetInfo(size_t* left, size_t* all) {
  *left = (size_t)7 << 30;
  *all = (size_t)8 << 30;
  return 0;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes* of, const void* at) {
  memset(of, 0, sizeof *of);
  of->type = cudaMemoryTypeDevice;
  of->devicePointer = (void*)at;
  return 0;
}

int cudaMalloc(void** at, size_t bytes) {
  *at = calloc(bytes / 256 + 1, 256);
  return told("cudaMalloc"), *at ? 0 : cudaErrorMemoryAllocation;
}
int cudaMallocHost(void** at, size_t bytes) { return cudaMalloc(at, bytes); }
int cudaHostAlloc(void** at, size_t bytes, unsigned flags) { return (void)flags, cudaMalloc(at, bytes); }
int cudaFree(void* at) { return free(at), told("cudaFree"); }
int cudaFreeHost(void* at) { return free(at), 0; }
int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  (void)kind;
  return memcpy(to, from, bytes), told("cudaMemcpy");
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  (void)kind, (void)stream;
  return memcpy(to, from, bytes), told("cudaMemcpyAsync");
}
int cudaMemset(void* at, int byte, size_t bytes) { return memset(at, byte, bytes), 0; }
int cudaMemsetAsync(void* at, int byte, size_t bytes, void* stream) { return (void)stream, cudaMemset(at, byte, bytes); }

int cudaStreamCreate(void** made) { return *made = malloc(1), 0; }
int cudaStreamCreateWithFlags(void** made, unsigned flags) { return (void)flags, cudaStreamCreate(made); }
int cudaEventCreate(void** made) { return *made = malloc(1), 0; }
int cudaEventCreateWithFlags(void** made, unsigned flags) { return (void)flags, cudaEventCreate(made); }
int cudaStreamSynchronize(void* stream) { return (void)stream, told("cudaStreamSynchronize"); }
int cudaDeviceSynchronize(void) { return told("cudaDeviceSynchronize"); }
int cudaEventSynchronize(void* event) { return (void)event, told("cudaEventSynchronize"); }
int cudaStreamIsCapturing(void* stream, int* state) { return (void)stream, *state = 0; }

int cudaStreamBeginCapture(void* stream, int mode) { return (void)stream, (void)mode, told("cudaStreamBeginCapture"); }
int cudaStreamEndCapture(void* stream, void** made) { return (void)stream, *made = malloc(1), told("cudaStreamEndCapture"); }
int cudaGraphInstantiate(void** made, void* graph, unsigned long long flags) {
  (void)graph, (void)flags;
  return *made = malloc(1), told("cudaGraphInstantiate");
}
int cudaGraphLaunch(void* graph, void* stream) { return (void)graph, (void)stream, told("cudaGraphLaunch"); }
int cudaGraphDestroy(void* graph) { return free(graph), 0; }
int cudaGraphExecDestroy(void* graph) { return free(graph), 0; }

void** __cudaRegisterFatBinary(void* binary) {
  static void* handles[8];
  return (void)binary, handles;
}
