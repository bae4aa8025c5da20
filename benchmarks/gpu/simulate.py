"""The state ops and attention on random requests, pass by pass against their references, with poison wherever possible.

Requests come and go; thoughts, gates, logits, queries, keys and values are random. Outputs hold poison before each call,
and so do inputs where a row is dead. After every op all tables must be those of the reference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from gpu.compare import close, poisoned, same
from gpu.device_state import DeviceState
from gpu.kernels import Kernels
from gpu.references import References, halted
from latentcot_export.errors import CheckFailed
from latentcot_export.ops.choose_token import choose_reference
from latentcot_export.ops.packed_tables import DEAD, RAGGED_HALT, Column, Row, Status, live_rows
from latentcot_export.runtime.sampling import SamplingParams
from latentcot_export.spec import ModelSpec, RecurrenceSpec

Tensor = torch.Tensor
DECIDED = 1e-5  # a draw whose halting hangs on less is drawn again
NUDGE = 1e-4  # of the uniform number and of top_p: within it the choice of a sampled token may be another


class NearTie(Exception):
    """A sampled token that a rounding may decide; the run ends there."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What runs: `recurrence` and shapes, so many rows and passes, element types of activations and cache."""

    recurrence: RecurrenceSpec
    model: ModelSpec
    rows: int = 12
    places: int = 5
    length: int = 14
    passes: int = 20
    data: torch.dtype = torch.float32
    stored: torch.dtype = torch.float32
    prompt: bool = False
    recorded: int = 0
    sampled: bool = False


