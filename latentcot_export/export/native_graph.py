"""The graph of `--target ort`: packed rows through own ops that change their tables in place, inside one Loop.

It is written node by node, not traced: an export takes as long as its weights take to be stored. Names, shapes and order
of inputs and outputs are documented in docs/bundle-format.md, the ops in `latentcot_export/ops`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from ..model.rope import rope_frequencies
from ..spec import READOUTS, STOPS, CacheSpec, ModelSpec, RecurrenceSpec
from ..validate.quantized import BITS
from .native_layers import CONTRIB, OWN, Sheet, Sum, Weights
from .native_thinking import decider, expected_embedding, later_rows, own_gate, router
from .native_vocabulary import Vocabulary

OPSET = 24
_INT32, _INT64, _FLOAT, _BOOL = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL
Axes = Sequence[int | str]
Table = tuple[ir.DataType, Axes]

# ONNX Runtime takes sine and cosine 4 numbers at a time and the rest by another formula, so that a row's last bit would
# depend on its place in the batch where a row is not a multiple of that long; 16 is the widest vector there is.
_VECTOR = 16


@dataclasses.dataclass(frozen=True)
class NativeModel:
    """A model whose initializers are in memory, and those that are others' bytes in another shape (see `save_graph`)."""

    model: ir.Model
    views: dict[ir.Value, ir.Value]


def tables(spec: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec) -> dict[str, Table]:
    """Inputs that the ops change in place, in the order of the graph: name -> (dtype, axes)."""
    half = ir.DataType.FLOAT16 if cache.dtype == "float16" else _FLOAT
    per_position = ("places", "length")
    weights = {"weights": (_FLOAT, ("places", "length", recurrence.max_steps))} if recurrence.tailed else {}
    return {
        "control": (_INT32, (4,)),
        "order": (_INT32, ("places",)),
        "sequences": (_INT32, ("places", 8)),
        "sampling": (_FLOAT, ("places", 2)),
        "tokens": (_INT32, per_position),
        "depths": (_INT32, per_position),
        "forced_depth": (_INT32, per_position),
        "uniform": (_FLOAT, per_position),
        "stop_tokens": (_INT32, ("places", "stops")),
        "slots": (_INT32, ("places", recurrence.max_steps, "length")),
        "free_slots": (_INT32, ("cache_slots",)),
        "counters": (_INT64, (8,)),
        "cache": (half, (spec.num_layers, 2, "cache_slots", spec.num_kv_heads, cache.lanes(spec))),
        "logits": (_FLOAT, ("places", "logit_positions", spec.vocab_size)),
        **weights,
    }


def carried(spec: ModelSpec) -> dict[str, Table]:
    """What goes from pass to pass, in the order of the graph: name -> (dtype, axes)."""
    return {
        "rows": (_INT32, ("rows", 4)),
        "fresh": (_INT32, ("fresh",)),
        "latent": (_FLOAT, ("going", spec.hidden_size)),
        "reach": (_FLOAT, ("going",)),
        "mix": (_FLOAT, ("going", spec.hidden_size)),
    }


def native_model(
    spec: ModelSpec,
    recurrence: RecurrenceSpec,
    cache: CacheSpec,
    tensors: dict[str, torch.Tensor],
    quantize: str = "none",
    refines: bool = False,
) -> NativeModel:
    """The packed graph of a checkpoint; `quantize` none (matrices float32), int8 or int4; `refines`: prompts too."""
    return _Graph(spec, recurrence, cache, Weights(tensors, BITS.get(quantize)), refines).build()


