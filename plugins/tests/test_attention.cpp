// RaggedAttention of every instruction set against a plain loop, and its bits in one company against another.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/kernel_table.hpp"
#include "check.hpp"

using namespace latentcot;

namespace {

// Some sequences with ragged depths, and the rows of one pass over them.
struct Case {
  int batch, steps, length, slots, heads, kv_heads, head_dim, turned, stride;
  Type kept;
  std::int32_t visibility;
  std::vector<std::int32_t> table, rows;
  std::vector<float> qkv, cosine, sine, keys, values, weights, out;
  std::vector<float> query_norm, key_norm;  // empty, or of head_dim
  std::vector<std::uint16_t> narrow_keys, narrow_values;  // where `kept` is not float32

  AttentionCall call() {
    AttentionCall c{};
    c.qkv = qkv.data();
    c.cosine = cosine.data();
    c.sine = sine.data();
    c.rows = rows.data();
    c.slots = table.data();
    const bool narrow = kept != Type::kFloat32;
    c.keys = narrow ? static_cast<void*>(narrow_keys.data()) : keys.data();
    c.values = narrow ? static_cast<void*>(narrow_values.data()) : values.data();
    c.out = out.data();
    c.kept = kept;
    c.row_count = std::int32_t(rows.size() / 4);
    c.heads = heads;
    c.kv_heads = kv_heads;
    c.head_dim = head_dim;
    c.head_stride = stride;
    c.turned = turned;
    c.query_norm = query_norm.empty() ? nullptr : query_norm.data();
    c.key_norm = key_norm.empty() ? nullptr : key_norm.data();
    c.epsilon = 1e-5f;
    c.steps = steps;
    c.length = length;
    c.visibility = visibility;
    c.weights = weights.empty() ? nullptr : weights.data();
    return c;
  }
};

float widened(std::uint16_t bits, Type kept) {
  const std::uint32_t upper = std::uint32_t(bits) << 16;
  float wide;
  std::memcpy(&wide, &upper, 4);
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return kept == Type::kBFloat16 ? wide : float(half);
}

// Bits of the nearest float16 or bfloat16, of two equally near the even one.
std::uint16_t narrowed(float x, Type kept) {
  const _Float16 half = static_cast<_Float16>(x);
  std::uint16_t bits;
  std::memcpy(&bits, &half, 2);
  if (kept == Type::kFloat16) return bits;
  std::uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const std::uint32_t below = wide & 0xffffu, even = wide >> 16 & 1;
  return std::uint16_t((wide >> 16) + (below > 0x8000u || (below == 0x8000u && even)));
}

Case make_case(std::mt19937& random, Type kept) {
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::normal_distribution<float> normal;
  Case c;
  c.batch = pick(1, 4);
  c.steps = pick(1, 4);
  c.length = pick(1, pick(0, 1) ? 300 : 20);
  c.kv_heads = pick(1, 3);
  c.heads = c.kv_heads * pick(1, 6);
  c.head_dim = 2 * pick(1, pick(0, 1) ? 10 : 70);
  c.turned = pick(0, 1) ? c.head_dim : 2 * pick(1, c.head_dim / 2);
  c.stride = (c.head_dim + 15) / 16 * 16;
  c.kept = kept;
  c.slots = c.batch * c.steps * c.length + 3;
  c.table.assign(std::size_t(c.batch) * c.steps * c.length, -1);
  std::vector<std::int32_t> free(c.slots);
  for (int i = 0; i < c.slots; ++i) free[i] = i;
  std::shuffle(free.begin(), free.end(), random);
  for (int s = 0; s < c.batch; ++s) {
    // depths of finished tokens, then a stretch of rows at one step, then perhaps fresh ones
    const int count = pick(1, c.length), active = pick(1, std::min(count, 40)), step = pick(1, c.steps);
    const bool refined = pick(0, 3) == 0;  // every step of its tokens runs at once
    for (int t = 0; t < count; ++t) {
      const bool live = t >= count - active;
      const bool fresh = live && step > 1 && t >= count - active / 2;
      const bool halted = live && !fresh && pick(0, 3) == 0;  // a hole in the run
      const int depth = !live ? pick(1, c.steps) : fresh ? 1 : halted ? pick(1, step) : step;
      for (int k = 0; k < depth; ++k) {
        c.table[(std::size_t(s) * c.steps + k) * c.length + t] = free.back();
        free.pop_back();
      }
      if (!live || halted) continue;
      for (int k = refined ? 1 : depth; k <= depth; ++k)
        for (int value : {s, t, k, c.table[(std::size_t(s) * c.steps + k - 1) * c.length + t]}) c.rows.push_back(value);
    }
  }
  const std::size_t row_count = c.rows.size() / 4, pool = std::size_t(c.slots) * c.kv_heads * c.stride;
  const auto fill = [&](std::vector<float>& v, std::size_t n) {
    v.resize(n);
    for (float& x : v) x = normal(random);
  };
  fill(c.qkv, row_count * (c.heads + 2 * c.kv_heads) * c.head_dim);
  fill(c.cosine, row_count * c.turned / 2);
  fill(c.sine, row_count * c.turned / 2);
  if (pick(0, 1)) {
    fill(c.query_norm, std::size_t(c.head_dim));
    fill(c.key_norm, std::size_t(c.head_dim));
  }
  fill(c.keys, pool);
  fill(c.values, pool);
  for (std::size_t i = 0; i < pool; ++i)
    if (int(i % c.stride) >= c.head_dim) c.keys[i] = c.values[i] = 0;
  for (float x : c.keys) c.narrow_keys.push_back(narrowed(x, kept));
  for (float x : c.values) c.narrow_values.push_back(narrowed(x, kept));
  c.visibility = pick(0, kVisibilities - 1);
  if (pick(0, 1))
    for (int i = 0; i < c.batch * c.length * c.steps; ++i) c.weights.push_back(float(pick(1, 1000)) / 1000);
  c.out.assign(row_count * c.heads * c.head_dim, NAN);
  return c;
}

void run_on_threads(void*, std::size_t tasks, void (*task)(void*, std::size_t), void* argument) {
  // in turn backwards, since no order may be relied upon, and at the same time
  static int call = 0;
  if (++call % 2) {
    for (std::size_t i = tasks; i-- > 0;) task(argument, i);
    return;
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < tasks; ++i) threads.emplace_back(task, argument, i);
  for (std::thread& each : threads) each.join();
}

void attend(const KernelTable& kernels, Case& c, int threads) {
  const AttentionCall call = c.call();
  std::vector<unsigned char> memory(plan_bytes(call) + 64);
  auto* at = reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) & ~std::uintptr_t(63));
  const AttentionPlan plan = make_plan(call, at, threads);
  std::vector<float> workspace(kernels.attention_bytes(call, plan, threads) / 4);
  kernels.ragged_attention(call, plan, workspace.data(), {nullptr, threads, run_on_threads});
}

