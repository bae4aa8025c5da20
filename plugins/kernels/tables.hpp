// Tables of the packed engine: their columns, the view of a tensor, and the checks every op makes of its inputs.
//
// The tables are arrays of the host that the graph captures and the ops change in place; what each holds is said in
// latentcot_export/ops/packed_tables.py. Nothing here knows a framework: an adapter fills one Tensor per input, in the
// op's order, calls bind_* (types, shapes, overlaps: host only), plan_* (values: reads all, changes nothing) and, once
// its outputs exist, write_*. A function marked LATENTCOT_FN works on raw pointers only, so a GPU thread can run it too.
//
// Letters: B places for sequences, T positions of a place, K max_steps, N cache slots, S stop ids, P recorded positions,
// V vocabulary, D hidden; r packed rows of which the first c go on from an earlier step and the last f are fresh. In the
// fixed form, whose shapes depend on no value, there are always R rows: the live ones, then dead ones.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef LATENTCOT_FN
#ifdef __CUDACC__
#define LATENTCOT_FN __host__ __device__ inline
#else
#define LATENTCOT_FN inline
#endif
#endif

namespace latentcot {

// More steps than any model runs; a bound that keeps products of sizes far from overflow.
constexpr std::int64_t kMostSteps = 1024;

// Columns of `sequences` int32 [B, 8].
enum SequenceColumn : int {
  kStatus,        // a Status
  kNextPosition,  // next position to start
  kPause,         // positions start only below it
  kEnd,           // positions below it are run
  kStopped,       // 1 once a stop token was chosen
  kLiveRows,      // rows of this sequence in flight
  kTopK,          // 0 = off
  kLength,        // tokens known: prompt and chosen
  kSequenceColumns,
};
enum Status : std::int32_t { kEmpty, kRunning, kDone };

// Columns of `rows` int32 [r, 4].
enum RowColumn : int {
  kRowSequence,
  kRowPosition,
  kRowStep,  // the step to run, 1-based
  kRowSlot,  // -1 = not given yet
  kRowColumns,
};

// What stands for a row's slot before it has one, and where it never gets one: the row reads and has no keys of its own.
constexpr std::int32_t kNoSlot = -1, kReadsOnly = -2;

// Every column of a dead row of the fixed form; the first of them alone says so.
constexpr std::int32_t kDead = -1;

// Columns of `sampling` float32 [B, 2].
enum SamplingColumn : int { kTemperature, kTopP, kSamplingColumns };  // 0 = greedy; 1 = off

// Entries of `control` int32 [4].
enum ControlEntry : int {
  kMaxRows,        // prompt tokens start only while there are fewer rows
  kSequenceRows,   // most live rows of one sequence
  kLockstep,       // 1: nothing starts while a row is live
  kYieldWhenDone,  // 1: the burst ends once a sequence has finished
  kControlEntries,
};

// Entries of `counters` int64 [8].
enum CounterEntry : int {
  kFreeSlots,
  kReserved,      // slots that live rows may still ask for
  kPasses,
  kExecutedRows,
  kFinished,      // sequences
  kStalled,       // 1: tokens wait, nothing runs; below 0: a Fault
  kMostSlots,     // most slots in use
  kHeadRows,
  kCounterEntries,
};

// What an op of a GPU, which cannot throw its sentence, leaves in counters[kStalled] where a value is at fault.
enum Fault : int { kHaltFault = -1, kAdvanceFault = -2, kChooseFault = -3, kAttentionFault = -4 };

// Element types the ops take; numbers of our own, the adapter translates.
enum class Type : int { kNone, kFloat32, kFloat16, kInt32, kInt64, kBFloat16, kOther };

// One input as an adapter sees it. An optional input that is absent has type kNone.
struct Tensor {
  void* data = nullptr;
  Type type = Type::kNone;
  int rank = 0;
  std::int64_t shape[4] = {0, 0, 0, 0};  // a rank above 4 is refused, whatever stands here
};

// One sentence about what is wrong, built without the heap or a C library.
struct Message {
  char text[480] = {0};
  int length = 0;

  LATENTCOT_FN Message& operator<<(const char* words) {
    while (*words && length + 1 < static_cast<int>(sizeof(text))) text[length++] = *words++;
    text[length] = 0;
    return *this;
  }

  LATENTCOT_FN Message& operator<<(std::int64_t value) {
    char digits[24];
    int at = sizeof(digits) - 1;
    digits[at] = 0;
    std::uint64_t left = value < 0 ? 0 - static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
    do digits[--at] = static_cast<char>('0' + left % 10);
    while (left /= 10);
    if (value < 0) digits[--at] = '-';
    return *this << (digits + at);
  }

