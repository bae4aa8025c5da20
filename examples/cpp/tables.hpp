// The tables of a bundle with packed rows (targets ort and tensorrt) in the memory of the host, and a prompt put into them.
//
// Every input is described in docs/bundle-format.md; what each column means stands there too.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

namespace latentcot::example {

// Element types by ONNX's numbers.
enum class Type : int { kFloat32 = 1, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10, kBfloat16 = 16 };

inline std::size_t bytes_of(Type type) {
  switch (type) {
    case Type::kInt64: return 8;
    case Type::kBool: return 1;
    case Type::kFloat16:
    case Type::kBfloat16: return 2;
    default: return 4;
  }
}

struct Tensor {
  Type type;
  std::vector<std::int64_t> shape;
  std::vector<unsigned char> bytes;

  static Tensor of(Type type, std::vector<std::int64_t> shape, int byte = 0) {
    const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    return {type, shape, std::vector<unsigned char>(std::size_t(count) * bytes_of(type), static_cast<unsigned char>(byte))};
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

// What a graph says of the model it holds, and how much a host makes room for.
struct Sizes {
  std::int64_t steps, layers, kv_heads, lanes, vocabulary, hidden;  // of the graph: slots, cache, logits, latent
  Type cache;
  std::int64_t places, length, slots;  // sequences at a time, positions of each, executed (token, step) pairs of all
};

using Tables = std::map<std::string, Tensor>;

inline Tables make_tables(const Sizes& n) {
  Tables t;
  t["control"] = Tensor::of(Type::kInt32, {4});
  t["order"] = Tensor::of(Type::kInt32, {n.places}, 0xff);  // -1: nobody
  t["sequences"] = Tensor::of(Type::kInt32, {n.places, 8});
  t["sampling"] = Tensor::of(Type::kFloat32, {n.places, 2});
  t["tokens"] = Tensor::of(Type::kInt32, {n.places, n.length}, 0xff);
  t["depths"] = Tensor::of(Type::kInt32, {n.places, n.length});
  t["forced_depth"] = Tensor::of(Type::kInt32, {n.places, n.length});
  t["uniform"] = Tensor::of(Type::kFloat32, {n.places, n.length});
  t["stop_tokens"] = Tensor::of(Type::kInt32, {n.places, 1}, 0xff);
  t["slots"] = Tensor::of(Type::kInt32, {n.places, n.steps, n.length}, 0xff);
  t["free_slots"] = Tensor::of(Type::kInt32, {n.slots});
  t["counters"] = Tensor::of(Type::kInt64, {8});
  t["cache"] = Tensor::of(n.cache, {n.layers, 2, n.slots, n.kv_heads, n.lanes});
  t["logits"] = Tensor::of(Type::kFloat32, {n.places, 0, n.vocabulary});  // of none are they recorded
  t["weights"] = Tensor::of(Type::kFloat32, {n.places, n.length, n.steps});  // an input of the stop rule `tail` alone
  auto* free_slots = t["free_slots"].as<std::int32_t>();
  for (std::int64_t i = 0; i < n.slots; ++i) free_slots[i] = std::int32_t(n.slots - 1 - i);
  t["counters"].as<std::int64_t>()[0] = n.slots;
  return t;
}

// Most rows of a pass, as far as prompts fill it, and most of one sequence.
inline void set_rows(Tables& t, std::int32_t rows) {
  auto* control = t["control"].as<std::int32_t>();
  control[0] = control[1] = rows;
}

// Puts a prompt into an empty place, behind all others in the order of admission: greedy, `fresh` tokens at most.
inline void admit(Tables& t, std::int64_t place, const std::vector<std::int32_t>& prompt, std::int64_t fresh) {
  const std::int64_t length = t["tokens"].shape[1], count = std::int64_t(prompt.size());
  std::memcpy(t["tokens"].as<std::int32_t>() + place * length, prompt.data(), prompt.size() * sizeof(std::int32_t));
  // status running; next position; pause and end: positions below both are run; stopped; live rows; top_k; known tokens
  const std::int32_t row[8] = {1, 0, std::int32_t(length), std::int32_t(count + fresh - 1), 0, 0, 0, std::int32_t(count)};
  std::memcpy(t["sequences"].as<std::int32_t>() + place * 8, row, sizeof row);
  float* const sampling = t["sampling"].as<float>() + place * 2;
  sampling[0] = 0;  // temperature: the largest logit
  sampling[1] = 1;  // top_p: off
  auto* order = t["order"].as<std::int32_t>();
  while (*order >= 0) ++order;
  *order = std::int32_t(place);
}

}  // namespace latentcot::example
