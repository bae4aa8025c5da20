"""A decode pass against its floor: the bare chain of its matrix products, and the cache read once.

    python benchmarks/floor.py BUNDLE [BUNDLE ...] [--context 256] [-b 1,16] [--passes 32] [-r 7]

floor = the fastest form of the chain in ONNX Runtime under the session's settings, plus the bytes of the cache that a
pass reads over the read bandwidth measured in the same run. Depth 1, every sequence decodes, `--passes` passes in one
burst. All take turns, with a sleep and a discarded run at each switch. A second session with ONNX Runtime's profile on
tells the share of the ops that schedule. Writes floor.json and floor.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: the reader brings its own threads

import onnxruntime as ort
from common import results
from common.bandwidth import Reader
from common.chain import VARIANTS, Chain, products_of
from common.native import DecodeBurst
from common.results import Check, Spread

from latentcot_export.bench.workload import parse_batches
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime.library import library_path
from latentcot_export.runtime.native_session import NativeSession

SWITCH_SECONDS = 0.05  # ONNX Runtime's threads spin for less than this after a call
SCHEDULING = ("RaggedHalt", "RaggedAdvance", "ChooseToken")
LIMITS = {1: 1.15, 16: 1.20}  # pass / floor
SCHEDULING_LIMIT = 0.02


def turns(takers: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """`runs` values of each, one after the other in every round; dropped are the first round and one at each switch."""
    taken: dict[str, list[float]] = {name: [] for name in takers}
    for turn in range(runs + 1):
        for name, take in takers.items():
            time.sleep(SWITCH_SECONDS)
            take()
            value = take()
            if turn:
                taken[name].append(value)
    return taken


def measured(
    bundle: Bundle, session: NativeSession, chains: list[Chain], reader: Reader, batch: int, given: argparse.Namespace
) -> dict[str, Any]:
    """One line: a bundle at a batch size."""
    burst = DecodeBurst(session, batch, given.context, given.passes)
    takers: dict[str, Callable[[], float]] = {"pass": burst.seconds}
    for chain in chains:
        takers[chain.name] = lambda chain=chain: chain.seconds(batch, given.passes)  # type: ignore[misc]
    takers["bandwidth"] = reader.bytes_per_second
    taken = turns(takers, given.runs)
    manifest = bundle.manifest
    cache = batch * burst.mean_context * manifest.cache.bytes_per_slot(manifest.model)
    fastest = min(chains, key=lambda chain: statistics.median(taken[chain.name])).name
    reading = [cache / rate for rate in taken["bandwidth"]]
    floors = [chain + read for chain, read in zip(taken[fastest], reading, strict=True)]
    return {
        "bundle": bundle.folder.resolve().name,
        "quantize": manifest.quantize,
        "batch": batch,
        "pass_ms": Spread.of([1e3 * each for each in taken["pass"]]),
        "chain": fastest,
        "chain_ms": Spread.of([1e3 * each for each in taken[fastest]]),
        "chains_ms": {chain.name: Spread.of([1e3 * each for each in taken[chain.name]]) for chain in chains},
        "cache_mib": cache / 2**20,
        "bandwidth_gb_s": Spread.of([each / 1e9 for each in taken["bandwidth"]]),
        "read_ms": Spread.of([1e3 * each for each in reading]),
        "ratio": Spread.of([each / floor for each, floor in zip(taken["pass"], floors, strict=True)]),
        "tokens_per_s": batch / statistics.median(taken["pass"]),
    }


def profiled(bundle: Bundle, threads: int, batch: int, given: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a pass by op type, out of a profile of one burst in a session of its own.

    Timing every node makes all of them slower, small ones most: the shares of small ops are upper bounds.
    """
    session = NativeSession(bundle, threads)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.register_custom_ops_library(str(library_path()))
        session.session = ort.InferenceSession(
            str(bundle.path("model.onnx")), options, providers=["CPUExecutionProvider"]
        )
        burst = DecodeBurst(session, batch, given.context, given.passes)
        burst.seconds()
        burst.seconds()
        events = json.loads(Path(session.session.end_profiling()).read_text("utf-8"))
    loops = [each for each in events if each.get("args", {}).get("op_name") == "Loop" and "kernel_time" in each["name"]]
    last = max(loops, key=lambda each: each["ts"])
    start, end = last["ts"], last["ts"] + last["dur"]
    spent: Counter[str] = Counter()
    for each in events:
        inside = each.get("cat") == "Node" and each["name"].endswith("_kernel_time") and each is not last
        if inside and start <= each["ts"] <= end:
            spent[each["args"]["op_name"]] += each["dur"]
    return {name: took / 1e3 / given.passes for name, took in spent.most_common()}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    return {
        "bundle": row["bundle"],
        "quantize": row["quantize"],
        "batch": row["batch"],
        "pass ms": f"{row['pass_ms']:.2f}",
        "chain ms": f"{row['chain_ms']:.2f}",
        "form": row["chain"],
        "cache MiB": row["cache_mib"],
        "read GB/s": f"{row['bandwidth_gb_s']:.1f}",
        "read ms": f"{row['read_ms']:.2f}",
        "pass / floor": f"{row['ratio']:.3f}",
        "t/s": row["tokens_per_s"],
    }


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """What the project asks of itself."""
    found = []
    for row in rows:
        where = f"{row['bundle']}, batch {row['batch']}"
        if row["batch"] in LIMITS and row["quantize"] != "int4":
            found.append(Check(f"{where}: pass / floor", row["ratio"].median, LIMITS[row["batch"]], most=True))
        found.append(
            Check(f"{where}: {' + '.join(SCHEDULING)} of a pass", row["scheduling_share"], SCHEDULING_LIMIT, most=True)
        )
    return found


