"""`--target tensorrt-rtx`: the portable graph and, beside it, the engine that TensorRT for RTX makes of it without a GPU.

Whole bursts run inside the engine: its one Loop ends when no row is left, which the GPU finds out by itself. Measured
with 1.7.1 where comments say so; no engine was ever run, for want of a GPU it supports.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from ..bundle import Bundle, BundleWriter, Manifest, open_bundle
from ..bundle.files import MANIFEST
from ..bundle.manifest import MAX_STOP_TOKENS
from ..checkpoint import Checkpoint
from ..errors import InputError
from ..runtime.rtx_engine import (
    FACTS,
    GRAPH_FILES,
    TARGET,
    EngineFacts,
    Profile,
    graph_key,
    tensorrt_rtx,
)
from ..runtime.session import PROMPT_ROWS
from ..runtime.state import SLOT_BLOCK, slots_for
from ..runtime.tensorrt_listener import listener
from ..spec import CacheSpec, ModelSpec, RecurrenceSpec
from ..strict_json import readable

# Every compute capability that 1.7.1 knows but 7.5, for which it refuses float32 products, and a router is float32.
COMPUTE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120", "SM121")
MOST_TOP_K = 3840  # of 1.7.1: "K exceeds the maximum value allowed (3840)"
_STOPS = 2 * MAX_STOP_TOKENS  # those of the model and as many that a request may name
# Elements of one intermediate tensor, the scores of all rows or the logits: 1 GiB in float32. It bounds the batch of a
# profile, and with it the scratch memory that a context takes.
_LARGEST = 1 << 28
_BUCKET = 1024  # slots that the first profiles end at; each following bucket ends at 8 times as many
_TUNED = {"batch": 4, "length": 512, "stops": 1, "slots": 4096, "rows": 16}


def check_rtx(source: Checkpoint) -> None:
    """Refuses what TensorRT for RTX would, before anything is traced. Errors: InputError."""
    tensorrt_rtx()
    recurrence, whole = source.recurrence, source.model.vocab_size
    wanted = {
        "feedback": recurrence.feedback.top_k if recurrence.feedback else None,
        "decider": recurrence.decider.top_k if recurrence.decider else None,
    }
    for name, top_k in wanted.items():
        softmax = name == "feedback" and top_k is not None and top_k >= whole  # of the whole vocabulary: no TopK in it
        if top_k is not None and top_k > MOST_TOP_K and not softmax and recurrence.max_latents:
            raise InputError(
                f"the {name} of {source.folder} takes the {top_k} largest logits and TensorRT for RTX finds at most "
                f"{MOST_TOP_K}; export it with --target onnx or --target ort"
            )


def engine_profiles(model: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec) -> tuple[Profile, ...]:
    """Decoding (one row a sequence) and prompts (2 to PROMPT_ROWS rows), each for every bucket of cache lengths.

    A larger cache takes a smaller batch, see _LARGEST. The host asks for a quarter more slots than it needs.
    """
    used = cache.max_seq_len * recurrence.max_steps
    end = slots_for(used + PROMPT_ROWS + max(SLOT_BLOCK, used // 4))
    buckets, least = [], 1
    while least <= end:
        most = max(_BUCKET, 8 * (least - 1))
        most = end if end < 2 * most else most  # a profile takes 12 MB and up: none for a small rest
        buckets.append((least, most))
        least = most + 1

    def tuned(axis: str, least: int, most: int) -> tuple[int, int, int]:
        return least, min(max(_TUNED[axis], least), most), most

    profiles = []
    for low, high in buckets:
        for fewest, rows in ((1, 1), (2, PROMPT_ROWS)):
            batch = _LARGEST // (rows * max(model.vocab_size, model.num_heads * high, model.intermediate_size))
            axes = {
                "batch": tuned("batch", 1, max(1, min(cache.max_batch, batch))),
                "length": tuned("length", 1, cache.max_seq_len),
                "stops": tuned("stops", 1, _STOPS),
                "slots": tuned("slots", low, high),
                "rows": tuned("rows", fewest, rows),
                # the engine chooses tokens; who wants to see logits runs the graph
                "logit_positions": (0, 0, 0),
            }
            profiles.append(Profile(axes))
    return tuple(profiles)


def write_engine(
    folder: Path, model: ModelSpec, recurrence: RecurrenceSpec, cache: CacheSpec, dtype: str
) -> EngineFacts:
    """Builds the engine of the graph in `folder` and writes it there, with engine.json. Errors: InputError."""
    library = tensorrt_rtx()
    known = [name for name in COMPUTE_CAPABILITIES if hasattr(library.ComputeCapability, name)]
    facts = EngineFacts(
        version=library.__version__,
        dtype=dtype,
        graph=graph_key({name: _sha256(folder / name) for name in GRAPH_FILES}),
        compute_capabilities=tuple(f"{name[2:-1]}.{name[-1]}" for name in known),
        profiles=engine_profiles(model, recurrence, cache),
    )
    (folder / facts.file).write_bytes(build_engine(library, folder / GRAPH_FILES[0], facts.profiles, known))
    (folder / FACTS).write_bytes(readable(facts.to_json()))
    return facts


def build_engine(library: Any, graph: Path, profiles: tuple[Profile, ...], capabilities: list[str]) -> Any:
    """The serialised engine of an ONNX file, a buffer. Errors: InputError when TensorRT for RTX refuses it."""
    complaints: list[str] = []
    logger = listener(library, complaints)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise _refused(library, [parser.get_error(i).desc() for i in range(parser.num_errors)] + complaints)
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # on unless cleared: 10 bits of a mantissa would move depths
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(library.ComputeCapability, name), index)
    axes = dict(_axes(graph))
    for each in profiles:
        profile = builder.create_optimization_profile()
        for name, dims in axes.items():
            profile.set_shape(name, *(tuple(_size(each, dim, place) for dim in dims) for place in range(3)))
        if config.add_optimization_profile(profile) < 0:
            raise _refused(library, [*complaints, f"profile {each.axes}"])
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(library, complaints)
    return memoryview(engine)


def _refused(library: Any, reasons: list[str]) -> InputError:
    reason = " ".join((reasons or ["it does not say why"])[0].split())[:300]
    return InputError(
        f"TensorRT for RTX {library.__version__} does not build this graph ({reason}); "
        "export it with --target onnx or --target ort"
    )


def _axes(graph: Path) -> Iterator[tuple[str, list[str | int]]]:
    """Inputs of an ONNX file that have a dynamic axis: (name, dimensions)."""
    for value in onnx.load(str(graph), load_external_data=False).graph.input:
        dims = [dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        if any(isinstance(dim, str) for dim in dims):
            yield value.name, dims


def _size(profile: Profile, dim: str | int, place: int) -> int:
    return profile.axes[dim][place] if isinstance(dim, str) else dim


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Whether what is named as a checkpoint is a bundle, whose engine is then to be built again."""
    return (Path(folder) / MANIFEST).is_file()


