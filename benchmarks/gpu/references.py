"""The ops of kernels.py by their references, on the CPU: what the kernels are compared with, through the same calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from latentcot_export.ops.add_norm import add_norm
from latentcot_export.ops.gated_unit import gated_unit
from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_attention import packed_attention
from latentcot_export.ops.packed_choose import packed_choose
from latentcot_export.ops.packed_halt import Halted, packed_halt
from latentcot_export.ops.packed_tables import RAGGED_HALT
from latentcot_export.spec import ModelSpec, RecurrenceSpec

Tensor = torch.Tensor
Tables = Mapping[str, Tensor]


def numpy_tables(tables: Tables) -> dict[str, np.ndarray]:
    """The same memory as arrays, but for the cache, which may be of a type that numpy has not."""
    return {name: each.numpy() for name, each in tables.items() if name != "cache"}


def halted(row: Mapping[str, Tensor | None], tables: dict[str, np.ndarray], recurrence: RecurrenceSpec) -> Halted:
    """RaggedHalt's reference."""
    given = {name: None if value is None else value.numpy() for name, value in row.items()}
    return packed_halt(
        **given,  # type: ignore[arg-type]
        tables=tables,
        tau=recurrence.halt_threshold,
        max_steps=recurrence.max_steps,
        stop=recurrence.stop,
        readout=recurrence.readout,
        skip_halted=recurrence.skip_halted,
        fixed=True,
    )


class References:
    """As Kernels."""

    device = torch.device("cpu")

    def advance(self, rows: Tensor, tables: Tables, out: Sequence[Tensor], recurrence: RecurrenceSpec) -> None:
        """See Kernels."""
        rules = {"runs_on": recurrence.runs_on, "token_major": recurrence.token_major}
        found = packed_advance(
            rows.numpy(),
            np.zeros(0, np.int32),
            numpy_tables(tables),
            max_steps=recurrence.max_steps,
            **rules,
            fixed=True,
        )
        for to, value in zip(out, found, strict=True):
            to.copy_(torch.as_tensor(value))

    def halt(
        self, row: Mapping[str, Tensor | None], tables: Tables, out: Sequence[Tensor], recurrence: RecurrenceSpec
    ) -> None:
        """See Kernels."""
        found = halted(row, numpy_tables(tables), recurrence)
        for to, name in zip(out, RAGGED_HALT.outputs, strict=True):
            to.copy_(torch.from_numpy(getattr(found, name)))

    def choose(self, logits: Tensor, rows: Tensor, tables: Tables, chosen: Tensor) -> None:
        """See Kernels."""
        chosen.copy_(torch.from_numpy(packed_choose(logits.numpy(), rows.numpy(), numpy_tables(tables), fixed=True)))

    def attention(
        self,
        row: Mapping[str, Tensor | None],
        tables: Tables,
        out: Tensor,
        layer: int,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        prompt: bool,
    ) -> None:
        """See Kernels; computed in float64, and nothing is read of a dead row."""
        qkv = row["qkv"]
        assert qkv is not None
        given = {name: value for name, value in row.items() if name != "qkv"}
        found = packed_attention(
            qkv.double(),
            **given,  # type: ignore[arg-type]
            slots=tables["slots"],
            cache=tables["cache"],
            layer=layer,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            visibility=recurrence.visibility,
            weights=tables["weights"] if recurrence.tailed else None,
            epsilon=model.rms_norm_eps,
            fixed=True,
        )
        out.copy_(found)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, out: Sequence[Tensor], epsilon: float) -> None:
        """See Kernels; computed in float64."""
        found = add_norm(x.double(), residual.double(), weight.double(), epsilon=epsilon)
        for to, value in zip(out, found, strict=True):
            to.copy_(value)

    def gated_unit(self, gate_up: Tensor, out: Tensor) -> None:
        """See Kernels; computed in float64."""
        out.copy_(gated_unit(gate_up.double()))
