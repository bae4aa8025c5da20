// RaggedAttention's work as tasks: (tile, kv head, share of its blocks). Included once per instruction set.
#pragma once

#include "ragged_attention.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace attention {

// A call in progress, shared by all workers.
struct Work {
  const AttentionCall& call;
  const AttentionPlan& plan;
  Sizes sizes;
  float* workspaces;    // [workers, sizes.all]
  Partial* partials;    // split mode: [plan.partials, group]
  float* partial_sums;  // split mode: [plan.partials, group, head_stride]
  int* joined;          // split mode: [tiles, kv_heads], how many of the shares are done
  int tasks, next;
};

// A worker's part of `workspaces`.
struct Space {
  float *query, *keys, *values, *weights, *sums, *state_sums;
  Partial *block, *state;
};

inline Space space_of(const Work& work, std::size_t worker) {
  const Sizes& s = work.sizes;
  const std::size_t stride = std::size_t(work.call.head_stride);
  Space space{};
  space.query = work.workspaces + worker * s.all;
  space.keys = space.query + s.query;
  space.values = space.keys + s.keys;
  space.weights = space.values + s.values;
  space.sums = space.weights + s.group * kBlockKeys;
  space.block = reinterpret_cast<Partial*>(space.sums + s.group * stride);
  space.state_sums = space.weights + s.block;
  space.state = reinterpret_cast<Partial*>(space.state_sums + kTileRows * s.group * stride);
  return space;
}

// Entries of plane p that the tile's row i reads.
inline std::int32_t entries(const AttentionPlan& plan, const Tile& tile, std::int32_t i, std::int32_t p) {
  const Run& run = plan.runs[tile.run];
  return plan.counts[run.counts + std::size_t(tile.first - run.first + i) * run.planes + p];
}

inline std::size_t partial_index(const AttentionCall& call, const Tile& tile, std::int32_t i, std::int32_t g,
                std::int32_t block) {
  return tile.partial + (std::size_t(i) * call.kv_heads + g) * tile.blocks + block;
}

inline void empty(Partial* state, float* sums, std::size_t group, std::size_t stride) {
  for (std::size_t q = 0; q < group; ++q) state[q] = {-3.0e38f, 0.f};
  for (std::size_t i = 0; i < group * stride; ++i) sums[i] = 0.f;
}

inline void finish(const AttentionCall& call, std::int32_t row, std::int32_t g, const Partial* state,
         const float* sums) {
  const std::int32_t group = call.heads / call.kv_heads;
  float* out = call.out + (std::size_t(row) * call.heads + std::size_t(g) * group) * call.head_dim;
  for (std::int32_t q = 0; q < group; ++q) {
    const float scale = 1.f / state[q].total;
    for (std::int32_t d = 0; d < call.head_dim; ++d)
      out[std::size_t(q) * call.head_dim + d] = sums[std::size_t(q) * call.head_stride + d] * scale;
  }
}

// Addresses of a block's values for one kv head, and its keys transposed into space.keys.
inline void fetch(const AttentionCall& call, const std::int32_t* slots, int count, std::int32_t g, const Space& space,
                  const float** values) {
  const std::size_t stride = std::size_t(call.head_stride), step = stride * std::size_t(call.kv_heads);
  const std::size_t head = std::size_t(g) * stride;
  const float* keys[kBlockKeys];
  if (call.half) {
    for (int j = 0; j < count; ++j) {
      float *key = space.values + std::size_t(j) * stride, *value = key + kBlockKeys * stride;
      widen(static_cast<const std::uint16_t*>(call.keys) + slots[j] * step + head, key, call.head_stride);
      widen(static_cast<const std::uint16_t*>(call.values) + slots[j] * step + head, value, call.head_stride);
      keys[j] = key;
      values[j] = value;
    }
  } else {
    for (int j = 0; j < count; ++j) {
      keys[j] = static_cast<const float*>(call.keys) + slots[j] * step + head;
      values[j] = static_cast<const float*>(call.values) + slots[j] * step + head;
    }
  }
  for (int j = count; j % kLanes; ++j) keys[j] = keys[0];  // lanes that no row reads
  for (int j = 0; j < count; j += kLanes)
    for (std::size_t d = 0; d < stride; d += kLanes)
      transpose_block(keys + j, d, space.keys + d * kBlockKeys + j, kBlockKeys);
}

