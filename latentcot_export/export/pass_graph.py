"""`pass.onnx`, beside `model.onnx` in a `--target ort` bundle: one pass of the fixed form, without a Loop.

No shape in it depends on a value: R packed rows come in and R go out, live ones first. So a GPU takes pass after pass
without asking the host, and a pass can be captured once and replayed. Its initializers are those of `model.onnx`, in the
same weights file. The pass itself is in `native_pass.py`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..spec import CacheSpec, ModelSpec, RecurrenceSpec
from .native_graph import NativeModel, model_of
from .native_layers import Weights
from .native_pass import FLOAT, INT32, Pass, Table, value_of
from .native_sheet import Sheet
from .native_thinking import step_of


def carried(spec: ModelSpec) -> dict[str, Table]:
    """What goes from pass to pass, in the order of the graph: name -> (dtype, axes). All have R rows."""
    return {
        "rows": (INT32, ("rows", 4)),
        "latent": (FLOAT, ("rows", spec.hidden_size)),
        "reach": (FLOAT, ("rows",)),
        "mix": (FLOAT, ("rows", spec.hidden_size)),
    }


def pass_model(spec: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec, weights: Weights) -> NativeModel:
    """One pass: tokens start, then all rows run. `weights`: `Weights.again()` of the graph with the Loop, or new ones."""
    sheet = Sheet()
    written = Pass(spec, recurrence, cache, weights, before=sheet, fixed=True)
    inputs = {name: value_of(name, table) for name, table in carried(spec).items()}
    rows, fresh, again = written.advance(sheet, "advance", inputs["rows"], written.nothing(), written.nothing())
    first = weights.constant("constants/one_int", np.array(1, np.int32))
    starts = sheet.one("Equal", "pass/starts", step_of(weights, sheet, rows), first)
    x = sheet.one("Where", "pass/x", starts, written.vocabulary.embedded(sheet, fresh), inputs["latent"])
    going = written.run(sheet, x, rows, inputs["reach"], inputs["mix"])
    again.name = "again"
    for name in inputs:
        value: ir.Value = getattr(going, name)
        value.name = f"{name}_out"
    outputs = [going.rows, going.latent, going.reach, going.mix, again]
    given, initializers = [*written.given.values(), *inputs.values()], list(weights.values.values())
    return NativeModel(model_of(given, outputs, sheet.nodes, initializers), weights)