def page(report: dict[str, Any], given: argparse.Namespace) -> str:
    """floor.md."""
    parts = [
        results.head("Floor: a decode pass against its matrix products", report),
        f"Context {given.context}, depth 1, every sequence decodes, {given.passes} passes a burst, {given.runs} runs.",
        results.table([shown(row) for row in report["rows"]]),
        "Medians, with the least and the most. pass / floor is taken round by round; floor = chain + read.",
        results.checks_table(report["checks"]),
        "## Forms of the chain, ms",
        results.table(
            [
                {"bundle": row["bundle"], "batch": row["batch"], **{k: f"{v:.2f}" for k, v in row["chains_ms"].items()}}
                for row in report["rows"]
            ]
        ),
        "`calls`: one call a pass; `loop`: all passes in one call; `apart`: no product waits for another.",
        "## Profile, ms of a pass by op",
        results.table([{"bundle": r["bundle"], "batch": r["batch"], **r["profile_ms"]} for r in report["rows"]]),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("-b", dest="batches", default="1,16")
    parser.add_argument("--passes", type=int, default=32)
    parser.add_argument("-r", dest="runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        run(given)
    except LatentCoTError as error:
        results.refuse(error)


def run(given: argparse.Namespace) -> None:
    """Measures and publishes."""
    batches = parse_batches(given.batches)
    if min(given.context, given.passes, given.runs, given.threads) < 1:
        raise InputError("--context, --passes, -r and --threads are at least 1; give larger numbers")
    bundles = [open_bundle(folder) for folder in given.bundles]
    for bundle in bundles:
        if bundle.manifest.target != "ort":
            raise InputError(f"{bundle.folder} has the target {bundle.manifest.target}; export it with --target ort")
    report = results.begin(given.threads)
    report["rows"] = []
    reader = Reader(given.threads)
    for bundle in bundles:
        session = NativeSession(bundle, given.threads)
        products = products_of(bundle)
        chains = [Chain(bundle, products, *variant, given.threads) for variant in VARIANTS]
        del products
        rows = [measured(bundle, session, chains, reader, batch, given) for batch in batches]
        del session, chains
        for row in rows:
            spent = profiled(bundle, given.threads, row["batch"], given)
            row["profile_ms"] = spent
            row["scheduling_share"] = sum(spent.get(op, 0.0) for op in SCHEDULING) / sum(spent.values())
        report["rows"] += rows
    report["checks"] = checks(report["rows"])
    results.publish("floor", given.out, report, page(report, given))


if __name__ == "__main__":
    main()