class _Graph:
    """One graph while it is written down."""

    def __init__(
        self, spec: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec, weights: Weights, refines: bool
    ) -> None:
        self.spec, self.recurrence, self.weights = spec, recurrence, weights
        self.rows_of_a_token = {"jacobi": 1} if refines else {}
        self.given = {name: _value(name, table) for name, table in tables(spec, recurrence, cache).items()}
        self.carried = carried(spec)
        self.before = Sheet()
        self.vocabulary = Vocabulary(spec, recurrence.embedding_scale, weights, self.before)

    def build(self) -> NativeModel:
        max_passes = _value("max_passes", (_INT64, ()))
        inputs = [_value(name, table) for name, table in self.carried.items()]
        nothing = self._nothing()
        rows, fresh, again = self._advance(self.before, "admission", inputs[0], inputs[1], nothing)
        body = self._body()
        outputs = [_value(f"{name}_out", _renamed(table, "_out")) for name, table in self.carried.items()]
        loop = ir.Node(
            "",
            "Loop",
            [max_passes, again, rows, fresh, *inputs[2:]],
            [ir.AttrGraph("body", body)],
            outputs=outputs,
            name="burst",
        )
        graph = ir.Graph(
            [max_passes, *self.given.values(), *inputs],
            outputs,
            nodes=[*self.before.nodes, loop],
            initializers=list(self.weights.values.values()),
            opset_imports={"": OPSET, OWN: 1, CONTRIB: 1},
            name="latentcot",
        )
        return NativeModel(ir.Model(graph, ir_version=11, producer_name="latentcot-export"), self.weights.views)

    def _body(self) -> ir.Graph:
        """One pass: rows in, rows out."""
        recurrence, sheet = self.recurrence, Sheet()
        rows, fresh, latent, reach, mix = (_value(f"pass/{name}", table) for name, table in self.carried.items())
        started = self.vocabulary.embedded(sheet, fresh)
        x = sheet.one("Concat", "pass/x", latent, started, axis=0)
        states = self._layers(sheet, x, rows)
        z = states[self.spec.num_layers]
        logits = self._logits_now(sheet, z, mix, started) if recurrence.feedback or recurrence.decider else None
        if recurrence.decider is not None and recurrence.gated:
            assert logits is not None
            gates: ir.Value | None = decider(self.weights, sheet, states, logits, recurrence)
        else:
            gates = router(self.weights, sheet, z, recurrence)
        following = None
        if recurrence.feedback is not None and recurrence.max_latents:
            assert logits is not None
            gated = recurrence.feedback.gated and not recurrence.tailed
            gate = own_gate(self.weights, sheet, gates, rows) if gated and gates is not None else None
            following = expected_embedding(
                self.weights,
                sheet,
                recurrence.feedback,
                logits,
                self.spec.vocab_size,
                functools.partial(self.vocabulary.rows_of, sheet, "feedback/table"),
                x,
                gate,
            )
        halted = self._halt(sheet, z, gates, rows, reach, mix, following, x)
        next_rows, next_latent, next_reach, next_mix, head_rows, head_mix, head_index = halted
        # a row that leaves at its token's end has the logits already
        if logits is None or recurrence.runs_on or recurrence.readout not in ("last", "sum"):
            scores = self.vocabulary.logits(sheet, head_mix)
        else:
            scores = sheet.one("Gather", "choice", logits, head_index, axis=0)
        chosen = sheet.many(
            OWN,
            "ChooseToken",
            "choice",
            [
                scores,
                head_rows,
                *self._tables("sequences sampling tokens uniform stop_tokens logits"),
            ],
            {"chosen": (_INT32, ["heads"])},
        )[0]
        after, next_fresh, again = self._advance(sheet, "advance", next_rows, self._nothing(), chosen)
        iteration, going = _value("pass/iteration", (_INT64, ())), _value("pass/going", (_BOOL, ()))
        return ir.Graph(
            [iteration, going, rows, fresh, latent, reach, mix],
            [again, after, next_fresh, next_latent, next_reach, next_mix],
            nodes=sheet.nodes,
            name="pass",
        )

    def _layers(self, sheet: Sheet, x: ir.Value, rows: ir.Value) -> dict[int, ir.Value]:
        """States `[r, D]` by number of layers: those that a decider reads, and the last one after the final norm."""
        spec, weights, made = self.spec, self.weights, self.recurrence.decider
        cos, sin = self._rotation(sheet, rows)
        context = [cos, sin, rows, *self._tables("slots cache")]
        if self.recurrence.tailed:
            context += self._tables("weights")
        if self.recurrence.adapter is not None:
            weights.later = later_rows(weights, sheet, rows)
        states, summed = {0: x}, Sum(x)
        for index in range(spec.num_layers):
            summed = weights.layer(sheet, summed, index, spec, context, self.recurrence.visibility)
            if made is not None and index + 1 in made.layers:
                states[index + 1] = weights.total(sheet, summed, f"model.layers.{index}")
                summed = Sum(states[index + 1])
        states[spec.num_layers], _ = weights.norm(sheet, summed, "model.norm", spec)
        return states

    def _logits_now(self, sheet: Sheet, z: ir.Value, mix: ir.Value, started: ir.Value) -> ir.Value:
        """Logits `[r, V]` of what the head reads of every row so far."""
        if self.recurrence.readout != "sum":
            return self.vocabulary.logits(sheet, z)
        nothing = sheet.one("ConstantOfShape", "now/nothing", sheet.one("Shape", "now/nothing", started))
        before = sheet.one("Concat", "now/before", mix, nothing, axis=0)
        return self.vocabulary.logits(sheet, sheet.one("Add", "now", before, z))

    def _tables(self, names: str) -> list[ir.Value]:
        return [self.given[name] for name in names.split()]

    def _nothing(self) -> ir.Value:
        """No tokens: what an op gets for an input that has nothing to say here."""
        return self.weights.constant("constants/no_tokens", np.zeros(0, np.int32))

    def _advance(
        self, sheet: Sheet, path: str, rows: ir.Value, fresh: ir.Value, chosen: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rows, fresh tokens and again, after sequences were finished, slots given and tokens started."""
        names = "sequences tokens forced_depth slots free_slots order control counters"
        made = sheet.many(
            OWN,
            "RaggedAdvance",
            path,
            [rows, fresh, chosen, *self._tables(names)],
            {"rows": (_INT32, ["rows_next", 4]), "fresh": (_INT32, ["fresh_next"]), "again": (_BOOL, [])},
            max_steps=self.recurrence.max_steps,
            runs_on=int(self.recurrence.runs_on),
            token_major=int(self.recurrence.token_major),
            **self.rows_of_a_token,
        )
        return made[0], made[1], made[2]

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
        optional = [following, frozen, weights]
        while optional and optional[-1] is None:
            optional.pop()
        return sheet.many(
            OWN,
            "RaggedHalt",
            "halt",
            [
                *(z, gate_logits, rows, reach, mix),
                *self._tables("sequences depths forced_depth logits counters"),
                *optional,
            ],
            {
                "rows": (_INT32, ["going_next", 4]),
                "latent": (_FLOAT, ["going_next", hidden]),
                "reach": (_FLOAT, ["going_next"]),
                "mix": (_FLOAT, ["going_next", hidden]),
                "head_rows": (_INT32, ["heads", 4]),
                "head_mix": (_FLOAT, ["heads", hidden]),
                "head_index": (_INT64, ["heads"]),
            },
            tau=float(recurrence.halt_threshold),
            max_steps=recurrence.max_steps,
            stop=STOPS.index(recurrence.stop),
            readout=READOUTS.index(recurrence.readout),
            skip_halted=int(recurrence.skip_halted),
        )

    def _rotation(self, sheet: Sheet, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine `[r, rotary_dim / 2]` of the rows' angles, float32 products as in model/rope.py."""
        spec, weights = self.spec, self.weights
        frequencies, scale = rope_frequencies(spec.rope, spec.turned, spec.max_position_embeddings)
        half = frequencies.numel()
        padded = torch.nn.functional.pad(frequencies, (0, -half % _VECTOR)).unsqueeze(0)
        column = weights.constant("constants/position_column", np.array([1], np.int64))
        position = sheet.one("Cast", "rope", sheet.one("Gather", "rope", rows, column, axis=1), to=int(_FLOAT))
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


def _value(name: str, table: Table) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(table[1]), type=ir.TensorType(table[0]))


def _renamed(table: Table, suffix: str) -> Table:
    """Axes of other names, so that nobody takes a row count before a call for the one after it."""
    return table[0], [axis if isinstance(axis, int) else axis + suffix for axis in table[1]]