  LATENTCOT_FN Message& operator<<(std::int32_t value) { return *this << static_cast<std::int64_t>(value); }

  // Six digits behind the point, or words for what has none.
  LATENTCOT_FN Message& operator<<(double value) {
    if (!(value == value)) return *this << "not a number";
    if (value < 0) return *this << "-" << -value;
    if (value > 1e15) return *this << "above 1e15";
    std::int64_t whole = static_cast<std::int64_t>(value);
    std::int64_t millionths = static_cast<std::int64_t>((value - static_cast<double>(whole)) * 1e6 + 0.5);
    if (millionths >= 1000000) ++whole, millionths -= 1000000;
    *this << whole << ".";
    for (std::int64_t unit = 100000; unit > 0; unit /= 10) *this << (millionths / unit) % 10;
    return *this;
  }

  // Begins a sentence: "Op: input[index]". An index below 0 is left out.
  LATENTCOT_FN Message& begin(const char* op, const char* input, std::int64_t i = -1, std::int64_t j = -1,
                              std::int64_t k = -1) {
    length = 0;
    *this << op << ": " << input;
    if (i >= 0) *this << "[" << i;
    if (i >= 0 && j >= 0) *this << ", " << j;
    if (i >= 0 && j >= 0 && k >= 0) *this << ", " << k;
    return i >= 0 ? *this << "]" : *this;
  }
};

// What an op asks of one input.
struct InputSpec {
  const char* name;
  Type type;
  int rank;
  bool written;           // changed in place: may not share memory with any other input
  bool optional = false;  // may be absent
};

inline const char* type_name(Type type) {
  switch (type) {
    case Type::kFloat32: return "float32";
    case Type::kFloat16: return "float16";
    case Type::kInt32: return "int32";
    case Type::kInt64: return "int64";
    case Type::kBFloat16: return "bfloat16";
    case Type::kNone: return "absent";
    default: return "of an unknown type";
  }
}

inline std::int64_t type_bytes(Type type) {
  return type == Type::kInt64 ? 8 : type == Type::kFloat16 || type == Type::kBFloat16 ? 2 : 4;
}

// The type itself where kernels take it, else float32, which the checks then ask for.
constexpr Type float_type(Type given) {
  return given == Type::kFloat16 || given == Type::kBFloat16 ? given : Type::kFloat32;
}

// Elements of a tensor: 0 where any dimension is.
inline std::int64_t elements(const Tensor& tensor) {
  std::int64_t count = 1;
  for (int axis = 0; axis < tensor.rank; ++axis) count *= tensor.shape[axis];
  return count;
}

// Types, ranks and addresses of an op's inputs, and that no written one overlaps another. False: message says which.
inline bool check_inputs(const char* op, const InputSpec* specs, int count, const Tensor* inputs, Message* message) {
  for (int i = 0; i < count; ++i) {
    const InputSpec& spec = specs[i];
    const Tensor& tensor = inputs[i];
    if (tensor.type == Type::kNone && spec.optional) continue;
    if (tensor.type != spec.type) {
      message->begin(op, spec.name)
        << " is " << type_name(tensor.type) << ", but must be " << type_name(spec.type) << ".";
      return false;
    }
    if (tensor.rank != spec.rank) {
      message->begin(op, spec.name)
        << " has " << tensor.rank << " dimensions, but must have " << spec.rank << ".";
      return false;
    }
    if (elements(tensor) > 0 && !tensor.data) {
      message->begin(op, spec.name) << " has no memory, but must lie where the op runs.";
      return false;
    }
  }
  for (int i = 0; i < count; ++i) {
    if (!specs[i].written || elements(inputs[i]) == 0) continue;
    const char* begin = static_cast<const char*>(inputs[i].data);
    const char* end = begin + elements(inputs[i]) * type_bytes(inputs[i].type);
    for (int j = 0; j < count; ++j) {
      if (j == i || inputs[j].type == Type::kNone || elements(inputs[j]) == 0) continue;
      const char* other = static_cast<const char*>(inputs[j].data);
      if (other < end && begin < other + elements(inputs[j]) * type_bytes(inputs[j].type)) {
        message->begin(op, specs[i].name)
          << " is written and shares memory with " << specs[j].name << ", but must be an array of its own.";
        return false;
      }
    }
  }
  return true;
}

// That dimension `axis` of an input is `wanted`; `meaning` names where the wanted size comes from.
inline bool check_size(const char* op, const InputSpec* specs, const Tensor* inputs, int input, int axis,
                       std::int64_t wanted, const char* meaning, Message* message) {
  if (inputs[input].shape[axis] == wanted) return true;
  message->begin(op, specs[input].name) << " has size " << inputs[input].shape[axis] << " along axis " << axis
                                        << ", but must have " << wanted << " (" << meaning << ").";
  return false;
}

// That low <= value < limit; the input's index as in Message::begin, `what` the column or "".
LATENTCOT_FN bool check_range(const char* op, const char* input, std::int64_t i, const char* what, std::int64_t value,
                              std::int64_t low, std::int64_t limit, Message* message) {
  if (value >= low && value < limit) return true;
  message->begin(op, input, i) << " " << what << (*what ? " " : "") << "is " << value << ", but must be at least "
                               << low << " and below " << limit << ".";
  return false;
}

// Whether row i of the fixed form is none.
LATENTCOT_FN bool is_dead(const std::int32_t* rows, std::int64_t i) {
  return rows[i * kRowColumns + kRowSequence] == kDead;
}

// Rows [first, end) become dead ones.
LATENTCOT_FN void write_dead(std::int32_t* rows, std::int64_t first, std::int64_t end) {
  for (std::int64_t i = first * kRowColumns; i < end * kRowColumns; ++i) rows[i] = kDead;
}

// Counts the rows that are live, in the fixed form those before the first dead one: none may stand behind it.
LATENTCOT_FN bool count_live(const char* op, const std::int32_t* rows, std::int64_t row_count, bool fixed,
                             std::int64_t* live, Message* message) {
  *live = fixed ? 0 : row_count;
  while (*live < row_count && !is_dead(rows, *live)) ++*live;
  for (std::int64_t i = *live; i < row_count; ++i) {
    if (is_dead(rows, i)) continue;
    message->begin(op, "rows", i) << " is live (sequence " << rows[i * kRowColumns + kRowSequence] << "), but rows["
                                  << *live << "] before it is dead and live rows must come first.";
    return false;
  }
  return true;
}

// That a packed row names a running place, a position and a step there are, and a slot or -1 (its upper end is the
// caller's to check).
LATENTCOT_FN bool check_row(const char* op, const std::int32_t* row, std::int64_t i, std::int64_t places,
                            std::int64_t positions, std::int64_t steps, const std::int32_t* sequences,
                            Message* message) {
  if (!check_range(op, "rows", i, "sequence", row[kRowSequence], 0, places, message) ||
      !check_range(op, "rows", i, "position", row[kRowPosition], 0, positions, message) ||
      !check_range(op, "rows", i, "step", row[kRowStep], 1, steps + 1, message))
    return false;
  if (sequences[row[kRowSequence] * kSequenceColumns + kStatus] == kRunning) return true;
  message->begin(op, "rows", i) << " belongs to sequence " << row[kRowSequence] << ", which is not running.";
  return false;
}

// That live_rows of a running sequence is the number of its packed rows: slots are given back by it.
LATENTCOT_FN bool check_live(const char* op, const std::int32_t* sequences, std::int64_t s, std::int32_t rows,
                             Message* message) {
  const std::int32_t* sequence = sequences + s * kSequenceColumns;
  if (sequence[kStatus] != kRunning || sequence[kLiveRows] == rows) return true;
  message->begin(op, "sequences", s, kLiveRows)
    << " (live_rows) is " << sequence[kLiveRows] << ", but rows holds " << rows << " of that sequence.";
  return false;
}

// That a counter is one: what is added to it in a pass cannot overflow.
LATENTCOT_FN bool check_counter(const char* op, const std::int64_t* counters, CounterEntry entry, const char* what,
                                Message* message) {
  return check_range(op, "counters", entry, what, counters[entry], 0, std::int64_t(1) << 52, message);
}

// The steps a token may run: its forced depth, else max_steps.
LATENTCOT_FN std::int32_t depth_limit(std::int32_t forced_depth, std::int32_t max_steps) {
  return forced_depth > 0 && forced_depth < max_steps ? forced_depth : max_steps;
}

// Whether the token after `position` is to be chosen once the row at `position` has halted.
LATENTCOT_FN bool chooses_next(const std::int32_t* sequence, std::int64_t position, std::int64_t positions) {
  const std::int64_t next = position + 1;
  return sequence[kStatus] == kRunning && !sequence[kStopped] && next == sequence[kLength] && next < positions &&
     next <= sequence[kEnd];
}

}  // namespace latentcot
