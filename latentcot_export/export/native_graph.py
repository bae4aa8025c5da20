"""The graph of `--target ort`: packed rows through own ops that change their tables in place, inside one Loop.

It is written node by node, not traced: an export takes as long as its weights take to be stored. Names, shapes and order
of inputs and outputs are documented in docs/bundle-format.md, the pass is in `native_pass.py`.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import torch

from ..spec import CacheSpec, ModelSpec, RecurrenceSpec
from ..validate.quantized import BITS
from .native_layers import Weights
from .native_pass import BOOL, FLOAT, INT32, INT64, Pass, Table, tables, value_of
from .native_sheet import CONTRIB, OWN, Sheet

OPSET = 24


@dataclasses.dataclass(frozen=True)
class NativeModel:
    """A model, its initializers, and those that are others' bytes in another shape (see `save_graph`)."""

    model: ir.Model
    weights: Weights

    @property
    def views(self) -> dict[ir.Value, ir.Value]:
        """See Weights."""
        return self.weights.views


def carried(spec: ModelSpec) -> dict[str, Table]:
    """What goes from pass to pass, in the order of the graph: name -> (dtype, axes)."""
    return {
        "rows": (INT32, ("rows", 4)),
        "fresh": (INT32, ("fresh",)),
        "latent": (FLOAT, ("going", spec.hidden_size)),
        "reach": (FLOAT, ("going",)),
        "mix": (FLOAT, ("going", spec.hidden_size)),
    }


def native_model(
    spec: ModelSpec,
    recurrence: RecurrenceSpec,
    cache: CacheSpec,
    tensors: dict[str, torch.Tensor],
    quantize: str = "none",
    refines: bool = False,
    dtype: str = "float32",
) -> NativeModel:
    """The packed graph of a checkpoint; `quantize` none (matrices of `dtype`), int8 or int4; `refines`: prompts too.

    Initializers are in memory. Of a dtype below float32 they are still to be widened, see `narrow_graph.py`.
    """
    weights, before = Weights(tensors, BITS.get(quantize), dtype), Sheet()
    written = Pass(spec, recurrence, cache, weights, before, refines=refines)
    max_passes = value_of("max_passes", (INT64, ()))
    inputs = [value_of(name, table) for name, table in carried(spec).items()]
    rows, fresh, again = written.advance(before, "admission", inputs[0], inputs[1], written.nothing())
    body = _body(written)
    outputs = [value_of(f"{name}_out", _renamed(table, "_out")) for name, table in carried(spec).items()]
    loop = ir.Node(
        "",
        "Loop",
        [max_passes, again, rows, fresh, *inputs[2:]],
        [ir.AttrGraph("body", body)],
        outputs=outputs,
        name="burst",
    )
    initializers = list(weights.values.values())
    nodes = [*before.nodes, loop]
    return NativeModel(model_of([max_passes, *written.given.values(), *inputs], outputs, nodes, initializers), weights)


def model_of(
    inputs: list[ir.Value], outputs: list[ir.Value], nodes: list[ir.Node], initializers: list[ir.Value]
) -> ir.Model:
    """A model of a packed graph."""
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": OPSET, OWN: 1, CONTRIB: 1},
        name="latentcot",
    )
    return ir.Model(graph, ir_version=11, producer_name="latentcot-export")


def _body(written: Pass) -> ir.Graph:
    """One pass: rows in, rows out."""
    sheet = Sheet()
    rows, fresh, latent, reach, mix = (value_of(f"pass/{name}", table) for name, table in carried(written.spec).items())
    started = written.vocabulary.embedded(sheet, fresh)
    x = sheet.one("Concat", "pass/x", latent, started, axis=0)
    going = written.run(sheet, x, rows, reach, mix, started)
    after, next_fresh, again = written.advance(sheet, "advance", going.rows, written.nothing(), going.chosen)
    iteration, going_on = value_of("pass/iteration", (INT64, ())), value_of("pass/going", (BOOL, ()))
    return ir.Graph(
        [iteration, going_on, rows, fresh, latent, reach, mix],
        [again, after, next_fresh, going.latent, going.reach, going.mix],
        nodes=sheet.nodes,
        name="pass",
    )


def _renamed(table: Table, suffix: str) -> Table:
    """Axes of other names, so that nobody takes a row count before a call for the one after it."""
    return table[0], [axis if isinstance(axis, int) else axis + suffix for axis in table[1]]


__all__ = ["OPSET", "NativeModel", "carried", "model_of", "native_model", "tables"]
