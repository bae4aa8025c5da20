"""What a bundle costs in memory and on disk, against its weights and cache.

    python benchmarks/memory.py BUNDLE [-p 128] [-n 64] [-b 1] [-r 3] [--check] [-o text|json]

Resident memory is read in fresh processes with the same imports and threads: one has run an empty graph, the other a
prompt and a burst of the bundle. Their difference is held against the bytes of the weights plus those of the cache
(limit 1.25 x as it was allocated; target ort: 1.15 x as it was used), and the external weights file against the bytes of
its tensors (limit 1.03 x, tied tables once). `--check` exits with 1 above a limit. The first limit means something for
models of a hundred megabytes and more: a session, its buffers and the allocator cost some megabytes whatever the model.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESIDENT_LIMITS, FILE_LIMIT = {"onnx": 1.25, "ort": 1.15}, 1.03
MIB = 2**20


def child(arguments: argparse.Namespace) -> dict[str, int]:
    """In a fresh process: run what is asked for, and tell resident bytes now."""
    import numpy as np
    import onnxruntime as ort

    from latentcot_export.bench.machine import rss_bytes
    from latentcot_export.bench.report import engine_of
    from latentcot_export.bench.workload import Batch
    from latentcot_export.bundle import open_bundle

    told = {}
    if arguments.child == "empty":
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
        options.enable_cpu_mem_arena = False
        session: Any = ort.InferenceSession(str(arguments.bundle), options, providers=["CPUExecutionProvider"])
        session.run(None, {})
    else:
        bundle = open_bundle(arguments.bundle)
        session = engine_of(bundle, "continuous", arguments.threads)
        # random ids: reading text would add a tokenizer, which is no part of the session
        shape = (arguments.batch, arguments.prompt)
        prompts = np.random.default_rng(0).integers(0, bundle.manifest.model.vocab_size, shape, dtype=np.int64)
        length = arguments.prompt + arguments.new + 1
        session.start(Batch(prompts, np.zeros((arguments.batch, length), np.int64)))
        session.decode(arguments.new)
        told["cache"] = session.bytes_per_slot * session.work().cache_slots
    gc.collect()
    return {**told, **rss_bytes()}


def empty_graph(path: Path) -> None:
    """A graph of one constant."""
    import onnx
    from onnx import TensorProto, helper

    constant = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    node = helper.make_node("Constant", [], ["out"], value=constant)
    graph = helper.make_graph([node], "empty", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


def measured(arguments: argparse.Namespace, kind: str, subject: Path) -> list[dict[str, int]]:
    """`-r` fresh processes of one kind."""
    command = [sys.executable, __file__, str(subject), "--child", kind, f"--threads={arguments.threads}"]
    command += [f"-p={arguments.prompt}", f"-n={arguments.new}", f"-b={arguments.batch}"]
    done = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(arguments.runs)]
    for each in done:
        if each.returncode:
            sys.exit(f"error: a measuring process failed: {each.stderr.strip().splitlines()[-1:]}")
    return [json.loads(each.stdout) for each in done]


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes and ratios; medians over the processes, and the largest less the smallest as spread."""
    from latentcot_export.bench.workload import Settings, check
    from latentcot_export.bundle import open_bundle
    from latentcot_export.errors import InputError

    bundle = open_bundle(arguments.bundle)
    asked = Settings(
        prompt=arguments.prompt,
        new=arguments.new,
        batches=(arguments.batch,),
        runs=arguments.runs,
        threads=arguments.threads,
    )
    check(asked, bundle.manifest)
    if not asked.prompt or not asked.new:
        raise InputError("-p and -n are at least 1 here, because a prompt and a burst are run; give larger numbers")
    from latentcot_export.validate.weights import bundle_tensors  # imports torch, which a wrong usage need not wait for

    weights = sum(x.numel() * x.element_size() for x in bundle_tensors(bundle).values())
    files = bundle.manifest.files
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "empty.onnx"
        empty_graph(graph)
        empty, full = measured(arguments, "empty", graph), measured(arguments, "bundle", arguments.bundle)

    def median(runs: list[dict[str, int]], part: str) -> int:
        return int(statistics.median(each[part] for each in runs))

    more = {part: median(full, part) - median(empty, part) for part in ("all", "anonymous", "file")}
    resident = [each["all"] for each in full]
    cache = full[0]["cache"]
    return {
        "schema_version": 1,
        "bundle": arguments.bundle.resolve().name,
        "batch": arguments.batch,
        "prompt": arguments.prompt,
        "new": arguments.new,
        "threads": arguments.threads,
        "weights_bytes": weights,
        "cache_bytes": cache,
        "resident_bytes": more,
        "resident_spread_bytes": max(resident) - min(resident),
        "resident_ratio": more["all"] / (weights + cache),
        "resident_limit": RESIDENT_LIMITS[bundle.manifest.target],
        "graph_file_bytes": files["model.onnx"]["size"],
        "weights_file_bytes": files["model.onnx.data"]["size"],
        "weights_file_ratio": files["model.onnx.data"]["size"] / weights,
        "weights_file_limit": FILE_LIMIT,
    }


def shown(report: dict[str, Any]) -> str:
    """The report as lines for people."""

    def mib(count: int) -> str:
        return f"{count / MIB:.2f} MiB"

    more = report["resident_bytes"]
    return "\n".join(
        [
            f"{report['bundle']}: batch {report['batch']}, {report['prompt']} prompt and {report['new']} new tokens",
            f"weights       {mib(report['weights_bytes'])}",
            f"cache         {mib(report['cache_bytes'])}",
            f"resident      {mib(more['all'])} more than with an empty graph ({mib(more['anonymous'])} anonymous, "
            f"{mib(more['file'])} of mapped files, spread {mib(report['resident_spread_bytes'])})",
            f"ratio         {report['resident_ratio']:.3f} x of weights and cache (limit {report['resident_limit']} x)",
            f"weights file  {report['weights_file_ratio']:.3f} x of its tensors (limit {FILE_LIMIT} x)",
            f"graph file    {mib(report['graph_file_bytes'])}",
        ]
    )


def main() -> None:
    from latentcot_export.bench.workload import Settings
    from latentcot_export.errors import LatentCoTError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-p", dest="prompt", type=int, default=128)
    parser.add_argument("-n", dest="new", type=int, default=64)
    parser.add_argument("-b", dest="batch", type=int, default=1)
    parser.add_argument("-r", dest="runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=Settings().thread_count())
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-o", dest="form", choices=("text", "json"), default="text")
    parser.add_argument("--child", choices=("empty", "bundle"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    try:
        report = compared(arguments)
    except LatentCoTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(report, indent=2) if arguments.form == "json" else shown(report))
    passed = report["resident_ratio"] <= report["resident_limit"] and report["weights_file_ratio"] <= FILE_LIMIT
    sys.exit(1 if arguments.check and not passed else 0)


if __name__ == "__main__":
    main()
