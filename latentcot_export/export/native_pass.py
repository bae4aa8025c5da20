"""One pass over packed rows, as both graphs of a `--target ort` bundle hold it: from what rows read to what goes on.

In the dynamic form (`native_graph.py`) a pass has as many rows as run, in the fixed form (`pass_graph.py`) always R of
them, live ones first: a dead row is (-1, -1, -1, -1), reads 0 and gives nothing. The ops' contracts are in
`latentcot_export/ops`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from ..model.rope import rope_frequencies
from ..spec import READOUTS, STOPS, CacheSpec, ModelSpec, RecurrenceSpec
from .native_layers import Weights
from .native_sheet import OWN, Context, Sheet, Sum
from .native_thinking import decider, expected_embedding, later_rows, own_gate, router
from .native_vocabulary import Vocabulary

INT32, INT64, FLOAT, BOOL = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL
Axes = Sequence[int | str]
Table = tuple[ir.DataType, Axes]

# ONNX Runtime takes sine and cosine 4 numbers at a time and the rest by another formula, so that a row's last bit would
# depend on its place in the batch where a row is not a multiple of that long; 16 is the widest vector there is.
_VECTOR = 16


def tables(spec: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec) -> dict[str, Table]:
    """Inputs that the ops change in place, in the order of the graph: name -> (dtype, axes)."""
    kept = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}.get(cache.dtype, FLOAT)
    per_position = ("places", "length")
    weights = {"weights": (FLOAT, ("places", "length", recurrence.max_steps))} if recurrence.tailed else {}
    return {
        "control": (INT32, (4,)),
        "order": (INT32, ("places",)),
        "sequences": (INT32, ("places", 8)),
        "sampling": (FLOAT, ("places", 2)),
        "tokens": (INT32, per_position),
        "depths": (INT32, per_position),
        "forced_depth": (INT32, per_position),
        "uniform": (FLOAT, per_position),
        "stop_tokens": (INT32, ("places", "stops")),
        "slots": (INT32, ("places", recurrence.max_steps, "length")),
        "free_slots": (INT32, ("cache_slots",)),
        "counters": (INT64, (8,)),
        "cache": (kept, (spec.num_layers, 2, "cache_slots", spec.num_kv_heads, cache.lanes(spec))),
        "logits": (FLOAT, ("places", "logit_positions", spec.vocab_size)),
        **weights,
    }


def value_of(name: str, table: Table) -> ir.Value:
    """A value of known type and axes."""
    return ir.Value(name=name, shape=ir.Shape(table[1]), type=ir.TensorType(table[0]))


class Going(NamedTuple):
    """What a pass leaves: the rows that run on, their latents `[c, D]`, reach and mix, and the tokens chosen."""

    rows: ir.Value
    latent: ir.Value
    reach: ir.Value
    mix: ir.Value
    chosen: ir.Value


class Pass:
    """The nodes of one pass. `before` takes those that need to run only once, ahead of a loop."""

    def __init__(
        self,
        spec: ModelSpec,
        recurrence: RecurrenceSpec,
        cache: CacheSpec,
        weights: Weights,
        before: Sheet,
        fixed: bool = False,
        refines: bool = False,
    ) -> None:
        self.spec, self.recurrence, self.weights, self.fixed = spec, recurrence, weights, fixed
        self.given = {name: value_of(name, table) for name, table in tables(spec, recurrence, cache).items()}
        self.vocabulary = Vocabulary(spec, recurrence.embedding_scale, weights, before)
        self._form = {"fixed": 1} if fixed else {}
        # where ops that have no other use for it leave the fault that a GPU cannot throw; the dynamic form is the CPU's
        self._faults = self.given["counters"] if fixed else None
        self._rows_of_a_token = {"jacobi": 1} if refines else {}

    def run(
        self,
        sheet: Sheet,
        x: ir.Value,
        rows: ir.Value,
        reach: ir.Value,
        mix: ir.Value,
        started: ir.Value | None = None,
    ) -> Going:
        """What becomes of rows that read x `[r, D]`; `started` `[f, D]` are the fresh ones, which have no mix."""
        recurrence = self.recurrence
        states = self._layers(sheet, x, rows)
        z = states[self.spec.num_layers]
        logits = self._logits_now(sheet, z, mix, started) if recurrence.feedback or recurrence.decider else None
        if recurrence.decider is not None and recurrence.gated:
            assert logits is not None
            gates: ir.Value | None = decider(self.weights, sheet, states, logits, recurrence)
        else:
            gates = router(self.weights, sheet, z, recurrence)
        following = self._following(sheet, x, rows, gates, logits)
        halted = self._halt(sheet, z, gates, rows, reach, mix, following, x)
        head_rows, head_mix, head_index = halted[4:]
        # a row that leaves at its token's end has the logits already
        if logits is None or recurrence.runs_on or recurrence.readout not in ("last", "sum"):
            scores = self.vocabulary.logits(sheet, head_mix)
        else:
            scores = sheet.one("Gather", "choice", logits, head_index, axis=0)
        beside = self._tables("sequences sampling tokens uniform stop_tokens logits")
        inputs = [scores, head_rows, *beside, self._faults]
        outputs: dict[str, Table] = {"chosen": (INT32, [self._rows("heads")])}
        chosen = sheet.many(OWN, "ChooseToken", "choice", inputs, outputs, **self._form)[0]
        return Going(halted[0], halted[1], halted[2], halted[3], chosen)

    def advance(
        self, sheet: Sheet, path: str, rows: ir.Value, fresh: ir.Value, chosen: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rows, fresh tokens and again, after sequences were finished, slots given and tokens started."""
        names = "sequences tokens forced_depth slots free_slots order control counters"
        made = sheet.many(
            OWN,
            "RaggedAdvance",
            path,
            [rows, fresh, chosen, *self._tables(names)],
            {
                "rows": (INT32, [self._rows("rows_next"), 4]),
                "fresh": (INT32, [self._rows("fresh_next")]),
                "again": (BOOL, []),
            },
            max_steps=self.recurrence.max_steps,
            runs_on=int(self.recurrence.runs_on),
            token_major=int(self.recurrence.token_major),
            **self._form,
            **self._rows_of_a_token,
        )
        return made[0], made[1], made[2]

    def nothing(self) -> ir.Value:
        """No tokens: what an op gets for an input that has nothing to say here."""
        return self.weights.constant("constants/no_tokens", np.zeros(0, np.int32))

    def rotation(self, sheet: Sheet, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine `[r, rotary_dim / 2]` of the rows' angles, float32 products as in model/rope.py."""
        spec, weights = self.spec, self.weights
        frequencies, scale = rope_frequencies(spec.rope, spec.turned, spec.max_position_embeddings)
        half = frequencies.numel()
        padded = torch.nn.functional.pad(frequencies, (0, -half % _VECTOR)).unsqueeze(0)
        column = weights.constant("constants/position_column", np.array([1], np.int64))
        position = sheet.one("Cast", "rope", sheet.one("Gather", "rope", rows, column, axis=1), to=int(FLOAT))
        angle = sheet.one("Mul", "rope", position, weights.constant("rope.frequencies", padded.numpy()))
        turned = []
        for op in ("Cos", "Sin"):
            x = sheet.one(op, "rope", angle)
            if scale != 1.0:
                x = sheet.one(
                    "Mul", f"rope/{op}", x, weights.constant("constants/rope_scale", np.array(scale, np.float32))
                )
            turned.append(self.vocabulary.cut(sheet, f"rope/{op}", x, half, padded.shape[1]))
        return turned[0], turned[1]

    def _rows(self, dynamic: str) -> str:
        """The axis of an output that has as many rows as there are of its kind; in the fixed form, all R."""
        return "rows" if self.fixed else dynamic

    def _tables(self, names: str) -> list[ir.Value]:
        return [self.given[name] for name in names.split()]

    def _layers(self, sheet: Sheet, x: ir.Value, rows: ir.Value) -> dict[int, ir.Value]:
        """States `[r, D]` by number of layers: those that a decider reads, and the last one after the final norm."""
        spec, weights, made = self.spec, self.weights, self.recurrence.decider
        cos, sin = self.rotation(sheet, rows)
        slots, cache = self._tables("slots cache")
        context = Context(cos, sin, rows, slots, cache, self.given.get("weights"), self._faults)
        if self.recurrence.adapter is not None:
            weights.later = later_rows(weights, sheet, rows)
        states, summed = {0: x}, Sum(x)
        for index in range(spec.num_layers):
            summed = weights.layer(sheet, summed, index, spec, context, self.recurrence.visibility, **self._form)
            if made is not None and index + 1 in made.layers:
                states[index + 1] = weights.total(sheet, summed, f"model.layers.{index}")
                summed = Sum(states[index + 1])
        states[spec.num_layers], _ = weights.norm(sheet, summed, "model.norm", spec)
        return states

    def _logits_now(self, sheet: Sheet, z: ir.Value, mix: ir.Value, started: ir.Value | None) -> ir.Value:
        """Logits `[r, V]` of what the head reads of every row so far."""
        if self.recurrence.readout != "sum":
            return self.vocabulary.logits(sheet, z)
        if started is not None:
            nothing = sheet.one("ConstantOfShape", "now/nothing", sheet.one("Shape", "now/nothing", started))
            mix = sheet.one("Concat", "now/before", mix, nothing, axis=0)
        return self.vocabulary.logits(sheet, sheet.one("Add", "now", mix, z))

    def _following(
        self, sheet: Sheet, x: ir.Value, rows: ir.Value, gates: ir.Value | None, logits: ir.Value | None
    ) -> ir.Value | None:
        """What the next step reads `[r, D]` where that is not z."""
        recurrence = self.recurrence
        if recurrence.feedback is None or not recurrence.max_latents:
            return None
        assert logits is not None
        gated = recurrence.feedback.gated and not recurrence.tailed
        gate = own_gate(self.weights, sheet, gates, rows, recurrence) if gated and gates is not None else None
        return expected_embedding(
            self.weights,
            sheet,
            recurrence.feedback,
            logits,
            self.spec.vocab_size,
            functools.partial(self.vocabulary.rows_of, sheet, "feedback/table"),
            x,
            gate,
        )

    def _halt(
        self,
        sheet: Sheet,
        z: ir.Value,
        gate_logits: ir.Value | None,
        rows: ir.Value,
        reach: ir.Value,
        mix: ir.Value,
        following: ir.Value | None,
        x: ir.Value,
    ) -> list[ir.Value]:
        recurrence, hidden = self.recurrence, self.spec.hidden_size
        frozen = x if recurrence.readout == "final" else None
        weights = self.given["weights"] if recurrence.tailed else None
        going, heads = self._rows("going_next"), self._rows("heads")
        return sheet.many(
            OWN,
            "RaggedHalt",
            "halt",
            [
                *(z, gate_logits, rows, reach, mix),
                *self._tables("sequences depths forced_depth logits counters"),
                *(following, frozen, weights),
            ],
            {
                "rows": (INT32, [going, 4]),
                "latent": (FLOAT, [going, hidden]),
                "reach": (FLOAT, [going]),
                "mix": (FLOAT, [going, hidden]),
                "head_rows": (INT32, [heads, 4]),
                "head_mix": (FLOAT, [heads, hidden]),
                "head_index": (INT64, [heads]),
            },
            tau=float(recurrence.halt_threshold),
            max_steps=recurrence.max_steps,
            stop=STOPS.index(recurrence.stop),
            readout=READOUTS.index(recurrence.readout),
            skip_halted=int(recurrence.skip_halted),
            **self._form,
        )
