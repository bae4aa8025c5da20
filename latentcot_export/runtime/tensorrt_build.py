"""Builds the engine of a `--target tensorrt` bundle where it will run: `python -m latentcot_export.runtime.tensorrt_build`.

Never run on a GPU: tests/tensorrt runs every line of it over a stand-in for TensorRT, which cannot be installed from a
package registry alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import Bundle, Manifest, files, open_bundle
from ..errors import InputError, LatentCoTError
from .cuda_driver import Gpu
from .tensorrt_engine import TARGET, EngineKey, engine_folder, engine_key, timing_file, write_engine
from .tensorrt_library import load_plugins, tensorrt
from .tensorrt_listener import listener

GRAPH = "model.onnx"
PROMPT_ROWS = 512  # most rows of a pass that reads prompts
MOST_ELEMENTS = 2**31 - 1  # of a tensor: that of logits is as large as its profile says, whatever is recorded
_MOST_STOPS = 1024  # of a request, and the power of two that the state widens to (native_state.py)
Sizes = tuple[int, int, int]
"""The least, the tuned and the most of a dimension."""


def axes(manifest: Manifest) -> dict[str, tuple[int | str, ...]]:
    """Inputs of the graph whose shapes are open, and their dimensions: numbers, or names of open ones."""
    steps, model = manifest.recurrence.max_steps, manifest.model
    per_position = ("places", "length")
    made: dict[str, tuple[int | str, ...]] = {
        "order": ("places",),
        "sequences": ("places", 8),
        "sampling": ("places", 2),
        **dict.fromkeys(("tokens", "depths", "forced_depth", "uniform"), per_position),
        "stop_tokens": ("places", "stops"),
        "slots": ("places", steps, "length"),
        "free_slots": ("cache_slots",),
        "logits": ("places", "logit_positions", model.vocab_size),
        "rows": ("rows", 4),
        "latent": ("rows", model.hidden_size),
        "reach": ("rows",),
        "mix": ("rows", model.hidden_size),
    }
    if manifest.recurrence.tailed:
        made["weights"] = (*per_position, steps)
    lanes = manifest.cache.lanes(model)
    for layer in range(model.num_layers):
        made[f"cache_{layer}"] = (2, "cache_slots", model.num_kv_heads, lanes)
    return made


def row_limits(manifest: Manifest) -> tuple[int, int]:
    """Most rows of a pass that decodes, a row for each sequence, and of one that reads prompts."""
    decoding = manifest.cache.max_batch
    return decoding, max(decoding, PROMPT_ROWS)


def recorded_positions(manifest: Manifest) -> int:
    """Most positions of a sequence whose logits can be recorded: TensorRT counts a tensor's elements in 31 bits."""
    row = manifest.cache.max_batch * manifest.model.vocab_size
    return max(1, min(manifest.cache.max_seq_len, MOST_ELEMENTS // row))


def profiles(manifest: Manifest) -> tuple[dict[str, Sizes], dict[str, Sizes]]:
    """Sizes of the open dimensions: of passes that decode, and of passes that read prompts.

    The tables may be smaller than the bundle's, as those of a short validation are; what they are tuned for is its size.
    """
    cache, steps = manifest.cache, manifest.recurrence.max_steps
    assert cache.slots is not None
    tables = {
        "places": (1, cache.max_batch, cache.max_batch),
        "length": (1, cache.max_seq_len, cache.max_seq_len),
        "stops": (1, 16, _MOST_STOPS),
        "cache_slots": (steps, cache.slots, cache.slots),
        "logit_positions": (0, 1, recorded_positions(manifest)),
    }
    decoding, prompts = row_limits(manifest)
    return {**tables, "rows": (1, decoding, decoding)}, {**tables, "rows": (1, prompts, prompts)}


def shapes(manifest: Manifest, profile: Mapping[str, Sizes]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Least, tuned and most shape of every input whose shape is open."""
    return {
        name: tuple(tuple(dim if isinstance(dim, int) else profile[dim][i] for dim in dims) for i in range(3))
        for name, dims in axes(manifest).items()
    }


def build_engine(bundle: Bundle, folder: Path | None = None, library: Any = None, gpu: Gpu | None = None) -> Path:
    """Builds the engine for the TensorRT and the GPU of this machine and puts it into `folder`; its path.

    Errors: InputError for another target, without TensorRT, a GPU or the plugins, and when TensorRT refuses the graph.
    """
    if bundle.manifest.target != TARGET:
        raise InputError(
            f"bundle {bundle.folder} has the target {bundle.manifest.target} and TensorRT builds those of {TARGET} alone; "
            f"export it with --target {TARGET}"
        )
    library = library or tensorrt()
    key = engine_key(bundle, library.__version__, (gpu or Gpu()).capability)
    where = engine_folder(bundle, folder)
    load_plugins(library)
    complaints: list[str] = []
    logger = listener(library, complaints)
    builder = library.Builder(logger)
    network = builder.create_network(_strongly_typed(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.path(GRAPH))):
        raise _refused(library, [parser.get_error(i).desc() for i in range(parser.num_errors)] + complaints)
    config = builder.create_builder_config()
    # tables are changed in place; plugins stay out of the engine, for plugins_to_serialize stays empty
    config.set_preview_feature(library.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    config.clear_flag(library.BuilderFlag.TF32)  # 10 bits of a mantissa would move depths
    timings = timing_file(where, key)
    known = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    config.set_timing_cache(known, False)
    for each in profiles(bundle.manifest):
        profile = builder.create_optimization_profile()
        for name, sizes in shapes(bundle.manifest, each).items():
            profile.set_shape(name, *sizes)
        if config.add_optimization_profile(profile) < 0:
            raise _refused(library, [*complaints, f"a profile of rows {each['rows']}"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(library, complaints)
    written = write_engine(where, key, memoryview(plan))
    files.replace_file(timings, memoryview(config.get_timing_cache().serialize()))
    return written


def _strongly_typed(library: Any) -> int:
    """Flags of a network; from TensorRT 11 on there is no other kind and no flag for it."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refused(library: Any, reasons: list[str]) -> InputError:
    reason = " ".join((reasons or ["it does not say why"])[0].split())[:300]
    return InputError(
        f"TensorRT {library.__version__} does not build this graph ({reason}); export the checkpoint with --target ort"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; stdout is the path of the engine."""
    parser = argparse.ArgumentParser(
        "latentcot_export.runtime.tensorrt_build", description="Build the engine of a bundle."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="Folder that `latentcot export --target tensorrt` wrote.")
    parser.add_argument("--engines", metavar="FOLDER", type=Path, help="Where engines lie; default: BUNDLE.engines")
    given = parser.parse_args(arguments)
    try:
        print(build_engine(open_bundle(given.bundle), given.engines))
    except LatentCoTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


__all__ = ["EngineKey", "build_engine", "main"]

if __name__ == "__main__":
    sys.exit(main())
