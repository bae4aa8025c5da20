"""RaggedAttention's CUDA kernels on the CPU: random calls, how to run one, and the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from latentcot_export.ops.packed_attention import packed_attention
from latentcot_export.ops.packed_tables import Counter
from latentcot_export.spec import VISIBILITIES
from tests.cuda.kernels import Kernels, guarded, poisoned
from tests.ops.native import random_state

KINDS = ("float32", "float16", "bfloat16")  # as Element of element.cuh numbers them


def encoded(x: np.ndarray, kind: str) -> np.ndarray:
    """float32 numbers as that type stores them: bits of bfloat16 are uint16."""
    if kind == "bfloat16":
        return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return x.astype(kind)


def decoded(x: np.ndarray) -> np.ndarray:
    """What `encoded` stored, as float32."""
    if x.dtype == np.uint16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).float().numpy()
    return x.astype(np.float32)


@dataclasses.dataclass
class Call:
    """One call: `cache` is that of one layer, `[2, slots, kv heads, lanes]`; qkv and cache as `encoded` gives them."""

    heads: int
    kv_heads: int
    head_dim: int
    visibility: str
    arrays: dict[str, np.ndarray]  # qkv, cos, sin, rows, slots, cache, and weights, q_norm, k_norm where they are
    counters: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(Counter), np.int64))
    epsilon: float = 1e-5

    def part(self, rows: slice | list[int]) -> Call:
        """The same call on some of its rows; the cache is a copy."""
        arrays = dict(self.arrays) | {
            n: np.ascontiguousarray(self.arrays[n][rows]) for n in ("qkv", "cos", "sin", "rows")
        }
        return dataclasses.replace(
            self, arrays=arrays | {"cache": self.arrays["cache"].copy()}, counters=self.counters.copy()
        )

    def with_dead(self, random: np.random.Generator, count: int) -> Call:
        """The same call with dead rows behind the others, whose other inputs hold anything."""
        call = self.part(slice(None))
        for name in ("qkv", "cos", "sin"):
            more = np.full((count, call.arrays[name].shape[1]), np.nan, np.float32)
            more = encoded(more, "bfloat16") if call.arrays[name].dtype == np.uint16 else more
            call.arrays[name] = np.concatenate((call.arrays[name], more.astype(call.arrays[name].dtype)))
        call.arrays["rows"] = np.concatenate((call.arrays["rows"], np.full((count, 4), -1, np.int32)))
        return call


def kind_of(x: np.ndarray) -> str:
    return "bfloat16" if x.dtype == np.uint16 else x.dtype.name


def numbers(call: Call, prompt: bool) -> np.ndarray:
    """The struct Numbers of cuda_entry_attention.cpp."""
    cache, (places, steps, length) = call.arrays["cache"], call.arrays["slots"].shape
    return np.array(
        [
            *(len(call.arrays["rows"]), call.heads, call.kv_heads, call.head_dim, cache.shape[-1], steps, length),
            *(2 * call.arrays["cos"].shape[1], VISIBILITIES.index(call.visibility), places, cache.shape[1]),
            *(KINDS.index(kind_of(call.arrays["qkv"])), KINDS.index(kind_of(cache)), prompt),
        ],
        np.int64,
    )


def workspace(kernels: Kernels, call: Call, prompt: bool) -> np.ndarray:
    """Memory for a call, poisoned."""
    size = np.zeros(1, np.int64)
    kernels.run("attention_workspace", numbers(call, prompt), call.arrays.get("weights"), size)
    return poisoned(int(size[0]), np.uint8)


def attend(
    kernels: Kernels, call: Call, *, prompt: bool = False, seed: int = 0, memory: np.ndarray | None = None
) -> np.ndarray:
    """The call's output as stored; its cache and counters change in place. Memory beside any array is watched."""
    kind = call.arrays["qkv"].dtype
    arrays = dict(call.arrays) | {
        "counters": call.counters,
        "out": poisoned((len(call.arrays["rows"]), call.heads * call.head_dim), kind),
        "memory": workspace(kernels, call, prompt) if memory is None else memory,
    }
    before = {name: value.copy() for name, value in arrays.items()}
    with guarded(arrays) as held:
        kernels.run(
            *("attention", numbers(call, prompt), np.array([call.epsilon], np.float32)),
            *(held.get(n) for n in ("qkv", "cos", "sin", "rows", "slots", "weights", "q_norm", "k_norm")),
            *(held["cache"], held["counters"], held["out"], held["memory"]),
            seed=seed,
        )
    for name in arrays.keys() - {"cache", "counters", "out", "memory"}:
        assert arrays[name].tobytes() == before[name].tobytes(), f"{name} was written"
    return arrays["out"]


