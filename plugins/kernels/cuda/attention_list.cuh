// The keys that a warp attends over: entries of the table of slots, those that are there, in order of position and then of
// plane. A row sees a prefix of the list of its sequence and step, so rows of one tile share it.
#pragma once

#include "attention_call.cuh"

namespace latentcot::cuda {

// Entries behind a list's last, copies of its first: loads of whole rounds of up to 16 keys, and of the next round, need not
// ask whether an entry is there. No item sees them.
constexpr std::int32_t kListPadding = 32;

// A warp's own, in shared memory.
struct List {
  std::int32_t* slots;  // [shape.list + kListPadding]
  std::int32_t* ends;   // [kRowsOfTile]: entries up to each position of a tile
  float* biases;        // [shape.list + kListPadding], what a score has more, where `weighted`
  bool weighted;
};

LATENTCOT_FN std::size_t list_bytes(const CudaAttentionCall& call, const AttentionShape& shape) {
  return (std::size_t(shape.list + kListPadding) * (call.weights ? 2 : 1) + kRowsOfTile) * 4;
}

__device__ __forceinline__ List list_of(const CudaAttentionCall& call, const AttentionShape& shape, unsigned char* memory) {
  List list;
  list.ends = reinterpret_cast<std::int32_t*>(memory);
  list.slots = list.ends + kRowsOfTile;
  list.biases = reinterpret_cast<float*>(list.slots + shape.list + kListPadding);
  list.weighted = call.weights != nullptr;
  return list;
}

// Who reads: rows of one sequence at one step.
struct Reader {
  std::int32_t sequence, step;
  std::int32_t first_plane, planes;  // that it looks at
};

__device__ __forceinline__ Reader reader_of(const CudaAttentionCall& call, std::int32_t row) {
  const int4 at = reinterpret_cast<const int4*>(call.rows)[row];
  const bool same = call.visibility == kSame;
  return {at.x, at.z, same ? at.z - 1 : 0, same ? 1 : call.visibility == kAll ? call.steps : at.z};
}

// The slot at a cell of the table, of plane p, if the reader sees it, else -1.
__device__ __forceinline__ std::int32_t seen_slot(const CudaAttentionCall& call, const Reader& reader,
                                                  const std::int32_t* cell, std::int32_t p) {
  const std::int32_t slot = __ldg(cell);
  // newest: an entry below the row's step counts where its token has no later one
  if (call.visibility == kNewest && p + 1 < reader.step && __ldg(cell + call.length) >= 0) return kNoSlot;
  return slot < 0 ? kNoSlot : slot;
}

// Lists what is seen at positions [first, stop) and returns how many. ends[t - window] becomes the number of entries up to
// position t, for every t in [first, stop) that is not below `window`. An entry that the cache has no slot for is listed as
// slot 0, which is there to read, and reported.
__device__ __forceinline__ std::int32_t collect(const CudaAttentionCall& call, const Reader& reader, std::int32_t first,
                                                std::int32_t stop, std::int32_t window, const List& list) {
  const std::int32_t lane = std::int32_t(threadIdx.x % kWarp);
  const std::int32_t* const table =
    call.slots + (std::size_t(reader.sequence) * call.steps + std::size_t(reader.first_plane)) * call.length;
  const std::int32_t end = reader.first_plane + reader.planes;
  std::int32_t count = 0;
  bool fault = false;
  LATENTCOT_UNROLL_BY(1)
  for (std::int32_t base = first; base < stop; base += kWarp) {
    const std::int32_t t = base + lane;
    const std::int32_t* cell = table + t;
    std::int32_t mine = 0;
    if (t < stop) {
      LATENTCOT_UNROLL_BY(4)
      for (std::int32_t p = reader.first_plane; p < end; ++p, cell += call.length)
        mine += seen_slot(call, reader, cell, p) >= 0;
    }
    std::int32_t upto = mine;
    LATENTCOT_UNROLL
    for (int step = 1; step < kWarp; step *= 2) {
      const std::int32_t before = __shfl_up_sync(kAllLanes, upto, step);
      if (lane >= step) upto += before;
    }
    if (t < stop) {
      std::int32_t at = count + upto - mine;
      cell = table + t;
      LATENTCOT_UNROLL_BY(4)
      for (std::int32_t p = reader.first_plane; p < end; ++p, cell += call.length) {
        const std::int32_t slot = seen_slot(call, reader, cell, p);
        if (slot < 0) continue;
        const bool there = slot < call.slot_count;
        fault |= !there;
        list.slots[at] = there ? slot : 0;
        // step 1 weighs 1, and runs before anybody has written so
        if (list.weighted)
          list.biases[at] = p == 0 ? 1.f : call.weights[(std::size_t(reader.sequence) * call.length + t) * call.steps + p];
        ++at;
      }
      if (t >= window) list.ends[t - window] = count + upto;
    }
    count += __shfl_sync(kAllLanes, upto, kWarp - 1);
  }
  __syncwarp();
  if (list.weighted) {
    LATENTCOT_UNROLL_BY(1)
    for (std::int32_t i = lane; i < count; i += kWarp) {
      const float weight = list.biases[i];
      fault |= !(weight >= 0.f && weight <= 1.f);
      list.biases[i] = log2f(weight);
    }
    list.biases[count + lane] = 0.f;
  }
  if (count > 0) list.slots[count + lane] = list.slots[0];
  if (fault) report_fault(call);
  __syncwarp();
  return count;
}

// Of `count` entries listed from positions [first, stop), those that a row at position t sees.
__device__ __forceinline__ std::int32_t seen_by(std::int32_t t, std::int32_t first, std::int32_t stop,
                                                std::int32_t window, std::int32_t count, const List& list) {
  return t + 1 >= stop ? count : t < first ? 0 : list.ends[t - window];
}

}  // namespace latentcot::cuda
