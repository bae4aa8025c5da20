"""What an export may be asked for, checked before anything is read or written, and the cache that follows from it."""

from __future__ import annotations

from ..bundle.manifest import POOLED, QUANTIZE, TARGETS
from ..checkpoint import Checkpoint
from ..errors import InputError
from ..spec import DTYPE_BYTES, EXACT, CacheSpec, SpecError, prefill_rounds, refinable

DTYPES = ("float32", "float16")
DEFAULT_OPSET = 24
OPSETS = (20, 21, 22, 23, 24)
_FIXED_OPSETS = {"ort": DEFAULT_OPSET, "tensorrt": 20, "tensorrt-rtx": 20}  # by target; 20 is what TensorRT builds
# The pool of slots that is made when nobody says how many, unless one sequence alone needs more. Its pages are taken from
# the system as they are used.
_POOL_BYTES = 1 << 30


def check_options(
    target: str, dtype: str, quantize: str, opset: int, cache_dtype: str | None, cache_slots: int | None
) -> None:
    """Refuses what no export can be, and what a target does not have. Errors: InputError."""
    if target not in TARGETS:
        raise InputError(
            f"--target {target} is not in this version, which writes {', '.join(TARGETS)}; use one of these"
        )
    if quantize not in QUANTIZE:
        raise InputError(f"--quantize is {quantize}, it must be one of {', '.join(QUANTIZE)}; choose one of these")
    if target == "ort":
        _check_native(dtype, opset, cache_dtype)
        return
    if target == "tensorrt":
        _check_tensorrt(dtype, quantize, opset, cache_dtype)
        return
    for option, given in (
        (f"--quantize {quantize}", quantize != "none"),
        ("--cache-slots", cache_slots is not None),
        ("--cache-dtype", cache_dtype is not None),
    ):
        if given:
            raise InputError(f"{option} is for --target ort and this export's target is {target}; leave it out")
    if dtype not in DTYPES:
        more = "; bfloat16 is for --target ort and tensorrt" if "16" in dtype else ""
        raise InputError(
            f"--dtype is {dtype}, with --target {target} it must be one of {', '.join(DTYPES)}; choose one of these{more}"
        )
    if opset != _FIXED_OPSETS.get(target, opset):
        raise InputError(f"--opset is {opset}, with --target {target} it must be {default_opset(target)}; leave it out")
    if opset not in OPSETS:
        raise InputError(
            f"--opset is {opset}, it must be from {OPSETS[0]} to {OPSETS[-1]}; leave it out for {DEFAULT_OPSET}"
        )


def default_opset(target: str) -> int:
    """The opset where nobody says."""
    return _FIXED_OPSETS.get(target, DEFAULT_OPSET)


def check_quantize(source: Checkpoint, quantize: str) -> None:
    """Refuses to quantise an embedding table that steps multiply by. Errors: InputError."""
    feedback = source.recurrence.feedback
    if quantize != "none" and feedback is not None and feedback.top_k is None and source.recurrence.max_latents:
        raise InputError(
            f"--quantize {quantize} keeps the embedding table in blocks along its rows, and {source.folder} multiplies by "
            "its columns at every step, over the whole vocabulary; export it without --quantize"
        )


def check_prefill(target: str, prefill: str) -> None:
    """Refuses a prefill that is none, and one that a target does not have. Errors: InputError."""
    try:
        rounds = prefill_rounds(prefill)
    except SpecError as error:
        raise InputError(f"--{error}; leave it out for {EXACT}") from None
    if rounds is not None and target != "ort":
        raise InputError(f"--prefill {prefill} is for --target ort and this export's target is {target}; leave it out")


def check_refinable(source: Checkpoint, prefill: str) -> None:
    """Refuses to refine prompts whose tokens do not think so that they can be. Errors: InputError."""
    if prefill != EXACT and not refinable(source.recurrence):
        raise InputError(
            f"--prefill {prefill} is for models whose tokens think a fixed number of thoughts and read all thoughts of "
            f"earlier tokens, as PonderLM-2 does, and {source.folder} is not one; leave it out: its prompts are exact"
        )


def _check_native(dtype: str, opset: int, cache_dtype: str | None) -> None:
    _check_dtypes(dtype, cache_dtype)
    if opset != DEFAULT_OPSET:
        raise InputError(f"--opset is {opset}, with --target ort it must be {DEFAULT_OPSET}; leave it out")


def _check_dtypes(dtype: str, cache_dtype: str | None) -> None:
    """Of packed rows."""
    for option, given in (("--dtype", dtype), ("--cache-dtype", cache_dtype)):
        if given not in (None, *DTYPE_BYTES):
            raise InputError(f"{option} is {given}, it must be one of {', '.join(DTYPE_BYTES)}; choose one of these")


def _check_tensorrt(dtype: str, quantize: str, opset: int, cache_dtype: str | None) -> None:
    if quantize != "none":
        raise InputError(
            f"--quantize {quantize} is for --target ort and this export's target is tensorrt; leave it out"
        )
    _check_dtypes(dtype, cache_dtype)
    if opset != default_opset("tensorrt"):
        raise InputError(
            f"--opset is {opset}, with --target tensorrt it must be {default_opset('tensorrt')}; leave it out"
        )


def default_cache_dtype(dtype: str, quantize: str) -> str:
    """The cache's dtype where nobody says: that of the rows, and float16 beside quantised weights and float32 rows.

    A quantised model's products round a hundred times as much, and reading half the bytes makes it a tenth faster.
    """
    return "float16" if quantize != "none" and dtype == "float32" else dtype


def cache_spec(
    source: Checkpoint, target: str, dtype: str, max_seq_len: int | None, max_batch: int, slots: int | None
) -> CacheSpec:
    """The cache of an export; that of packed rows has `slots`.

    By default they are `max_batch` sequences at depth 1, as many of them as 1 GiB holds, and never less than one longest
    sequence at full depth. Errors: InputError.
    """
    most, steps = source.model.max_position_embeddings, source.recurrence.max_steps
    length = most if max_seq_len is None else max_seq_len
    if source.model.rope.kind == "dynamic" and length > most:
        raise InputError(
            f"--max-seq-len is {length} and {source.folder} uses dynamic RoPE made for {most} positions: beyond them "
            f"prefill and decoding differ by construction; use --max-seq-len {most} or less"
        )
    if slots is not None and slots < steps:
        raise InputError(
            f"--cache-slots is {slots} and one token of {source.folder} can take {steps} steps, a slot each; "
            f"use --cache-slots {steps} or more"
        )
    try:
        plain = CacheSpec(dtype=dtype, max_seq_len=length, max_batch=max_batch)
        if target not in POOLED:
            return plain
        slot_bytes = CacheSpec(dtype=dtype, slots=1).bytes_per_slot(source.model)
        default = max(length * steps, min(max_batch * length, _POOL_BYTES // slot_bytes))
        return CacheSpec(dtype, length, max_batch, default if slots is None else slots)
    except ValueError as error:
        raise InputError(f"{error}; change --max-seq-len, --max-batch or --cache-slots") from None
