// RaggedAttention, the part that is the same for every instruction set: which rows share keys, and which keys they read.
//
// A run is a stretch of packed rows of one sequence at one step with rising positions; the rows of a run read prefixes of
// the same lists of slots, one list per plane. A tile is a part of a run that one task works on.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "parallel.hpp"
#include "tables.hpp"

namespace latentcot {

// Keys per block. A block is 64 entries of one plane, counted from the plane's first: a boundary that depends on nothing
// but the sequence itself, so that a row's sums are formed alike in any company. 64 keys x 64 lanes fill half of L1.
constexpr int kBlockKeys = 64;
// Rows that share a block while it is in L1: 8 are 2 to 5 % slower in a prompt, 32 no faster.
constexpr int kTileRows = 16;
// Longest head: one of them lies on the stack.
constexpr std::int32_t kMostDims = 1024;

// Which planes a row of step k reads, in the order of VISIBILITIES of latentcot_export/spec/recurrence.py.
enum Visibility : std::int32_t { kDuo, kAll, kSame, kNewest, kVisibilities };

// One call: shapes as in the contract. `keys` and `values` are this layer's [slots, kv_heads, head_stride].
struct AttentionCall {
  const float* qkv;           // [rows, (heads + 2 kv_heads) * head_dim]
  const float* cosine;        // [rows, turned / 2]
  const float* sine;          // [rows, turned / 2]
  const std::int32_t* rows;   // [rows, 4]: sequence, position, step, slot
  const std::int32_t* slots;  // [batch, steps, length]
  const float* weights;       // [batch, length, steps]: entries of step k score log(weights[.., k - 1]) more; or null
  const float* query_norm;    // [head_dim]: weight of an RMS norm of every query head before it is turned, or null
  const float* key_norm;      // [head_dim]: the same of every key head
  void* keys;
  void* values;
  float* out;  // [rows, heads * head_dim]
  Type kept;   // what the cache holds: float32, float16 or bfloat16
  std::int32_t row_count, heads, kv_heads, head_dim, head_stride, steps, length;
  std::int32_t turned;  // leading dimensions of a head that RoPE turns
  std::int32_t visibility;
  float epsilon;  // of those norms
};

struct Run {
  std::int32_t first, count;  // rows
  std::int32_t planes;        // that it reads
  std::size_t list;           // start of this run's slots in `lists`
  std::size_t counts;         // start in `counts` of [count, planes]: entries of each plane that a row reads
  std::size_t starts;         // start in `counts` of [planes + 1]: where a plane's list begins, relative to `list`
};

struct Tile {
  std::int32_t run, first, count;  // rows, absolute
  std::int32_t blocks;             // of its last row, over all planes
  std::size_t partial;             // first partial result of this tile, in split mode
};

struct AttentionPlan {
  Run* runs;
  Tile* tiles;
  std::int32_t* lists;
  float* biases;  // of the same entries: what their scores have more, log(weight); null without weights
  std::int32_t* counts;
  std::int32_t run_count, tile_count;
  std::size_t partials;  // (tile, row, kv head, block) results that split mode keeps
  std::int32_t splits;   // tasks per (tile, kv head), each with a share of its blocks; 1: no split mode
};

namespace plan_detail {

inline const std::int32_t* row(const AttentionCall& call, std::int32_t i) { return call.rows + std::size_t(i) * 4; }

inline bool continues(const AttentionCall& call, std::int32_t i) {
  const std::int32_t *before = row(call, i - 1), *here = row(call, i);
  return here[0] == before[0] && here[2] == before[2] && here[1] > before[1];
}

// The planes that a row of step k reads, and the first of them.
inline std::int32_t plane_count(const AttentionCall& call, std::int32_t step) {
  return call.visibility == kSame ? 1 : call.visibility == kAll ? call.steps : step;
}
inline std::int32_t first_plane(const AttentionCall& call, std::int32_t step) {
  return call.visibility == kSame ? step - 1 : 0;
}

inline float bias_of(const AttentionCall& call, std::int64_t sequence, std::int32_t position, std::int32_t plane) {
  // step 1 weighs 1, and runs before anybody has written so
  return plane == 0 ? 0.f : logf(call.weights[(sequence * call.length + position) * call.steps + plane]);
}

// Copies entries, and says whether all of them are slots. Without a branch or a store for each that the next one waits
// for: one in a plane without gaps is copied with its neighbours.
inline bool copy_slots(const std::int32_t* entries, std::int32_t count, std::int32_t* out) {
  std::int32_t signs = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    signs |= entries[i];
    out[i] = entries[i];
  }
  return signs >= 0;
}

inline std::size_t aligned(std::size_t bytes) { return (bytes + 63) & ~std::size_t(63); }

}  // namespace plan_detail

