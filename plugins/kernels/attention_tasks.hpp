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
  float *query, *weights, *sums, *state_sums;
  Partial *block, *state;
};

inline Space space_of(const Work& work, std::size_t worker) {
  const Sizes& s = work.sizes;
  const std::size_t stride = std::size_t(work.call.head_stride);
  Space space{};
  space.query = work.workspaces + worker * s.all;
  space.weights = space.query + s.query;
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

// One kv head's keys and values at `slots`.
template <class Number>
inline void find(const AttentionCall& call, const std::int32_t* slots, int count, std::int32_t g,
                 Block<Number>* block) {
  const std::size_t stride = std::size_t(call.head_stride), step = stride * std::size_t(call.kv_heads);
  const Number* const keys = static_cast<const Number*>(call.keys) + std::size_t(g) * stride;
  const Number* const values = static_cast<const Number*>(call.values) + std::size_t(g) * stride;
  for (int j = 0; j < count; ++j) {
    block->keys[j] = keys + std::size_t(slots[j]) * step;
    block->values[j] = values + std::size_t(slots[j]) * step;
  }
  for (int j = count; j % kLanes; ++j) block->keys[j] = block->keys[0];  // lanes that no row reads
}

// A block of a tile: `at` entries into plane p.
struct Place {
  std::int32_t p, at;
};

inline Place place_of(const AttentionPlan& plan, const Tile& tile, std::int32_t block) {
  Place place{0, 0};
  for (;; ++place.p) {
    const std::int32_t blocks = (entries(plan, tile, tile.count - 1, place.p) + kBlockKeys - 1) / kBlockKeys;
    if (block < blocks) break;
    block -= blocks;
  }
  place.at = block * kBlockKeys;
  return place;
}

// What a task is about: a tile, a kv head and blocks `from` to `to` of it.
struct Task {
  const Tile& tile;
  const Run& run;
  std::int32_t g, from, to;
};

inline Task task_of(const Work& work, int task) {
  const AttentionPlan& plan = work.plan;
  const Tile& tile = plan.tiles[task / plan.splits / work.call.kv_heads];
  const std::int32_t split = task % plan.splits;
  return {tile, plan.runs[tile.run], task / plan.splits % work.call.kv_heads,
          std::int32_t(std::int64_t(tile.blocks) * split / plan.splits),
          std::int32_t(std::int64_t(tile.blocks) * (split + 1) / plan.splits)};
}

// Where its entries begin in `lists`.
inline std::size_t list_of(const AttentionPlan& plan, const Task& task, Place place) {
  return task.run.list + std::size_t(plan.counts[task.run.starts + place.p] + place.at);
}

// How many entries of the block at `place` row i of the tile reads; none: 0 or less.
inline int left_at(const AttentionPlan& plan, const Tile& tile, std::int32_t i, Place place) {
  const std::int32_t left = entries(plan, tile, i, place.p) - place.at;
  return left < kBlockKeys ? left : kBlockKeys;
}

inline Upcoming upcoming(const Work& work, const Task& task, Place place) {
  const AttentionCall& call = work.call;
  const std::size_t head = std::size_t(call.head_stride) * (call.kept == Type::kFloat32 ? 4 : 2);
  return {static_cast<const unsigned char*>(call.keys) + std::size_t(task.g) * head,
          static_cast<const unsigned char*>(call.values) + std::size_t(task.g) * head,
          work.plan.lists + list_of(work.plan, task, place), head * std::size_t(call.kv_heads),
          left_at(work.plan, task.tile, task.tile.count - 1, place), int((head + kLine - 1) / kLine)};
}

inline Upcoming first_block(const Work& work, int number) {
  if (number >= work.tasks) return {};
  const Task task = task_of(work, number);
  return task.from == task.to ? Upcoming{} : upcoming(work, task, place_of(work.plan, task.tile, task.from));
}

// Block `number` of a task, which begins at `place`, for all rows of its tile; `next` is fetched meanwhile.
template <class Number>
inline void run_block(const Work& work, const Space& space, const Task& task, std::int32_t number, Place place,
                      const Upcoming& next) {
  const AttentionCall& call = work.call;
  const AttentionPlan& plan = work.plan;
  const std::size_t group = work.sizes.group, stride = std::size_t(call.head_stride);
  const std::size_t list = list_of(plan, task, place);
  Block<Number> block;
  find(call, plan.lists + list, left_at(plan, task.tile, task.tile.count - 1, place), task.g, &block);
  block.biases = plan.biases ? plan.biases + list : nullptr;
  for (std::int32_t i = 0; i < task.tile.count; ++i) {
    const int count = left_at(plan, task.tile, i, place);
    if (count <= 0) continue;
    const std::size_t partial = plan.splits > 1 ? partial_index(call, task.tile, i, task.g, number) * group : 0;
    Partial* result = plan.splits > 1 ? work.partials + partial : space.block;
    float* sums = plan.splits > 1 ? work.partial_sums + partial * stride : space.sums;
    attend_block(space.query + i * group * stride, group, stride, block, count, space.weights, sums, result,
                 i == 0 ? next : Upcoming{});
    if (plan.splits > 1) continue;
    for (std::size_t q = 0; q < group; ++q)
      merge(space.state[i * group + q], space.state_sums + (i * group + q) * stride, result[q], sums + q * stride,
            stride);
  }
}

// One task; `following` is the one that this worker does next.
inline void run_task(const Work& work, const Space& space, int number, int following) {
  const AttentionCall& call = work.call;
  const AttentionPlan& plan = work.plan;
  const Task task = task_of(work, number);
  const Tile& tile = task.tile;
  const std::size_t group = work.sizes.group, stride = std::size_t(call.head_stride);
  const bool split_mode = plan.splits > 1;
  if (task.from == task.to) return;
  const float scale = 1.f / __builtin_sqrtf(float(call.head_dim));
  for (std::int32_t i = 0; i < tile.count; ++i) {
    const float* x = row_qkv(call, tile.first + i) + std::size_t(task.g) * group * call.head_dim;
    for (std::size_t q = 0; q < group; ++q)
      rotate(call, tile.first + i, x + q * call.head_dim, call.query_norm, scale, space.query + (i * group + q) * stride);
  }
  if (!split_mode) empty(space.state, space.state_sums, group * tile.count, stride);
  Place place = place_of(plan, tile, task.from);
  for (std::int32_t block = task.from; block < task.to; ++block) {
    const bool last = block + 1 == task.to;
    const Place next = last ? place : place_of(plan, tile, block + 1);
    const Upcoming more = last ? first_block(work, following) : upcoming(work, task, next);
    if (call.kept == Type::kFloat16)
      run_block<Float16>(work, space, task, block, place, more);
    else if (call.kept == Type::kBFloat16)
      run_block<Bfloat16>(work, space, task, block, place, more);
    else
      run_block<float>(work, space, task, block, place, more);
    place = next;
  }
  if (split_mode) return;
  for (std::int32_t i = 0; i < tile.count; ++i)
    finish(call, tile.first + i, task.g, space.state + i * group, space.state_sums + i * group * stride);
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
