// ChooseToken: the next token of every halted row that is to choose one, and the recorded logits.
//
// Contract and reference: latentcot_export/ops/packed_choose.py. Call bind_choose, plan_choose, then choose_one for
// every row on any threads, each with a workspace of its own, then write_choose. choose_row.hpp has the kernels.
#pragma once

#include "tables.hpp"

namespace latentcot {

// How one row chooses. temperature 0 is greedy and reads nothing else.
struct Choice {
  float temperature, top_p, uniform;
  std::int32_t top_k;
};

// Entry points of one instruction set (choose_row.hpp).
struct ChooseKernels {
  // Bytes of workspace for one row of `vocabulary` logits, aligned to 8; 0 when greedy.
  std::size_t (*bytes)(std::int64_t vocabulary, bool greedy);
  // The chosen id, or -1 where the logits allow no choice (largest not finite).
  std::int32_t (*choose)(const float* logits, std::int64_t vocabulary, const Choice& choice, void* workspace);
};

enum ChooseInput : int {
  kChooseLogits,     // float32 [h, V]
  kChooseRows,       // int32 [h, 4]
  kChooseSequences,  // int32 [B, 8], written
  kChooseSampling,   // float32 [B, 2]
  kChooseTokens,     // int32 [B, T], written
  kChooseUniform,    // float32 [B, T]
  kChooseStops,      // int32 [B, S]
  kChooseRecord,     // float32 [B, P, V], written
  kChooseCounters,   // int64 [8], written: where a GPU leaves kChooseFault; the CPU throws and needs none
  kChooseInputs,
};

struct ChooseCall {
  const float *logits, *sampling, *uniform;
  const std::int32_t *rows, *stop_tokens;
  std::int32_t *sequences, *tokens;
  float* record;
  std::int64_t row_count, vocabulary, places, positions, stops, recorded;
  bool fixed;  // the fixed form: dead rows behind the live ones
  std::int64_t* counters;  // [8] for the fault of a GPU, or null
  // set by plan_choose
  std::int64_t live;
  bool greedy;  // no row samples
};

inline constexpr InputSpec kChooseSpecs[kChooseInputs] = {
  {"logits", Type::kFloat32, 2, false},    {"rows", Type::kInt32, 2, false},
  {"sequences", Type::kInt32, 2, true},    {"sampling", Type::kFloat32, 2, false},
  {"tokens", Type::kInt32, 2, true},       {"uniform", Type::kFloat32, 2, false},
  {"stop_tokens", Type::kInt32, 2, false}, {"record", Type::kFloat32, 3, true},
  {"counters", Type::kInt64, 1, true, true},
};

// Checks types, shapes and overlaps of inputs [kChooseInputs]. Reads no tensor.
inline bool bind_choose(const Tensor* inputs, ChooseCall* call, Message* message, bool fixed = false) {
  const char* op = "ChooseToken";
  if (!check_inputs(op, kChooseSpecs, kChooseInputs, inputs, message)) return false;
  const std::int64_t rows = inputs[kChooseRows].shape[0], vocabulary = inputs[kChooseLogits].shape[1];
  const std::int64_t places = inputs[kChooseSequences].shape[0], positions = inputs[kChooseTokens].shape[1];
  const struct {
    int input, axis;
    std::int64_t wanted;
    const char* meaning;
  } sizes[] = {
    {kChooseRows, 1, kRowColumns, "sequence, position, step, slot"},
    {kChooseLogits, 0, rows, "one per row"},
    {kChooseSequences, 1, kSequenceColumns, "its columns"},
    {kChooseSampling, 0, places, "one per row of sequences"},
    {kChooseSampling, 1, kSamplingColumns, "temperature and top_p"},
    {kChooseTokens, 0, places, "one per row of sequences"},
    {kChooseUniform, 0, places, "one per row of sequences"},
    {kChooseUniform, 1, positions, "the positions of tokens"},
    {kChooseStops, 0, places, "one per row of sequences"},
    {kChooseRecord, 0, places, "one per row of sequences"},
  };
  for (const auto& size : sizes)
    if (!check_size(op, kChooseSpecs, inputs, size.input, size.axis, size.wanted, size.meaning, message))
      return false;
  if (!check_range(op, "logits", -1, "has a vocabulary that", vocabulary, 1, std::int64_t(1) << 31, message))
    return false;
  const std::int64_t recorded = inputs[kChooseRecord].shape[1];
  if (recorded > 0 && !check_size(op, kChooseSpecs, inputs, kChooseRecord, 2, vocabulary, "the vocabulary", message))
    return false;
  if (recorded > positions) {
    message->begin(op, "record") << " has " << recorded << " positions, but there are only " << positions << ".";
    return false;
  }
  if (inputs[kChooseCounters].type != Type::kNone &&
      !check_size(op, kChooseSpecs, inputs, kChooseCounters, 0, kCounterEntries, "its entries", message))
    return false;
  *call = {};
  call->logits = static_cast<const float*>(inputs[kChooseLogits].data);
  call->sampling = static_cast<const float*>(inputs[kChooseSampling].data);
  call->uniform = static_cast<const float*>(inputs[kChooseUniform].data);
  call->rows = static_cast<const std::int32_t*>(inputs[kChooseRows].data);
  call->stop_tokens = static_cast<const std::int32_t*>(inputs[kChooseStops].data);
  call->sequences = static_cast<std::int32_t*>(inputs[kChooseSequences].data);
  call->tokens = static_cast<std::int32_t*>(inputs[kChooseTokens].data);
  call->record = static_cast<float*>(inputs[kChooseRecord].data);
  call->counters = static_cast<std::int64_t*>(inputs[kChooseCounters].data);
  call->row_count = rows;
  call->vocabulary = vocabulary;
  call->places = places;
  call->positions = positions;
  call->stops = inputs[kChooseStops].shape[1];
  call->recorded = recorded;
  call->fixed = fixed;
  return true;
}

// Whether row i, which is not dead, chooses a token; the others only record.
LATENTCOT_FN bool chooses(const ChooseCall& call, std::int64_t i) {
  const std::int32_t* row = call.rows + i * kRowColumns;
  return chooses_next(call.sequences + row[kRowSequence] * kSequenceColumns, row[kRowPosition], call.positions);
}

// Checks the values. Changes no tensor.
LATENTCOT_FN bool plan_choose(ChooseCall* call, Message* message) {
  const char* op = "ChooseToken";
  constexpr std::int64_t no_limit = std::int64_t(1) << 31;
  call->greedy = true;
  if (!count_live(op, call->rows, call->row_count, call->fixed, &call->live, message)) return false;
  for (std::int64_t i = 0; i < call->live; ++i) {
    const std::int32_t* row = call->rows + i * kRowColumns;
    if (!check_row(op, row, i, call->places, call->positions, kMostSteps, call->sequences, message)) return false;
    if (!chooses(*call, i)) continue;
    const std::int64_t s = row[kRowSequence], next = row[kRowPosition] + 1;
    const float temperature = call->sampling[s * kSamplingColumns + kTemperature];
    if (!(temperature >= 0 && temperature <= 3.4028235e38f)) {
      message->begin(op, "sampling", s, kTemperature)
        << " (temperature) is " << double(temperature) << ", but must be finite and at least 0.";
      return false;
    }
    if (temperature == 0) continue;
    call->greedy = false;
    const float top_p = call->sampling[s * kSamplingColumns + kTopP];
    if (!(top_p > 0 && top_p <= 1)) {
      message->begin(op, "sampling", s, kTopP)
        << " (top_p) is " << double(top_p) << ", but must be above 0 and at most 1.";
      return false;
    }
    const float uniform = call->uniform[s * call->positions + next];
    if (!(uniform >= 0 && uniform < 1)) {
      message->begin(op, "uniform", s, next)
        << " is " << double(uniform) << ", but must be at least 0 and below 1.";
      return false;
    }
    const std::int32_t top_k = call->sequences[s * kSequenceColumns + kTopK];
    if (!check_range(op, "sequences", s, "top_k", top_k, 0, no_limit, message)) return false;
  }
  return true;
}

// The id that row i chooses, -1 if it only records or is dead, -2 if its logits allow no choice. `workspace` has
// kernels.bytes(vocabulary, call.greedy) bytes and belongs to the calling thread.
inline std::int32_t choose_one(const ChooseCall& call, const ChooseKernels& kernels, std::int64_t i, void* workspace) {
  if (i >= call.live || !chooses(call, i)) return -1;
  const std::int32_t* row = call.rows + i * kRowColumns;
  const std::int64_t s = row[kRowSequence];
  const Choice choice = {call.sampling[s * kSamplingColumns + kTemperature],
                         call.sampling[s * kSamplingColumns + kTopP],
                         call.uniform[s * call.positions + row[kRowPosition] + 1],
                         call.sequences[s * kSequenceColumns + kTopK]};
  const std::int32_t id = kernels.choose(call.logits + i * call.vocabulary, call.vocabulary, choice, workspace);
  return id < 0 ? -2 : id;
}

// Enters chosen [h] of choose_one in the tables and records logits. False, and nothing is written, where one is -2.
LATENTCOT_FN bool write_choose(const ChooseCall& call, const std::int32_t* chosen, Message* message) {
  for (std::int64_t i = 0; i < call.live; ++i) {
    if (chosen[i] >= -1) continue;
    const std::int32_t* row = call.rows + i * kRowColumns;
    message->begin("ChooseToken", "logits", i)
      << " (sequence " << row[kRowSequence] << ", position " << row[kRowPosition]
      << ") has no largest value to choose by, but must be finite: the weights or a latent overflowed.";
    return false;
  }
  for (std::int64_t i = 0; i < call.live; ++i) {
    const std::int32_t* row = call.rows + i * kRowColumns;
    const std::int64_t s = row[kRowSequence], next = row[kRowPosition] + 1;
    if (chosen[i] >= 0) {
      std::int32_t* sequence = call.sequences + s * kSequenceColumns;
      call.tokens[s * call.positions + next] = chosen[i];
      sequence[kLength] = std::int32_t(next) + 1;
      for (std::int64_t j = 0; j < call.stops; ++j)
        if (call.stop_tokens[s * call.stops + j] == chosen[i]) sequence[kStopped] = 1;
    }
    if (row[kRowPosition] >= call.recorded) continue;
    const float* logits = call.logits + i * call.vocabulary;
    float* record = call.record + (s * call.recorded + row[kRowPosition]) * call.vocabulary;
    for (std::int64_t v = 0; v < call.vocabulary; ++v) record[v] = logits[v];
  }
  return true;
}

}  // namespace latentcot