// Up to one block of one kv head: `slots` of which there are `count`.
inline Upcoming upcoming(const AttentionCall& call, const std::int32_t* slots, int count, std::int32_t g) {
  const std::size_t head = std::size_t(call.head_stride) * (call.half ? 2 : 4);
  return {static_cast<const unsigned char*>(call.keys) + std::size_t(g) * head,
          static_cast<const unsigned char*>(call.values) + std::size_t(g) * head, slots, head * call.kv_heads,
          count < kBlockKeys ? count : kBlockKeys, int((head + kLine - 1) / kLine)};
}

// The first block of a task; nothing in split mode, where a task may begin anywhere.
inline Upcoming first_block(const Work& work, int task) {
  const AttentionPlan& plan = work.plan;
  if (plan.splits > 1 || task >= work.tasks) return {};
  const Tile& tile = plan.tiles[task / work.call.kv_heads];
  const Run& run = plan.runs[tile.run];
  return upcoming(work.call, plan.lists + run.list + plan.counts[run.starts], entries(plan, tile, tile.count - 1, 0),
                  task % work.call.kv_heads);
}

// One task; `following` is the one that this worker does next.
inline void run_task(const Work& work, const Space& space, int task, int following) {
  const AttentionCall& call = work.call;
  const AttentionPlan& plan = work.plan;
  const std::int32_t split = task % plan.splits, g = task / plan.splits % call.kv_heads;
  const Tile& tile = plan.tiles[task / plan.splits / call.kv_heads];
  const Run& run = plan.runs[tile.run];
  const std::size_t group = work.sizes.group, stride = std::size_t(call.head_stride);
  const std::int32_t from = std::int32_t(std::int64_t(tile.blocks) * split / plan.splits);
  const std::int32_t to = std::int32_t(std::int64_t(tile.blocks) * (split + 1) / plan.splits);
  const bool split_mode = plan.splits > 1;
  if (from == to) return;
  const float scale = 1.f / __builtin_sqrtf(float(call.head_dim));
  for (std::int32_t i = 0; i < tile.count; ++i) {
    const float* x = row_qkv(call, tile.first + i) + std::size_t(g) * group * call.head_dim;
    for (std::size_t q = 0; q < group; ++q)
      rotate(call, tile.first + i, x + q * call.head_dim, call.query_norm, scale, space.query + (i * group + q) * stride);
  }
  if (!split_mode) empty(space.state, space.state_sums, group * tile.count, stride);
  const float* values[kBlockKeys];
  std::int32_t block = 0;
  for (std::int32_t p = 0; p < run.planes; ++p) {
    const std::int32_t* list = plan.lists + run.list + plan.counts[run.starts + p];
    const std::int32_t last = entries(plan, tile, tile.count - 1, p);
    for (std::int32_t at = 0; at < last; at += kBlockKeys, ++block) {
      if (block < from || block >= to) continue;
      const int here = last - at < kBlockKeys ? last - at : kBlockKeys;
      fetch(call, list + at, here, g, space, values);
      const std::int32_t left_over = block + 1 < to ? last - at - kBlockKeys : 0;
      const Upcoming more = left_over > 0         ? upcoming(call, list + at + kBlockKeys, left_over, g)
                            : block + 1 < to      ? Upcoming{}
                                                  : first_block(work, following);
      for (std::int32_t i = 0; i < tile.count; ++i) {
        const std::int32_t left = entries(plan, tile, i, p) - at;
        if (left <= 0) continue;
        const int count = left < kBlockKeys ? left : kBlockKeys;
        const std::size_t place = split_mode ? partial_index(call, tile, i, g, block) * group : 0;
        Partial* result = split_mode ? work.partials + place : space.block;
        float* sums = split_mode ? work.partial_sums + place * stride : space.sums;
        const float* biases = plan.biases ? plan.biases + (list - plan.lists) + at : nullptr;
        attend_block(space.query + i * group * stride, group, stride, space.keys, values, biases, count, call.head_dim,
                     space.weights, sums, result, i == 0 ? more : Upcoming{});
        if (split_mode) continue;
        for (std::size_t q = 0; q < group; ++q)
          merge(space.state[i * group + q], space.state_sums + (i * group + q) * stride, result[q],
             sums + q * stride, stride);
      }
    }
  }
  if (split_mode) return;
  for (std::int32_t i = 0; i < tile.count; ++i)
    finish(call, tile.first + i, g, space.state + i * group, space.state_sums + i * group * stride);
}