// Bytes that `make_plan` needs at most.
inline std::size_t plan_bytes(const AttentionCall& call) {
  using namespace plan_detail;
  std::size_t runs = 0, entries = 0, counts = 0;
  for (std::int32_t i = 0; i < call.row_count;) {
    std::int32_t end = i + 1;
    while (end < call.row_count && continues(call, end)) ++end;
    const std::size_t planes = std::size_t(plane_count(call, row(call, i)[2]));
    entries += planes * (std::size_t(row(call, end - 1)[1]) + 1);
    counts += planes * std::size_t(end - i) + planes + 1;
    ++runs;
    i = end;
  }
  return aligned(runs * sizeof(Run)) + aligned(std::size_t(call.row_count) * sizeof(Tile)) +
         (call.weights ? 2 : 1) * aligned(entries * 4) + aligned(counts * 4);
}

// Lays the plan out in `memory`. Rows were checked by the caller: every index is in range and the row's own slot is in
// the table.
inline AttentionPlan make_plan(const AttentionCall& call, void* memory, int threads) {
  using namespace plan_detail;
  AttentionPlan plan{};
  auto* at = static_cast<unsigned char*>(memory);
  std::size_t entries = 0;
  std::int32_t runs = 0;
  for (std::int32_t i = 0; i < call.row_count; ++runs) {
    std::int32_t end = i + 1;
    while (end < call.row_count && continues(call, end)) ++end;
    entries += std::size_t(plane_count(call, row(call, i)[2])) * (std::size_t(row(call, end - 1)[1]) + 1);
    i = end;
  }
  plan.runs = reinterpret_cast<Run*>(at);
  at += aligned(std::size_t(runs) * sizeof(Run));
  plan.tiles = reinterpret_cast<Tile*>(at);
  at += aligned(std::size_t(call.row_count) * sizeof(Tile));
  plan.lists = reinterpret_cast<std::int32_t*>(at);
  at += aligned(entries * 4);
  if (call.weights) {
    plan.biases = reinterpret_cast<float*>(at);
    at += aligned(entries * 4);
  }
  plan.counts = reinterpret_cast<std::int32_t*>(at);

  std::size_t list = 0, count = 0;
  for (std::int32_t i = 0; i < call.row_count;) {
    std::int32_t end = i + 1;
    while (end < call.row_count && continues(call, end)) ++end;
    // most often every entry counts: the first plane of `duo` has no gaps
    const bool plain = call.visibility != kNewest && !plan.biases;
    const std::int32_t step = row(call, i)[2], base = first_plane(call, step), planes = plane_count(call, step);
    Run& run = plan.runs[plan.run_count];
    run = {i, end - i, planes, list, count, count + std::size_t(end - i) * planes};
    count += std::size_t(end - i) * planes + planes + 1;
    const std::int32_t* table = call.slots + std::size_t(row(call, i)[0]) * call.steps * call.length;
    std::int32_t* const slots = plan.lists + run.list;
    std::int32_t total = 0;
    for (std::int32_t p = 0; p < planes; ++p) {
      plan.counts[run.starts + p] = total;
      const std::int32_t begin = total;
      std::int32_t position = 0;
      for (std::int32_t r = i; r < end; ++r) {
        // of its own position it reads no later step, which is there where a prompt is refined
        const std::int32_t stop = row(call, r)[1] - (call.visibility == kAll && p >= step);
        if (plain) {
          const std::int32_t count = stop + 1 - position;
          if (copy_slots(table + std::size_t(base + p) * call.length + position, count, slots + total)) {
            total += count;
            position = stop + 1;
          }
        }
        for (; position <= stop; ++position) {
          const std::int32_t* cell = table + std::size_t(base + p) * call.length + position;
          slots[total] = *cell;
          if (plan.biases) plan.biases[run.list + total] = bias_of(call, row(call, i)[0], position, base + p);
          // newest: an entry below the row's step counts where its token has no later one
          total += *cell >= 0 && (call.visibility != kNewest || p == step - 1 || cell[call.length] < 0);
        }
        plan.counts[run.counts + std::size_t(r - i) * planes + p] = total - begin;
      }
    }
    plan.counts[run.starts + planes] = total;
    list += total;
    for (std::int32_t first = i; first < end; first += kTileRows) {
      Tile& tile = plan.tiles[plan.tile_count];
      const std::int32_t rows = end - first < kTileRows ? end - first : kTileRows;
      std::int32_t blocks = 0;
      for (std::int32_t p = 0; p < planes; ++p) {
        const std::int32_t n = plan.counts[run.counts + std::size_t(first + rows - 1 - i) * planes + p];
        blocks += (n + kBlockKeys - 1) / kBlockKeys;
      }
      tile = {plan.run_count, first, rows, blocks, plan.partials};
      plan.partials += std::size_t(rows) * call.kv_heads * blocks;
      ++plan.tile_count;
    }
    ++plan.run_count;
    i = end;
  }
  // Few tiles, as when one sequence decodes: several tasks share the blocks of one. Four tasks a thread even them out.
  const std::int32_t tasks = plan.tile_count * call.kv_heads;
  const std::int32_t wanted = 4 * threads;
  plan.splits = threads > 1 && tasks > 0 && tasks < wanted ? (wanted + tasks - 1) / tasks : 1;
  if (plan.splits == 1) plan.partials = 0;
  return plan;
}

}  // namespace latentcot