def reference(call: Call) -> tuple[np.ndarray, np.ndarray]:
    """What the call gives in float64, from the same stored numbers, and the cache behind it."""
    arrays = call.arrays
    cache = torch.from_numpy(decoded(arrays["cache"]))[None]
    stored = {"float32": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}[kind_of(arrays["cache"])]
    cache = cache.to(stored)
    extra = {n: torch.from_numpy(arrays[n]) for n in ("weights", "q_norm", "k_norm") if n in arrays}
    out = packed_attention(
        *(torch.from_numpy(decoded(arrays[n])).double() for n in ("qkv", "cos", "sin")),
        *(torch.from_numpy(arrays[n]) for n in ("rows", "slots")),
        cache,
        layer=0,
        num_heads=call.heads,
        num_kv_heads=call.kv_heads,
        head_dim=call.head_dim,
        visibility=call.visibility,
        epsilon=call.epsilon,
        **extra,
    )
    return out.numpy(), cache[0].double().numpy()


def random_call(
    random: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    steps: int,
    positions: int,
    visibility: str = "duo",
    data: str = "float32",
    stored: str = "float32",
    pairs: int | None = None,
    weighted: bool = False,
    normed: bool = False,
) -> Call:
    """Rows of several sequences in the middle of a burst; slots that no table holds contain NaN."""
    heads, kv_heads, head_dim = shape
    tables, rows, _ = random_state(random, steps, pending=False, positions=positions)
    slots = tables["slots"]
    if visibility == "newest":  # some rows read and write nothing
        for row in rows:
            if row[2] > 1 and random.random() < 0.3:
                slots[row[0], row[2] - 1, row[1]] = -1
                row[3] = -2
    lanes = -(-head_dim // 16) * 16
    cache = np.full((2, len(tables["free_slots"]) + 1, kv_heads, lanes), np.nan, np.float32)
    owned = slots[slots >= 0]
    cache[:, owned] = 0
    cache[:, owned, :, :head_dim] = random.standard_normal((2, len(owned), kv_heads, head_dim))
    written = rows[:, 3][rows[:, 3] >= 0]
    cache[:, written] = np.nan  # what a row writes is nothing yet
    angles = rows[:, 1:2] * random.uniform(0, 1, head_dim // 2 if pairs is None else pairs)
    qkv = random.standard_normal((len(rows), (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    arrays = {
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "rows": rows,
        "slots": slots,
        "cache": encoded(cache, stored),
    }
    if weighted:
        arrays["weights"] = random.uniform(1e-4, 1, (slots.shape[0], slots.shape[2], slots.shape[1]))
        arrays["weights"] = arrays["weights"].astype(np.float32)
    if normed:  # queries and keys of very different sizes, which the norms make alike
        qkv[:, : (heads + kv_heads) * head_dim] *= random.lognormal(0, 3, (len(rows), 1)).astype(np.float32)
        arrays |= {name: random.normal(1, 0.3, head_dim).astype(np.float32) for name in ("q_norm", "k_norm")}
    arrays["qkv"] = encoded(qkv, data)
    return Call(heads, kv_heads, head_dim, visibility, arrays)


def call_of_rows(least: int, shape: tuple[int, int, int], **how: object) -> Call:
    """The first random call of at least that many rows, some of them at a later step where there are several."""
    for seed in range(100):
        call = random_call(np.random.default_rng(seed), shape, **how)  # type: ignore[arg-type]
        rows = call.arrays["rows"]
        if len(rows) >= least and (how["steps"] == 1 or (rows[:, 2] > 1).any()):
            return call
    raise AssertionError(f"no call of {least} rows")