// Whether a row of step `step` reads plane p of a token, its `own` or one before; `ended`: the token has no entry in the
// next plane.
bool sees(const Case& c, int p, int step, bool own, bool ended) {
  switch (c.visibility) {
    case kAll: return !own || p < step;
    case kSame: return p == step - 1;
    case kNewest: return p == step - 1 || (p < step - 1 && ended);
    default: return p < step;
  }
}

// The contract in double precision, on a copy of the cache.
std::vector<double> expected(const Case& c) {
  const int half = c.turned / 2, width = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const bool narrow = c.kept != Type::kFloat32;
  const std::size_t pool = c.keys.size(), row_count = c.rows.size() / 4;
  std::vector<double> keys(pool), values(pool), out(row_count * c.heads * c.head_dim);
  for (std::size_t i = 0; i < pool; ++i) {
    keys[i] = narrow ? widened(c.narrow_keys[i], c.kept) : c.keys[i];
    values[i] = narrow ? widened(c.narrow_values[i], c.kept) : c.values[i];
  }
  const auto rotated = [&](std::size_t r, int head, int i) {
    const float *x = &c.qkv[r * width + std::size_t(head) * c.head_dim];
    const auto& norm = head < c.heads ? c.query_norm : c.key_norm;
    double squares = 0;
    for (int j = 0; j < c.head_dim; ++j) squares += double(x[j]) * x[j];
    const auto lane = [&](int j) {
      return norm.empty() ? x[j] : x[j] / std::sqrt(squares / c.head_dim + double(1e-5f)) * norm[j];
    };
    if (i >= c.turned) return lane(i);
    const double cs = c.cosine[r * half + i % half], sn = c.sine[r * half + i % half];
    return i < half ? lane(i) * cs - lane(i + half) * sn : lane(i) * cs + lane(i - half) * sn;
  };
  for (std::size_t r = 0; r < row_count; ++r)
    for (int g = 0; g < c.kv_heads; ++g)
      for (int i = 0; i < c.head_dim; ++i) {
        const std::size_t at = (std::size_t(c.rows[r * 4 + 3]) * c.kv_heads + g) * c.stride + i;
        const double k = rotated(r, c.heads + g, i);
        const float v = c.qkv[r * width + std::size_t(c.heads + c.kv_heads + g) * c.head_dim + i];
        keys[at] = narrow ? widened(narrowed(float(k), c.kept), c.kept) : k;
        values[at] = narrow ? widened(narrowed(float(v), c.kept), c.kept) : v;
      }
  for (std::size_t r = 0; r < row_count; ++r)
    for (int h = 0; h < c.heads; ++h) {
      const int s = c.rows[r * 4], t = c.rows[r * 4 + 1], step = c.rows[r * 4 + 2], g = h / (c.heads / c.kv_heads);
      std::vector<double> scores, sum(c.head_dim);
      std::vector<std::size_t> places;
      double largest = -INFINITY, total = 0;
      for (int p = 0; p < c.steps; ++p)
        for (int j = 0; j <= t; ++j) {
          const auto slot_of = [&](int plane) { return c.table[(std::size_t(s) * c.steps + plane) * c.length + j]; };
          const int slot = slot_of(p);
          if (slot < 0 || !sees(c, p, step, j == t, p + 1 == c.steps || slot_of(p + 1) < 0)) continue;
          places.push_back((std::size_t(slot) * c.kv_heads + g) * c.stride);
          double score = 0;
          for (int i = 0; i < c.head_dim; ++i) score += rotated(r, h, i) * keys[places.back() + i];
          const double weight = c.weights.empty() || p == 0 ? 1 : c.weights[(std::size_t(s) * c.length + j) * c.steps + p];
          scores.push_back(score / std::sqrt(double(c.head_dim)) + std::log(weight));
          largest = std::max(largest, scores.back());
        }
      for (std::size_t j = 0; j < scores.size(); ++j) {
        const double weight = std::exp(scores[j] - largest);
        total += weight;
        for (int i = 0; i < c.head_dim; ++i) sum[i] += weight * values[places[j] + i];
      }
      for (int i = 0; i < c.head_dim; ++i) out[(r * c.heads + h) * c.head_dim + i] = sum[i] / total;
    }
  return out;
}

