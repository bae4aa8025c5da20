// What TensorRT asks of a plugin library: its creators, and where to write its log.
#include <atomic>
#include <cstdio>

#include "choose_token.hpp"
#include "ragged_advance.hpp"
#include "ragged_attention.hpp"
#include "ragged_halt.hpp"

namespace latentcot::trt {
namespace {

nvinfer1::ILoggerFinder* finder = nullptr;
std::atomic<long long> copies = 0;

}  // namespace

void report(const Message& message) noexcept {
  nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
  if (logger)
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.text);
  else
    std::fprintf(stderr, "%s\n", message.text);
}

void copied() noexcept { ++copies; }

}  // namespace latentcot::trt

#define LATENTCOT_EXPORTED extern "C" __attribute__((visibility("default")))

LATENTCOT_EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  using namespace latentcot::trt;
  static Creator<RaggedAttention> attention;
  static Creator<RaggedHalt> halt;
  static Creator<RaggedAdvance> advance;
  static Creator<ChooseToken> choose;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&attention, &halt, &advance, &choose};
  count = int(std::size(creators));
  return creators;
}

// How many tables have been copied in this process, because TensorRT gave an aliased output another place. In a pass that
// runs as it should, none.
LATENTCOT_EXPORTED long long latentcot_copied_tables() { return latentcot::trt::copies; }

LATENTCOT_EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* given) { latentcot::trt::finder = given; }
