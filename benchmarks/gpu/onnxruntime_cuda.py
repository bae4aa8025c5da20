"""A `--target ort` bundle end to end on a GPU, by an onnxruntime-gpu that is carried there in pieces.

    python benchmarks/gpu/onnxruntime_cuda.py pack WHEEL build/onnxruntime-gpu     where there is a network
    python benchmarks/gpu/onnxruntime_cuda.py keep build/onnxruntime-gpu/1         there, one group a call
    python benchmarks/gpu/onnxruntime_cuda.py run BUNDLE build/onnxruntime-gpu/2   there, with the last group

`run` builds the op library with its CUDA kernels by CMake unless one with them is there, generates on devices cpu and cuda,
compares tokens and depths, and writes gpu-onnxruntime.json and .md to -o, by default $OUT, else benchmarks/results. Status
1: they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(tempfile.gettempdir()) / "latentcot-onnxruntime"  # outlives a call, unlike the working tree
SITE = KEPT / "site"
# Before anything of ours, which imports onnxruntime: the one that was carried, where it is there, not the machine's.
sys.path[:1] = [*([str(SITE)] if SITE.is_dir() else []), str(ROOT), str(ROOT / "benchmarks")]

from common import results  # noqa: E402
from common.results import Check  # noqa: E402

from gpu import pieces  # noqa: E402
from latentcot_export.errors import InputError, LatentCoTError  # noqa: E402
from latentcot_export.runtime.library import LIBRARY, library_path  # noqa: E402

SEQUENCES, PROMPT, NEW = 16, 24, 64


def keep(group: Path) -> None:
    """Copies one group to where the others are. Errors: InputError."""
    if not group.is_dir():
        raise InputError(f"{group} is no folder of pieces; make them with the verb pack")
    (KEPT / "pieces").mkdir(parents=True, exist_ok=True)
    for path in group.iterdir():
        shutil.copyfile(path, KEPT / "pieces" / path.name)


def build_library() -> None:
    """The op library with CUDA kernels, where runtime/library.py finds it; one that has them stays. Errors: InputError."""
    with contextlib.suppress(InputError):
        library_path("cuda")
        return
    folder = ROOT / "build/gpu-ops"
    settings = ["-DLATENTCOT_CUDA=ON", "-DLATENTCOT_CUDA_ARCHITECTURES=90-real"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), *settings]
    make = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1), "--target", "latentcot_ops"]
    for command in (configure, make):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
            raise InputError("the op library does not build with CUDA; see what cmake says above")
    # another file in its place: the one that was asked for its devices is mapped
    made = ROOT / "latentcot_export/runtime" / LIBRARY
    fresh = made.with_suffix(f".{os.getpid()}")
    shutil.copyfile(folder / LIBRARY, fresh)
    fresh.rename(made)


def compare(bundle: Path) -> dict[str, Any]:
    """Tokens and depths of the same requests on both devices, and what each took."""
    import numpy as np

    from latentcot_export import LatentCoTForCausalLM

    told: dict[str, Any] = {"bundle": bundle.resolve().name, "sequences": SEQUENCES, "new": NEW}
    found = {}
    for device in ("cpu", "cuda"):
        model = LatentCoTForCausalLM.from_pretrained(bundle, device=device)
        random = np.random.default_rng(0)
        vocabulary = model.manifest.model.vocab_size
        prompts = [random.integers(0, vocabulary, random.integers(1, PROMPT)).tolist() for _ in range(SEQUENCES)]
        times = []
        for _ in range(3):  # passes are captured in the first
            began = time.perf_counter()
            found[device] = model.generate(prompts, NEW, ignore_eos=True)
            times.append(time.perf_counter() - began)
        told[f"{device}_seconds"] = times
    one, other = found["cpu"], found["cuda"]
    pairs = zip(one.ids, other.ids, strict=True), zip(one.depths, other.depths, strict=True)
    told["same_tokens"], told["same_depths"] = (sum(a == b for a, b in each) for each in pairs)
    return told


def run(bundle: Path, group: Path | None, out: Path) -> int:
    """Everything behind `pack`; the status."""
    if group is not None:
        keep(group)
    if not SITE.is_dir():
        pieces.unpack(KEPT / "pieces", SITE)
        # this process has imported the onnxruntime that is installed
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import onnxruntime as ort
    import torch  # brings the CUDA libraries that the provider wants

    if "CUDAExecutionProvider" not in ort.get_available_providers() or not torch.cuda.is_available():
        raise InputError(f"ONNX Runtime {ort.__version__} or PyTorch finds no CUDA device; run this where there is one")
    ort.preload_dlls()
    build_library()
    report = results.begin(os.cpu_count() or 1) | compare(bundle)
    report["command"] = f"python benchmarks/gpu/onnxruntime_cuda.py run {bundle.name}"
    report["gpu"] = torch.cuda.get_device_name()
    report["onnxruntime"] = ort.__version__
    report["checks"] = [
        Check(f"sequences of {SEQUENCES} with the CPU's {what}", float(report[f"same_{what}"]), SEQUENCES)
        for what in ("tokens", "depths")
    ]
    rows = [
        {"device": device, "seconds": ", ".join(f"{each:.2f}" for each in report[f"{device}_seconds"])}
        for device in ("cpu", "cuda")
    ]
    page = [
        results.head("A bundle on a GPU, by ONNX Runtime", report),
        f"{report['gpu']}, onnxruntime-gpu {ort.__version__}; bundle {report['bundle']}, {SEQUENCES} sequences, {NEW} new "
        "tokens each; three runs, the first with what happens once.",
        results.table(rows),
        results.checks_table(report["checks"]),
    ]
    results.publish("gpu-onnxruntime", out, report, "\n\n".join(page))
    return 0 if all(check.passed for check in report["checks"]) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("pack", help="a wheel into groups of pieces")
    verb.add_argument("wheel", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--architecture", type=int, default=90, help="compute capability without its point")
    verb = verbs.add_parser("keep", help="put a group where a later call finds it")
    verb.add_argument("group", type=Path)
    verb = verbs.add_parser("run", help="unpack, build, compare")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("group", type=Path, nargs="?", help="the last group")
    verb.add_argument("-o", dest="out", type=Path, default=Path(os.environ.get("OUT") or results.RESULTS))
    given = parser.parse_args()
    try:
        if given.verb == "pack":
            for folder in pieces.pack(given.wheel, given.folder, given.architecture):
                print(folder, sum(path.stat().st_size for path in folder.iterdir()))
        elif given.verb == "keep":
            keep(given.group)
        else:
            sys.exit(run(given.bundle, given.group, given.out))
    except LatentCoTError as error:
        results.refuse(error)


if __name__ == "__main__":
    main()