void compare(const KernelTable& kernels, const Case& original, int threads) {
  Case c = original;
  const std::vector<double> want = expected(c);
  attend(kernels, c, threads);
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(c.out[i] - want[i]);
    worst = error > worst || std::isnan(error) ? error : worst;
  }
  // a key that float32 computed may be rounded to the neighbour of what float64 rounds to: 11 bits or 8
  const double limit = c.kept == Type::kFloat32 ? 2e-5 : c.kept == Type::kFloat16 ? 4e-3 : 3.2e-2;
  CHECK(worst < limit, "%s off by %g", kernels.name, worst);

  // every row alone, with its neighbours' keys already written, gives the same bits
  for (std::size_t r = 0; r < c.rows.size() / 4; ++r) {
    Case alone = c;
    const std::size_t width = std::size_t(c.heads + 2 * c.kv_heads) * c.head_dim, half = c.turned / 2;
    const std::size_t span = std::size_t(c.heads) * c.head_dim;
    alone.rows.assign(&c.rows[r * 4], &c.rows[r * 4] + 4);
    alone.qkv.assign(&c.qkv[r * width], &c.qkv[r * width] + width);
    alone.cosine.assign(&c.cosine[r * half], &c.cosine[r * half] + half);
    alone.sine.assign(&c.sine[r * half], &c.sine[r * half] + half);
    alone.out.assign(span, NAN);
    attend(kernels, alone, threads == 1 ? 3 : 1);
    CHECK(std::memcmp(alone.out.data(), &c.out[r * span], span * 4) == 0, "%s row %zu alone", kernels.name, r);
    CHECK(std::memcmp(alone.keys.data(), c.keys.data(), c.keys.size() * 4) == 0, "keys of row %zu", r);
  }
}

}  // namespace

int main() {
  std::mt19937 random(7);
  int ran = 0;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    const KernelTable* kernels = kernels_named(name);
    if (!kernels) {
      std::printf("%s: not here\n", name);
      continue;
    }
    ++ran;
    const Type kept[] = {Type::kFloat32, Type::kFloat16, Type::kFloat32, Type::kBFloat16};
    for (int i = 0; i < 60; ++i) compare(*kernels, make_case(random, kept[i % 4]), i / 4 % 2 ? 1 : 5);
  }
  CHECK(ran > 0, "no kernels at all");
  std::printf(failures ? "FAILED: %d\n" : "passed\n", failures);
  return failures != 0;
}