class Simulation:
    """One case, from `seed`; `distances` by op of what was compared."""

    def __init__(self, case: Case, ops: Kernels | References, seed: int) -> None:
        self.case, self.ops, self.random = case, ops, np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        steps = case.recurrence.max_steps
        slots = steps * case.length + int(self.random.integers(0, 3 * steps * case.length))
        shape: dict[str, Any] = {"places": case.places, "length": case.length, "slots": slots, "dtype": case.stored}
        shape["logit_positions"] = case.recorded
        cpu = torch.device("cpu")
        self.wanted = DeviceState(case.model, case.recurrence, device=cpu, **shape)
        self.found = DeviceState(case.model, case.recurrence, device=ops.device, **shape)
        self.host, self.references = self.wanted.host, References()
        self.state = {
            "rows": torch.full((case.rows, 4), DEAD, dtype=torch.int32),
            "latent": torch.zeros(case.rows, case.model.hidden_size),
            "reach": torch.zeros(case.rows),
            "mix": torch.zeros(case.rows, case.model.hidden_size),
        }
        self.distances: dict[str, float] = {}
        self.host.control(
            int(self.random.choice((1, 4, 100))),
            int(self.random.choice((1, 3, 100))),
            bool(self.random.random() < 0.2),
            False,
        )
        self.executed = 0

    def run(self) -> None:
        """All passes. Errors: CheckFailed."""
        try:
            for _ in range(self.case.passes):
                self._admit()
                self._pass()
        except NearTie:
            pass

    def _admit(self) -> None:
        """Done sequences leave, others enter; both sides get the tables that the host made of it."""
        self.wanted.pull()
        for place in np.flatnonzero(self.host.sequences[:, Column.STATUS] == Status.DONE).tolist():
            self.host.remove(place)
        for _ in range(int(self.random.integers(0, 3))):
            if self.host.free_place() is None:
                break
            self._enter()
        self.wanted.push()
        for name, table in self.wanted.tables.items():
            if name != "cache":
                self.found.tables[name].copy_(table)

    def _enter(self) -> None:
        random, case = self.random, self.case
        known = int(random.integers(1, case.length + 1))
        end = int(random.integers(known, case.length + 1))
        forced = random.integers(0, case.recurrence.max_steps + 2, end) if random.random() < 0.4 else None
        sampling = None
        if case.sampled and random.random() < 0.7:
            top_k, top_p = int(random.choice((0, 1, 5))), float(random.choice((1.0, 0.7)))
            sampling = SamplingParams(float(random.uniform(0.3, 2)), top_k, top_p, int(random.integers(1 << 30)))
        vocabulary = case.model.vocab_size
        self.host.add(
            random.integers(0, vocabulary, known),
            end,
            forced_depth=forced,
            sampling=sampling,
            stop_tokens=random.integers(0, vocabulary, 2).tolist() if random.random() < 0.3 else (),
        )

    def _pass(self) -> None:
        rows = self._advance()
        if len(rows) and live_rows(rows.numpy(), True):
            self._attend(rows)
        head_rows = self._halt(rows)
        self._choose(head_rows)
        self.executed += live_rows(rows.numpy(), True)

    def _advance(self) -> Tensor:
        count = self.case.rows
        wanted = [torch.zeros(count, 4, dtype=torch.int32), torch.zeros(count, dtype=torch.int32), torch.tensor(False)]
        found = self._outputs(wanted)
        self.references.advance(self.state["rows"], self.wanted.tables, wanted, self.case.recurrence)
        self.ops.advance(self._there(self.state["rows"]), self.found.tables, found, self.case.recurrence)
        for name, one, other in zip(("rows", "fresh", "again"), found, wanted, strict=True):
            same(one, other, f"RaggedAdvance {name}")
        self._same_tables("RaggedAdvance")
        return wanted[0]

    def _attend(self, rows: Tensor) -> None:
        case, model = self.case, self.case.model
        width = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        angles = torch.rand(case.rows, model.turned // 2, generator=self.generator) * 6
        row: dict[str, Tensor | None] = {
            "qkv": self._dead(self._normal(case.rows, width), rows).to(case.data),
            "cos": self._dead(angles.cos(), rows),
            "sin": self._dead(angles.sin(), rows),
            "rows": rows,
        }
        if model.qk_norm:
            row |= {name: 1 + self._normal(model.head_dim) / 4 for name in ("q_norm", "k_norm")}
        layer = int(self.random.integers(model.num_layers))
        wanted = torch.zeros(case.rows, model.num_heads * model.head_dim, dtype=torch.float64)
        self.references.attention(row, self.wanted.tables, wanted, layer, model, case.recurrence, case.prompt)
        found = poisoned(torch.zeros_like(wanted, dtype=case.data, device=self.ops.device))
        given = {name: self._there(value) for name, value in row.items() if value is not None}
        self.ops.attention(given, self.found.tables, found, layer, model, case.recurrence, case.prompt)
        self._near("RaggedAttention", found, wanted, max(case.data, case.stored, key=lambda each: -each.itemsize))
        cache = self.found.tables["cache"]
        self._near("RaggedAttention cache", cache, self.wanted.tables["cache"])
        self.wanted.tables["cache"].copy_(cache)  # a rounding may go either way, and is not to grow

    def _halt(self, rows: Tensor) -> Tensor:
        case, recurrence = self.case, self.case.recurrence
        columns = recurrence.max_steps if recurrence.stop == "tail" else max(1, recurrence.max_latents)
        started = rows[:, Row.STEP] == 1
        row: dict[str, Tensor | None] = {"rows": rows, "gate_logits": None}
        for name in ("reach", "mix"):  # not read where a token starts
            row[name] = self._dead(self.state[name].clone(), rows, started)
        hidden = case.model.hidden_size
        row["z"], row["next_input"], row["x"] = (self._dead(self._normal(case.rows, hidden), rows) for _ in range(3))
        for _ in range(1000):
            if recurrence.gated:
                row["gate_logits"] = self._dead(self._normal(case.rows, columns) * 4, rows)
            tried = {n: t.clone().numpy() for n, t in self.wanted.tables.items() if n != "cache"}
            if halted(row, tried, recurrence).decided > DECIDED:
                break
        shapes = {"head_index": torch.int64, "next_rows": torch.int32, "head_rows": torch.int32}
        wanted = []
        for name in RAGGED_HALT.outputs:
            width = (4,) if name.endswith("rows") else () if name in ("next_reach", "head_index") else (hidden,)
            wanted.append(torch.zeros((case.rows, *width), dtype=shapes.get(name, torch.float32)))
        found = self._outputs(wanted)
        self.references.halt(row, self.wanted.tables, wanted, recurrence)
        given = {name: None if value is None else self._there(value) for name, value in row.items()}
        self.ops.halt(given, self.found.tables, found, recurrence)
        for name, one, other in zip(RAGGED_HALT.outputs, found, wanted, strict=True):
            if one.dtype == torch.float32:
                self._near(f"RaggedHalt {name}", one, other)
            else:
                same(one, other, f"RaggedHalt {name}")
        self._same_tables("RaggedHalt")
        self.state = dict(zip(self.state, wanted[:4], strict=True))
        return wanted[4]

    def _choose(self, head_rows: Tensor) -> None:
        case = self.case
        logits = self._dead(self._normal(case.rows, case.model.vocab_size) * 3, head_rows)
        wanted = [torch.zeros(case.rows, dtype=torch.int32)]
        found = self._outputs(wanted)
        before = {name: self.wanted.tables[name].clone() for name in ("sequences", "sampling", "uniform")}
        self.references.choose(logits, head_rows, self.wanted.tables, wanted[0])
        self.ops.choose(self._there(logits), self._there(head_rows), self.found.tables, found[0])
        for i in torch.nonzero(found[0].cpu() != wanted[0])[:, 0].tolist():
            if self._near_tie(logits[i], head_rows[i], int(found[0][i]), before):
                raise NearTie
        same(found[0], wanted[0], "ChooseToken chosen")
        self._same_tables("ChooseToken")

    def _near_tie(self, logits: Tensor, row: Tensor, token: int, tables: dict[str, Tensor]) -> bool:
        """Whether the token is what the rule gives for numbers that are a little different."""
        place, position = int(row[Row.SEQUENCE]), int(row[Row.POSITION])
        temperature, top_p = tables["sampling"][place].tolist()
        if place < 0 or temperature == 0:
            return False
        uniform, top_k = float(tables["uniform"][place, position + 1]), int(tables["sequences"][place, Column.TOP_K])
        nudges = ((u, p) for u in (-NUDGE, 0, NUDGE) for p in (-NUDGE, 0, NUDGE if top_p < 1 else 0))
        tries = (choose_reference(logits, temperature, top_k, top_p + p, uniform + u)[0] for u, p in nudges)
        return token in tries

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _dead(self, values: Tensor, rows: Tensor, also: Tensor | None = None) -> Tensor:
        """NaN for what belongs to no live row, and where `also` says."""
        values[rows[:, 0] == DEAD] = torch.nan
        if also is not None:
            values[also] = torch.nan
        return values

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.ops.device).contiguous()

    def _outputs(self, wanted: list[Tensor]) -> list[Tensor]:
        return [poisoned(torch.zeros_like(each, device=self.ops.device)) for each in wanted]

    def _near(self, op: str, found: Tensor, wanted: Tensor, kind: torch.dtype | None = None) -> None:
        from gpu.compare import TOLERANCES

        distance = close(found, wanted, op, TOLERANCES[kind or found.dtype])
        self.distances[op] = max(self.distances.get(op, 0.0), distance)

    def _same_tables(self, op: str) -> None:
        for name, table in self.wanted.tables.items():
            if name in ("weights", "logits"):
                self._near(f"{op} {name}", self.found.tables[name], table)
            elif name != "cache":
                same(self.found.tables[name], table, f"{op} {name}")
        if int(self.wanted.tables["counters"].min()) < 0:
            raise CheckFailed(f"{op}: counters hold a fault")
