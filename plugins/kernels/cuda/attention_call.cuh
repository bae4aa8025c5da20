// RaggedAttention on a GPU: the call, how its work is cut, and the memory it works in.
//
// A chunk is a stretch of positions of one sequence, cut at multiples of a number that depends on the tables' shapes alone.
// A row's result is formed chunk by chunk, each a softmax of its own, then the chunks are merged from the first to the last
// (attention_merge.cuh). Which warp computes a chunk is free: a row gives the same bits alone, in a prompt and in any batch.
//
// A tile is up to 16 packed rows of one sequence and step whose positions rise and lie between two multiples of 16. An item
// is one query head of one row; the items of a tile that share a kv head lie in parts of as many as one warp computes.
#pragma once

#include "../attention_plan.hpp"
#include "../tables.hpp"
#include "block.cuh"
#include "element.cuh"

namespace latentcot::cuda {

// `qkv` and `out` point at elements of type `data`, `keys` and `values` at elements of type `stored`; `half` is not read.
// qkv, keys, values, cosine, sine, out and the workspace are aligned to 16 bytes, as whatever an allocator gives is.
struct CudaAttentionCall : AttentionCall {
  Element data, stored;
  std::int32_t places, slot_count;
  std::int64_t* counters;  // [kCounterEntries], for the fault; or null
  bool prompt;             // rows of one sequence may share tiles; false: each is a tile of its own. The bits are the same
};

constexpr std::int32_t kRowsOfTile = 16;  // rounds of a prompt start 16 tokens of a sequence (ROUND_TOKENS, packed_tables.py)
// Positions of a chunk. 64 give one sequence of 4096 tokens 64 warps per kv head, and a chunk of bfloat16 heads of 64 is
// 16 KiB for each plane, of which its result, 264 bytes a query head, is 2 % where a kv head serves one and 6 % for four.
constexpr std::int32_t kLeastChunk = 64;
constexpr std::int32_t kMostChunks = 128;   // of a row; a longer table has longer chunks, so that results stay few
constexpr std::int32_t kListEntries = 256;  // a warp's list of slots, 4 planes of a chunk; more where there are more planes
// Warps that share the chunks of all rows: 16 on each of 132 multiprocessors (H200), 4 times over, so that rows of different
// lengths even out.
constexpr std::int32_t kWantedWarps = 132 * 16 * 4;
// Rows that a prompt's pass may spread over warps by chunk, which takes memory for each; those of longer passes go to blocks.
constexpr std::int32_t kSpreadRows = 128;

struct RowTile {
  std::int32_t first, count;  // packed rows
  std::int32_t place;         // of its first row in the partial results
};

// How a call is cut. Of these, `chunk` and `batch` decide the order of sums: they depend on length, steps and nothing else.
struct AttentionShape {
  std::int32_t chunk;    // positions
  std::int32_t chunks;   // of the longest row there can be
  std::int32_t batch;    // positions that a warp lists at once
  std::int32_t list;     // entries that the list holds
  std::int32_t spread;   // tiles that can be spread by chunk
  std::int32_t partial;  // rows that partial results have place for
  std::int32_t parts;    // most parts of one of those tiles
  std::int32_t splits;   // warps that share the chunks of one part
  std::uint32_t slot_bytes;  // of the keys of a slot
  float scale;           // of queries: 1 / sqrt(head_dim), and log2(e), since weights are powers of 2
};

// Where a call's memory lies.
struct AttentionSpace {
  float* queries;           // [rows, heads, head_stride], normed, turned and scaled
  std::int32_t* counts;     // [2]: tiles in `spread` and in `tiles`
  RowTile* spread;          // [spread]: tiles whose chunks are spread over warps
  RowTile* tiles;           // [rows]: tiles that one block works on
  std::uint32_t* joined;    // [spread, kv_heads, parts]: warps that are done; zeros between two calls
  float2* stats;            // [partial, heads, chunks]: largest score and sum of weights of a chunk
  float* sums;              // [partial, heads, chunks, head_stride]: weighted values of a chunk
  std::size_t bytes;
};

inline std::int32_t ceil_div(std::int64_t a, std::int64_t b) { return std::int32_t((a + b - 1) / b); }

// `items`: that one warp computes at once.
inline AttentionShape attention_shape(const CudaAttentionCall& call, std::int32_t items) {
  AttentionShape shape{};
  shape.chunk = kLeastChunk;
  while (ceil_div(call.length, shape.chunk) > kMostChunks) shape.chunk *= 2;
  shape.chunks = ceil_div(call.length, shape.chunk);
  shape.list = kListEntries;
  while (shape.list < call.steps) shape.list *= 2;
  shape.batch = shape.chunk;
  while (shape.batch * call.steps > shape.list) shape.batch /= 2;
  const bool all = !call.prompt || call.row_count <= kSpreadRows;
  shape.spread = all ? call.row_count : kSpreadRows;
  shape.partial = shape.spread;
  const std::int64_t group = call.heads / call.kv_heads;
  // in a long pass only tiles of one row are spread
  shape.parts = ceil_div(group * (call.prompt && all ? kRowsOfTile : 1), items);
  const std::int64_t units = std::int64_t(shape.spread) * call.kv_heads * shape.parts;
  shape.splits = units > 0 ? ceil_div(kWantedWarps, units) : 1;
  if (shape.splits > shape.chunks) shape.splits = shape.chunks;
  shape.slot_bytes = std::uint32_t(call.kv_heads) * std::uint32_t(call.head_stride) * element_bytes(call.stored);
  shape.scale = float(1.4426950408889634 / sqrt(double(call.head_dim)));
  return shape;
}

inline AttentionSpace attention_space(const CudaAttentionCall& call, const AttentionShape& shape, void* memory) {
  AttentionSpace space{};
  std::size_t at = 0;
  const auto take = [&]<class T>(T*& where, std::size_t count) {
    where = reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + at);
    at += (count * sizeof(T) + 255) / 256 * 256;
  };
  const std::size_t heads = std::size_t(call.heads), stride = std::size_t(call.head_stride);
  const std::size_t partials = std::size_t(shape.partial) * heads * shape.chunks;
  take(space.queries, std::size_t(call.row_count) * heads * stride);
  take(space.joined, std::size_t(shape.spread) * call.kv_heads * shape.parts);
  take(space.stats, partials);
  take(space.sums, partials * stride);
  if (call.prompt) {
    take(space.counts, 2);
    take(space.spread, std::size_t(shape.spread));
    take(space.tiles, std::size_t(call.row_count));
  }
  space.bytes = at;
  return space;
}

__device__ __forceinline__ void report_fault(const CudaAttentionCall& call) {
  if (call.counters) report_fault(call.counters, kAttentionFault);
}

enum class RowState { kDead, kLive, kFaulty };

// Whether row i stands in the tables, at the slot that they give it.
__device__ __forceinline__ RowState row_state(const CudaAttentionCall& call, std::int32_t i) {
  const int4 row = __ldg(reinterpret_cast<const int4*>(call.rows) + i);  // sequence, position, step, slot
  if (row.x == kDead) return RowState::kDead;
  if (row.x < 0 || row.x >= call.places || row.y < 0 || row.y >= call.length || row.z < 1 || row.z > call.steps ||
      row.w >= call.slot_count)
    return RowState::kFaulty;
  const std::int32_t entered =
    call.slots[(std::size_t(row.x) * call.steps + std::size_t(row.z - 1)) * call.length + row.y];
  const bool right = row.w == kReadsOnly ? entered == kNoSlot : row.w >= 0 && entered == row.w;
  return right ? RowState::kLive : RowState::kFaulty;
}

}  // namespace latentcot::cuda
