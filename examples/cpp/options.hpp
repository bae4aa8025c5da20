// What the examples are told on the command line, and how they print what they found.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tables.hpp"

namespace latentcot::example {

struct Options {
  std::string model, library;  // what the example runs, and the library of ops or plugins that it needs
  std::int64_t fresh;  // tokens to write
  std::vector<std::int32_t> prompt;

  // Ends the program where something is missing. `what`: the first argument.
  static Options of(int count, char** words, const char* what = "BUNDLE") {
    if (count < 5 || std::atoll(words[3]) < 1) {
      std::fprintf(stderr, "usage: %s %s LIBRARY NEW_TOKENS ID [ID ...]\n", words[0], what);
      std::exit(2);
    }
    Options options{words[1], words[2], std::atoll(words[3]), {}};
    for (int i = 4; i < count; ++i) {
      char* end = nullptr;
      options.prompt.push_back(std::int32_t(std::strtol(words[i], &end, 10)));
      if (*end != 0 || end == words[i]) {
        std::fprintf(stderr, "error: %s is no token id; give numbers, as `latentcot generate --ids` takes them\n", words[i]);
        std::exit(2);
      }
    }
    return options;
  }

  std::int64_t length() const { return std::int64_t(prompt.size()) + fresh; }
};

// Ids that were written and the depth of every token that was run, prompt first, as `generate -o json` has them.
inline void print(Tables& tables, const Options& options) {
  const auto* tokens = tables["tokens"].as<std::int32_t>();
  const auto* depths = tables["depths"].as<std::int32_t>();
  std::printf("{\"ids\": [");
  for (std::int64_t t = std::int64_t(options.prompt.size()); t < options.length(); ++t)
    std::printf("%s%d", t == std::int64_t(options.prompt.size()) ? "" : ", ", tokens[t]);
  std::printf("], \"depths\": [");
  for (std::int64_t t = 0; t + 1 < options.length(); ++t) std::printf("%s%d", t == 0 ? "" : ", ", depths[t]);
  std::printf("]}\n");
}

}  // namespace latentcot::example
