"""Rows between two passes of the fixed form: two sets of R of them, each read by one pass and written by the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from ..errors import LatentCoTError
from .device_tables import OnDevice, SharedTables
from .native_state import NativeState
from .native_tables import PASS_CARRIED, Column, Control, Status
from .refining import as_array

_DEAD = {"rows": -1}
# Passes between two looks of the host. Fewer than the first are not worth a look; more would run on after the last
# sequence has ended, where nobody knows how deep tokens are.
_FEWEST_PASSES, _MOST_PASSES = 4, 32


def wanted_rows(state: NativeState) -> int:
    """Rows that the next passes can use: those that live and those that may start, as `control` says."""
    live, most = state.live_rows, int(state.arrays["control"][Control.MAX_ROWS])
    # tokens of prompts start up to MAX_ROWS; those that decode start whatever it says
    return min(live + int(_startable(state).sum()), max(most, live) + int(_runs(state).sum()))


def capacity_of(rows: int) -> int:
    """R for so many rows: few different ones, since each is another shape for the kernels and another captured pass."""
    return 1 << max(0, rows - 1).bit_length()


def least_passes(state: NativeState) -> int:
    """Passes that must follow at least: a token is known only once the one before it has halted."""
    table = state.sequences
    runs = _runs(state) & (table[:, Column.STOPPED] == 0)
    unknown = np.minimum(table[:, Column.PAUSE], table[:, Column.END]) - table[:, Column.LENGTH]
    return 1 + int(np.where(runs, unknown, 0).max(initial=0))


def passes_before_a_look(state: NativeState) -> int:
    """Passes that a burst takes before the host looks at what they have left."""
    return min(_MOST_PASSES, max(_FEWEST_PASSES, least_passes(state)))


def is_over(state: NativeState) -> bool:
    """True when nothing lives or can start and some sequence is not marked as done, which a pass does as it begins."""
    table = state.sequences
    ended = (table[:, Column.STOPPED] != 0) | (table[:, Column.NEXT_POSITION] >= table[:, Column.END])
    return not state.live_rows and not _startable(state).any() and bool((_runs(state) & ended).any())


def _runs(state: NativeState) -> np.ndarray:
    """bool `[B]`: places whose sequence is not done."""
    return state.sequences[:, Column.STATUS] == Status.RUNNING


def _startable(state: NativeState) -> np.ndarray:
    """int `[B]`: known tokens of each place that wait for their first step and may have it."""
    table = state.sequences
    limit = table[:, [Column.LENGTH, Column.PAUSE, Column.END]].min(1)
    waits = _runs(state) & (table[:, Column.STOPPED] == 0)
    return np.where(waits, limit - table[:, Column.NEXT_POSITION], 0).clip(0)


class RowSets:
    """Both sets for one R, bound to a session once and for all. `at` is the one that the next pass reads."""

    def __init__(self, session: ort.InferenceSession, tables: SharedTables, rows: int, hidden: int) -> None:
        self.rows, self.tables, self.at = rows, tables, 0
        self.bursts, self.captured = 0, False
        self.graphs = [-1, -1]  # the captured pass that reads each set; -1: none
        self.options: dict[tuple[int, bool], ort.RunOptions] = {}
        shapes = {"rows": (rows, 4), "latent": (rows, hidden), "reach": (rows,), "mix": (rows, hidden)}
        types = {"rows": np.dtype(np.int32)}
        self.blank = {
            name: np.full(shape, _DEAD.get(name, 0), types.get(name, np.float32)) for name, shape in shapes.items()
        }
        self.sets = [{name: tables.tensor(array.copy()) for name, array in self.blank.items()} for _ in range(2)]
        self.again = tables.tensor(np.array(False))
        self.bindings = [self._bound(session, read, 1 - read) for read in range(2)]
        self.told: dict[str, Any] = {}

    def _bound(self, session: ort.InferenceSession, read: int, write: int) -> ort.IOBinding:
        binding = session.io_binding()
        for name, value in {**self.tables.values, **self.sets[read]}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self.sets[write].items():
            binding.bind_ortvalue_output(f"{name}_out", value)
        binding.bind_ortvalue_output("again", self.again)
        return binding

    def clear(self) -> None:
        """Makes all rows of both sets dead."""
        for one in self.sets:
            for name, value in one.items():
                value.update_inplace(self.blank[name])

    def load(self, carried: dict[str, Any]) -> None:
        """Takes the rows in flight, unless they are these. Errors: LatentCoTError for rows of the other form."""
        if carried is self.told:
            return
        if len(as_array(carried.get("fresh", _NONE))):
            raise LatentCoTError(
                "a sequence that was begun by another session cannot go on in this one; submit it again"
            )
        arrays = {name: as_array(carried[name]) for name in PASS_CARRIED}
        live = arrays["rows"][:, 0] >= 0
        count = int(live.sum())
        for name, blank in self.blank.items():
            array = blank.copy()
            array[:count] = arrays[name][live]
            self.sets[self.at][name].update_inplace(array)

    def tell(self) -> dict[str, Any]:
        """The rows in flight, for the state: the step and place of each, and the rest where it is."""
        held = self.sets[self.at]
        self.told = {name: OnDevice(value) for name, value in held.items()}
        self.told["rows"] = self.told["rows"].numpy()
        return self.told


_NONE = np.zeros(0, np.int32)