// Split mode: joins the blocks of one tile and kv head, first to last.
inline void join(const Work& work, const Space& space, std::int32_t t, std::int32_t g) {
  const AttentionCall& call = work.call;
  const Tile& tile = work.plan.tiles[t];
  const Run& run = work.plan.runs[tile.run];
  const std::size_t group = work.sizes.group, stride = std::size_t(call.head_stride);
  for (std::int32_t i = 0; i < tile.count; ++i) {
    empty(space.state, space.state_sums, group, stride);
    std::int32_t block = 0;
    for (std::int32_t p = 0; p < run.planes; ++p) {
      const std::int32_t own = entries(work.plan, tile, i, p);
      const std::int32_t last = entries(work.plan, tile, tile.count - 1, p);
      for (std::int32_t at = 0; at < last; at += kBlockKeys, ++block) {
        if (at >= own) continue;
        const std::size_t place = partial_index(call, tile, i, g, block) * group;
        for (std::size_t q = 0; q < group; ++q)
          merge(space.state[q], space.state_sums + q * stride, work.partials[place + q],
             work.partial_sums + (place + q) * stride, stride);
      }
    }
    finish(call, tile.first + i, g, space.state, space.state_sums);
  }
}

inline void work_on(void* argument, std::size_t worker) {
  Work& work = *static_cast<Work*>(argument);
  const Space space = space_of(work, worker);
  const auto claim = [&] { return __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED); };
  for (int task = claim(), following; task < work.tasks; task = following) {
    following = claim();
    run_task(work, space, task, following);
    const std::int32_t splits = work.plan.splits;
    if (splits == 1) continue;
    // whoever ends the last share joins them all, while others still work on the next; it sees what they have written
    const int part = task / splits;
    if (__atomic_add_fetch(work.joined + part, 1, __ATOMIC_ACQ_REL) == splits)
      join(work, space, part / work.call.kv_heads, part % work.call.kv_heads);
  }
}

constexpr std::int32_t kWriteRows = 16;  // rows per task of the cache write; below two of them it is not worth a task

inline void write_rows(void* argument, std::size_t part) {
  const Work& work = *static_cast<const Work*>(argument);
  float scratch[kMostDims];
  const std::int32_t first = std::int32_t(part) * kWriteRows;
  for (std::int32_t i = first; i < first + kWriteRows && i < work.call.row_count; ++i)
    write_row(work.call, i, scratch);
}

inline int workers_of(const AttentionCall& call, const AttentionPlan& plan, int threads) {
  const int tasks = plan.tile_count * call.kv_heads * plan.splits;
  return tasks < threads ? tasks : threads;
}

}  // namespace attention

inline std::size_t attention_bytes(const AttentionCall& call, const AttentionPlan& plan, int threads) {
  const attention::Sizes sizes = attention::sizes_of(call);
  const std::size_t workers = std::size_t(attention::workers_of(call, plan, threads));
  const std::size_t per_partial = sizes.group * (2 + std::size_t(call.head_stride));
  const std::size_t joined = plan.splits == 1 ? 0 : std::size_t(plan.tile_count) * call.kv_heads;
  return (workers * sizes.all + plan.partials * per_partial) * sizeof(float) + joined * sizeof(int);
}

// See AttentionCall. `workspace` has attention_bytes(); rows, slots and overlaps were checked by the caller.
inline void ragged_attention(const AttentionCall& call, const AttentionPlan& plan, void* workspace,
              const Parallel& parallel) {
  using namespace attention;
  const int workers = workers_of(call, plan, parallel.threads);
  if (workers == 0) return;
  Work work{call, plan, sizes_of(call), static_cast<float*>(workspace), nullptr, nullptr, nullptr, 0, 0};
  work.partial_sums = work.workspaces + std::size_t(workers) * work.sizes.all;
  work.partials = reinterpret_cast<Partial*>(
    work.partial_sums + plan.partials * work.sizes.group * std::size_t(call.head_stride));
  work.joined = reinterpret_cast<int*>(work.partials + plan.partials * work.sizes.group);
  if (plan.splits > 1)
    for (int i = 0; i < plan.tile_count * call.kv_heads; ++i) work.joined[i] = 0;
  work.tasks = plan.tile_count * call.kv_heads * plan.splits;
  const std::size_t writes = std::size_t((call.row_count + kWriteRows - 1) / kWriteRows);
  if (writes > 1)
    parallel.run(parallel.context, writes, write_rows, &work);
  else
    write_rows(&work, 0);
  if (workers > 1)
    parallel.run(parallel.context, std::size_t(workers), work_on, &work);
  else
    work_on(&work, 0);
}

}  // namespace latentcot::LATENTCOT_ISA
