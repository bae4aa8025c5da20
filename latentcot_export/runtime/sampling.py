"""Sampling parameters and the uniform numbers that go with a seed, as docs/sampling.md defines them.

Randomness is outside the graph: `u[t]` depends on the request's seed and the position alone, so neither the batch slot
nor the order of admission can change a sample.
"""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import InputError
from ..strict_json import shown

MAX_SEED = (1 << 64) - 1
# The graph computes in float32. A top_p that rounds to 0 there would keep nothing at all, so it becomes the smallest
# normal float32, which keeps the most probable token; a temperature beyond the largest would be infinite.
_FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one sequence chooses its tokens: temperature 0 is greedy, top_k 0 and top_p 1 are off.

    Errors: InputError unless temperature is finite and >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= seed < 2**64.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values and turn numpy's into Python's."""
        temperature = _number(self.temperature)
        if temperature is None or not 0.0 <= temperature < math.inf:
            _refuse("temperature", self.temperature, "a finite number >= 0", "0 for greedy, about 1 for sampling")
        top_p = _number(self.top_p)
        if top_p is None or not 0.0 < top_p <= 1.0:
            _refuse("top_p", self.top_p, "a number > 0 and <= 1", "1 to keep every token")
        for name, most, advice in (("top_k", None, "0 to keep every token"), ("seed", MAX_SEED, "0 or any other")):
            value = getattr(self, name)
            if not is_whole(value) or value < 0 or (most is not None and value > most):
                limit = "" if most is None else f" and <= {most}"
                _refuse(name, value, f"an integer >= 0{limit}", advice)
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_p", top_p)

    def for_graph(self, vocab_size: int) -> tuple[np.float32, np.int64, np.float32]:
        """temperature, top_k and top_p as the graph takes them."""
        temperature = np.float32(min(self.temperature, float(_FLOAT32.max)))
        top_p = np.float32(max(self.top_p, float(_FLOAT32.tiny)))
        return temperature, np.int64(0 if self.top_k >= vocab_size else self.top_k), top_p


def uniforms(seed: int, start: int, count: int) -> np.ndarray:
    """u[start .. start + count) of a seed: float32 `[count]`, 0 <= u < 1, with t the position of the token to choose.

    u[t] = float32(word >> 40) * 2**-24, word the first of Philox4x64-10's block with counter t + 1 and key `seed`.
    """
    # numpy advances the counter before it makes a block, so counter t gives the block of t + 1
    words = np.random.Philox(key=seed, counter=start).random_raw(4 * count)[::4]
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def is_whole(value: Any) -> bool:
    """True for an integer, numpy's too, and not for True and False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _refuse(name: str, value: Any, limit: str, advice: str) -> None:
    raise InputError(f"{name} is {shown(value)}, it must be {limit}; give {advice}")
