"""The CUDA kernels on PyTorch's tensors: one method for each op, launched on PyTorch's stream, results into given tensors.

Everything is in the fixed form (latentcot_export/ops/packed_tables.py). `Kernels` calls the library of library.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latentcot_export.errors import LatentCoTError
from latentcot_export.ops.packed_tables import CHOOSE_TOKEN, RAGGED_ADVANCE, RAGGED_ATTENTION, RAGGED_HALT
from latentcot_export.spec import READOUTS, STOPS, VISIBILITIES, ModelSpec, RecurrenceSpec

Tensor = torch.Tensor
Tables = Mapping[str, Tensor]
# numbers of `Type`, plugins/kernels/tables.hpp
TYPES = {torch.float32: 1, torch.float16: 2, torch.int32: 3, torch.int64: 4, torch.bfloat16: 5, torch.bool: 6}
_INT, _FLOAT = ctypes.c_int, ctypes.c_float


class Array(ctypes.Structure):
    """A tensor as launch.cu takes it."""

    _fields_ = (("data", ctypes.c_void_p), ("type", _INT), ("rank", _INT), ("shape", ctypes.c_int64 * 5))

    @classmethod
    def of(cls, tensor: Tensor | None) -> Array:
        """None: an input that is left out."""
        if tensor is None:
            return cls()
        assert tensor.is_contiguous()
        return cls(tensor.data_ptr(), TYPES[tensor.dtype], tensor.dim(), (ctypes.c_int64 * 5)(*tensor.shape))


class Launch(ctypes.Structure):
    """What a launch works with and what it says."""

    _fields_ = (
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("message", ctypes.c_char * 480),
    )


def _attributes(*values: float) -> ctypes.Structure:
    """A struct of these numbers, int or float as they are, each of four bytes."""
    fields = [(f"at{i}", _FLOAT if isinstance(value, float) else _INT) for i, value in enumerate(values)]
    return type("Attributes", (ctypes.Structure,), {"_fields_": fields})(*values)


class Kernels:
    """The ops of one device. Errors: LatentCoTError with the library's sentence from every method."""

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self.library, self.device = library, device
        self._nothing = torch.zeros(0, dtype=torch.int32, device=device)
        # captured launches keep the addresses that they were captured with, so that a smaller one is never given back
        self._workspaces = [torch.zeros(0, dtype=torch.uint8, device=device)]

    def advance(self, rows: Tensor, tables: Tables, out: Sequence[Tensor], recurrence: RecurrenceSpec) -> None:
        """RaggedAdvance; out: rows, fresh, again."""
        given = {**tables, "rows": rows, "fresh": self._nothing, "chosen": self._nothing}
        flags = (recurrence.max_steps, int(recurrence.runs_on), int(recurrence.token_major))
        self._run("advance", [given[name] for name in RAGGED_ADVANCE.inputs], out, _attributes(*flags))

    def halt(
        self,
        row: Mapping[str, Tensor | None],
        tables: Tables,
        out: Sequence[Tensor],
        recurrence: RecurrenceSpec,
    ) -> None:
        """RaggedHalt; row: z, gate_logits, rows, reach, mix, next_input and x; out in the op's order."""
        given = {**tables, **row}
        flags = _attributes(
            float(recurrence.halt_threshold),
            recurrence.max_steps,
            STOPS.index(recurrence.stop),
            READOUTS.index(recurrence.readout),
            int(recurrence.skip_halted),
        )
        self._run("halt", [given.get(name) for name in RAGGED_HALT.inputs], out, flags)

    def choose(self, logits: Tensor, rows: Tensor, tables: Tables, chosen: Tensor) -> None:
        """ChooseToken."""
        given = {**tables, "logits": logits, "rows": rows, "record": tables["logits"]}
        self._run("choose", [given[name] for name in CHOOSE_TOKEN.inputs], [chosen], None)

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
        """RaggedAttention; row: qkv, cos, sin, rows, and q_norm and k_norm where heads have them."""
        given = {**tables, **row}
        if not recurrence.tailed:
            given.pop("weights", None)
        flags = _attributes(
            *(layer, model.num_heads, model.num_kv_heads, model.head_dim),
            *(VISIBILITIES.index(recurrence.visibility), float(model.rms_norm_eps), int(prompt)),
        )
        self._run("attention", [given.get(name) for name in RAGGED_ATTENTION.inputs], [out], flags)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, out: Sequence[Tensor], epsilon: float) -> None:
        """AddNorm; out: normed, total."""
        self._run("add_norm", [x, residual, weight], out, _attributes(float(epsilon)))

    def gated_unit(self, gate_up: Tensor, out: Tensor) -> None:
        """GatedUnit."""
        self._run("gated_unit", [gate_up], [out], None)

    def _run(self, op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Any) -> None:
        call = getattr(self.library, f"latentcot_{op}")
        arrays = [(Array * len(group))(*map(Array.of, group)) for group in (inputs, outputs)]
        launch = Launch(None, 0, _stream(self.device))
        given = None if attributes is None else ctypes.byref(attributes)
        self._told(call(*arrays, given, ctypes.byref(launch)), launch)
        workspace = self._workspace(launch.workspace_bytes)
        launch.workspace, launch.workspace_bytes = workspace.data_ptr(), workspace.numel()
        self._told(call(*arrays, given, ctypes.byref(launch)), launch)

    def _told(self, code: int, launch: Launch) -> None:
        if code:
            raise LatentCoTError(f"{launch.message.decode(errors='replace')} (code {code}, see launch.cu)")

    def _workspace(self, size: int) -> Tensor:
        held = self._workspaces[-1]
        if held.numel() >= max(size, 1):
            return held
        # whatever stands there: a kernel that read what it has not written would show
        made = torch.full((size + 512,), 0xFB, dtype=torch.uint8, device=self.device)
        at = -made.data_ptr() % 256
        self._workspaces.append(made[at : at + size + 256])
        return self._workspaces[-1]


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