def same_folder(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both name one place."""
    return Path(one).resolve() == Path(other).resolve()


def bundle_to_rebuild(
    folder: str | os.PathLike[str], dtype: str, max_seq_len: int | None, family: str | None
) -> Bundle:
    """The bundle, opened, which the options of an export must not contradict. Errors: InputError."""
    tensorrt_rtx()
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if manifest.target != TARGET:
        raise InputError(
            f"bundle {bundle.folder} has the target {manifest.target} and only the engine of a {TARGET} bundle is built "
            f"again; export its checkpoint with --target {TARGET}"
        )
    if family or dtype not in ("float32", manifest.dtype) or max_seq_len not in (None, manifest.cache.max_seq_len):
        raise InputError(
            f"the engine of bundle {bundle.folder} is built again as it was; leave out --dtype, --max-seq-len and "
            "--family, or export its checkpoint"
        )
    return bundle


def rebuild_engine(writer: BundleWriter, bundle: Bundle) -> Manifest:
    """Fills `writer.folder` with the files of a tensorrt-rtx bundle and an engine of the installed library.

    Returns the manifest to seal it with. Errors: InputError.
    """
    manifest = bundle.manifest
    for name in manifest.files:
        if name != FACTS and not name.endswith(".engine"):
            (writer.folder / name).write_bytes(bundle.read_bytes(name))
    facts = write_engine(writer.folder, manifest.model, manifest.recurrence, manifest.cache, manifest.dtype)
    return dataclasses.replace(manifest, built_with=manifest.built_with | {TARGET: facts.version}, files={})
