"""One native op as a model of one node, and random ragged states to run it on."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from latentcot_export.ops.packed_tables import DOMAIN, VERSION, Column, Control, Counter, OpSignature, Status
from latentcot_export.ops.packed_tables import depth_limit as limit_of
from latentcot_export.runtime.library import library_path

INTEGERS = {
    *("rows", "next_rows", "head_rows", "fresh", "next_fresh", "sequences", "tokens", "depths", "forced_depth"),
    *("stop_tokens", "slots", "free_slots", "order", "control", "chosen"),
}


def _kind(name: str, half: bool) -> int:
    if name == "cache" and half:
        return onnx.TensorProto.FLOAT16
    if name in INTEGERS:
        return onnx.TensorProto.INT32
    return {
        "counters": onnx.TensorProto.INT64,
        "head_index": onnx.TensorProto.INT64,
        "again": onnx.TensorProto.BOOL,
    }.get(name, onnx.TensorProto.FLOAT)


@functools.cache
def session(
    op: OpSignature,
    given: frozenset[str],
    attributes: tuple[tuple[str, float], ...],
    threads: int = 1,
    half: bool = False,
) -> ort.InferenceSession:
    """Inputs of any shape, so that the op's own checks are the only ones; inputs not in `given` are absent."""
    node = onnx.helper.make_node(
        op.name, [name if name in given else "" for name in op.inputs], op.outputs, domain=DOMAIN, **dict(attributes)
    )
    graph = onnx.helper.make_graph(
        [node],
        op.name,
        [onnx.helper.make_tensor_value_info(n, _kind(n, half), None) for n in op.inputs if n in given],
        [onnx.helper.make_tensor_value_info(n, _kind(n, half), None) for n in op.outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # there are many sessions
    options.log_severity_level = 4  # a failing op is what some tests ask for
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(
    op: OpSignature, inputs: Mapping[str, np.ndarray], attributes: Mapping[str, float] | None = None, threads: int = 1
) -> list[np.ndarray]:
    """The op's outputs; the arrays given are changed in place where the op writes."""
    fed = {name: inputs[name] for name in op.inputs if name in inputs}
    assert all(x.flags.c_contiguous for x in fed.values())
    half = "cache" in fed and fed["cache"].dtype == np.float16
    found = session(op, frozenset(fed), tuple((attributes or {}).items()), threads, half)
    return found.run(None, fed)


def copied(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in tables.items()}


def assert_same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def empty_tables(
    places: int, positions: int, max_steps: int, slots: int, vocabulary: int = 11, recorded: int = 0, stops: int = 1
) -> dict[str, np.ndarray]:
    """Tables in which nothing runs; no cache."""
    counters = np.zeros(len(Counter), np.int64)
    counters[Counter.FREE_SLOTS] = slots
    return {
        "control": np.array([1000, 1000, 0, 0], np.int32),
        "order": np.full(places, -1, np.int32),
        "sequences": np.zeros((places, len(Column)), np.int32),
        "sampling": np.tile(np.array([0, 1], np.float32), (places, 1)),
        "tokens": np.full((places, positions), -1, np.int32),
        "depths": np.zeros((places, positions), np.int32),
        "forced_depth": np.zeros((places, positions), np.int32),
        "uniform": np.zeros((places, positions), np.float32),
        "stop_tokens": np.full((places, stops), -1, np.int32),
        "slots": np.full((places, max_steps, positions), -1, np.int32),
        "free_slots": np.arange(slots, dtype=np.int32),
        "counters": counters,
        "logits": np.zeros((places, recorded, vocabulary), np.float32),
    }


def admit(tables: dict[str, np.ndarray], place: int, tokens: np.ndarray, end: int, pause: int | None = None) -> None:
    """A sequence with these tokens at an empty place, behind all others."""
    positions = tables["tokens"].shape[1]
    tables["tokens"][place] = -1
    tables["tokens"][place, : len(tokens)] = tokens
    tables["depths"][place] = 0
    tables["order"][np.argmax(tables["order"] < 0)] = place
    sequence = tables["sequences"][place]
    sequence[:] = 0
    sequence[Column.STATUS] = Status.RUNNING
    sequence[Column.PAUSE] = positions if pause is None else pause
    sequence[Column.END] = end
    sequence[Column.LENGTH] = len(tokens)


def random_state(
    random: np.random.Generator, max_steps: int, *, pending: bool, places: int = 5, positions: int = 12
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Tables in the middle of a burst, their rows `[r, 4]` and the number of fresh ones.

    `pending`: as RaggedAdvance finds them, rows that go on have no slot yet; otherwise as RaggedHalt does.
    """
    spare = int(random.integers(0, 2 * max_steps + 1)) if random.random() < 0.5 else 200
    recorded = int(random.choice((0, 0, positions // 2, positions)))
    tables = empty_tables(places, positions, max_steps, 0, recorded=recorded, stops=2)
    tables["forced_depth"][:] = random.integers(0, max_steps + 2, (places, positions)) * (random.random() < 0.5)
    later: list[list[int]] = []
    fresh: list[list[int]] = []
    reserved = used = 0
    for place in random.permutation(places):
        if random.random() < 0.15:
            tables["sequences"][place, Column.STATUS] = random.choice((Status.EMPTY, Status.DONE))
            continue
        length = int(random.integers(1, positions + 1))
        end = int(random.integers(max(length - 1, 1), positions + 1))
        pause = int(random.integers(1, positions + 1)) if random.random() < 0.2 else None
        admit(tables, place, random.integers(0, 11, length), end, pause)
        sequence = tables["sequences"][place]
        sequence[Column.NEXT_POSITION] = random.integers(0, min(length, end) + 1)
        sequence[Column.STOPPED] = random.random() < 0.2
        busy = random.random() < 0.7
        for position in range(sequence[Column.NEXT_POSITION]):
            limit = limit_of(int(tables["forced_depth"][place, position]), max_steps)
            step = int(random.integers(1, limit + 1))
            live = busy and random.random() < 0.5
            taken = step - 1 if live and pending and step > 1 else step
            tables["slots"][place, :taken, position] = range(used, used + taken)
            used += taken
            if not live:
                tables["depths"][place, position] = step
                continue
            sequence[Column.LIVE_ROWS] += 1
            reserved += limit - taken
            row = [int(place), position, step, -1 if taken < step else used - 1]
            (fresh if step == 1 else later).append(row)
    slots = used + reserved + spare
    names = random.permutation(slots).astype(np.int32)  # slots are in no order after a while
    renamed = np.append(names, np.int32(-1))  # -1, no slot, remains what it is
    tables["slots"][:] = renamed[tables["slots"]]
    tables["free_slots"] = np.concatenate((random.permutation(names[used:]), random.integers(0, 9, used)))
    tables["free_slots"] = tables["free_slots"].astype(np.int32)
    tables["counters"][:] = random.integers(0, 50, len(Counter))
    tables["counters"][Counter.FREE_SLOTS] = slots - used
    tables["counters"][Counter.FINISHED] = random.integers(0, 2)
    control = tables["control"]
    control[Control.MAX_ROWS] = random.choice((0, 1, 3, 8, 40, 1000))
    control[Control.SEQUENCE_ROWS] = random.choice((1, 2, 4, 1000))
    control[Control.LOCKSTEP], control[Control.YIELD_WHEN_DONE] = random.random(2) < 0.2
    random.shuffle(later)
    rows = np.array(later + fresh, np.int32).reshape(-1, 4)
    rows[:, 3] = renamed[rows[:, 3]]
    return tables, rows, len(fresh)
